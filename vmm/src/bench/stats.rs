//! Median and quartiles.

use serde::Serialize;

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
    /// The summary of `figures`, of which there is at least one.
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
    fn ratios_are_taken_round_by_round() {
        assert_eq!(Summary::of_ratios(&[2.0, 9.0, 4.0], &[1.0, 3.0, 2.0]).median, 2.0);
    }
}
