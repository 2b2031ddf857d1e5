//! Medians, quartiles, and confidence intervals of medians.

use serde::Serialize;

use crate::script::Random;

/// Median and quartiles of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// A quarter of the figures is below.
    pub q1: f64,
    /// Half of them is below.
    pub median: f64,
    /// Three quarters are below.
    pub q3: f64,
}

impl Summary {
    /// The summary of `figures`, which must not be empty.
    #[must_use]
    pub fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { q1: quantile(&sorted, 1), median: quantile(&sorted, 2), q3: quantile(&sorted, 3) }
    }

    /// The summary of the ratios of `figures` to `reference`, round by round.
    #[must_use]
    pub fn of_ratios(figures: &[f64], reference: &[f64]) -> Self {
        let ratios: Vec<f64> =
            figures.iter().zip(reference).map(|(figure, reference)| figure / reference).collect();
        Self::of(&ratios)
    }
}

/// A median with its 99 % confidence interval, estimated from the rounds (percentile bootstrap).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// Upper end.
    pub high: f64,
}

/// Samples from which an interval is made. The random numbers are the same in each run.
const RESAMPLES: usize = 4000;

impl Interval {
    /// The interval of the median of the ratios of `figures` to `reference`, round by round. There
    /// is at least one round.
    #[must_use]
    pub fn of_ratios(figures: &[f64], reference: &[f64]) -> Self {
        let ratios: Vec<f64> =
            figures.iter().zip(reference).map(|(figure, reference)| figure / reference).collect();
        let mut rng = Random::new(0);
        let mut medians: Vec<f64> =
            (0..RESAMPLES).map(|_| Summary::of(&resample(&ratios, &mut rng)).median).collect();
        medians.sort_by(f64::total_cmp);
        let left_out = RESAMPLES / 200;
        Self {
            low: medians[left_out],
            median: Summary::of(&ratios).median,
            high: medians[RESAMPLES - 1 - left_out],
        }
    }
}

/// As many figures as `figures` has, each drawn at random from it.
#[expect(clippy::cast_possible_truncation, reason = "the number is smaller than a length")]
fn resample(figures: &[f64], rng: &mut Random) -> Vec<f64> {
    let last = figures.len() as u64 - 1;
    figures.iter().map(|_| figures[rng.between(0, last) as usize]).collect()
}

/// The figure below which `quarters` quarters of `sorted` lie, interpolated.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers of figures are small"
)]
fn quantile(sorted: &[f64], quarters: usize) -> f64 {
    let place = (sorted.len() - 1) as f64 * quarters as f64 / 4.0;
    let below = place as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate_between_figures() {
        assert_eq!(
            Summary::of(&[3.0, 1.0, 2.0, 5.0, 4.0]),
            Summary { q1: 2.0, median: 3.0, q3: 4.0 }
        );
        assert_eq!(Summary::of(&[1.0, 2.0]), Summary { q1: 1.25, median: 1.5, q3: 1.75 });
        assert_eq!(Summary::of(&[7.0]), Summary { q1: 7.0, median: 7.0, q3: 7.0 });
    }

    #[test]
    fn an_interval_is_a_point_where_all_rounds_agree_and_wide_where_they_do_not() {
        let same = Interval::of_ratios(&[2.0; 9], &[4.0; 9]);
        assert_eq!(same, Interval { low: 0.5, median: 0.5, high: 0.5 });
        let noisy: Vec<f64> = (1..=9).map(f64::from).collect();
        let wide = Interval::of_ratios(&noisy, &[5.0; 9]);
        assert_eq!(wide.median, 1.0);
        assert!(wide.low < 0.6 && wide.high > 1.4, "{wide:?}");
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        assert_eq!(Summary::of_ratios(&[2.0, 9.0, 4.0], &[1.0, 3.0, 2.0]).median, 2.0);
    }
}
