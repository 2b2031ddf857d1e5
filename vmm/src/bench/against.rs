//! Two kernels measured in turn, so only the kernel differs.
//!
//! **Protocol.** Each round measures both kernels once, each in its own guests, and the order
//! alternates from round to round: drift of the machine affects both equally. A round yields one
//! ratio for each figure. The report gives the median of these ratios, with an interval from
//! resampling the rounds. The round is the unit because medians of two launches of one kernel
//! differ more than medians within a launch.

use serde::Serialize;

use super::{BenchError, Interval, Progress, Summary, Watch};
use crate::kernel::KernelImage;

/// A figure of one measurement: smaller is better.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// What was measured.
    pub what: String,
    /// How long it took, in microseconds.
    pub us: f64,
}

/// The result of comparing one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// This build needs less time, beyond the interval.
    Better,
    /// This build needs more time, beyond the interval.
    Worse,
    /// The interval contains 1.
    NoDifference,
    /// Fewer than [`LEAST_ROUNDS`] rounds: by chance alone, all would too often fall on one side.
    TooFewRounds,
}

/// Rounds that a verdict needs. With seven, all rounds of two equal kernels fall on one side in 1
/// of 64 runs.
pub const LEAST_ROUNDS: usize = 8;

impl Verdict {
    /// The verdict of an interval of ratios of times, from `rounds` rounds.
    #[must_use]
    pub fn of(ratio: Interval, rounds: usize) -> Self {
        if rounds < LEAST_ROUNDS {
            Self::TooFewRounds
        } else if ratio.low > 1.0 {
            Self::Worse
        } else if ratio.high < 1.0 {
            Self::Better
        } else {
            Self::NoDifference
        }
    }
}

/// One figure, with both kernels.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AgainstRow {
    /// What was measured.
    pub what: String,
    /// Microseconds with this build's kernel.
    pub this_us: Summary,
    /// Microseconds with the other kernel.
    pub other_us: Summary,
    /// This build's time divided by the other's, round by round.
    pub ratio: Interval,
    /// The verdict.
    pub verdict: Verdict,
}

/// This build's kernel beside another one.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AgainstBench {
    /// Rounds.
    pub rounds: usize,
    /// Each figure.
    pub rows: Vec<AgainstRow>,
}

impl AgainstBench {
    /// Whether any figure is worse.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Worse)
    }
}

/// Runs `measure` in turn with the built-in kernel and with `other`, `rounds` times (at least once)
/// after a warm-up round; `watch` follows the rounds. Each measurement returns the same figures in
/// the same order.
///
/// # Errors
/// When a measurement fails.
pub(super) fn in_turns(
    other: &KernelImage,
    rounds: usize,
    watch: Watch<'_>,
    mut measure: impl FnMut(&KernelImage) -> Result<Vec<Figure>, BenchError>,
) -> Result<AgainstBench, BenchError> {
    let this = KernelImage::embedded();
    let mut times: [Vec<Vec<Figure>>; 2] = Default::default();
    for round in 0..=rounds {
        watch(Progress { done: round, total: rounds + 1 });
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            let figures = measure(if which == 0 { &this } else { other })?;
            if round > 0 {
                times[which].push(figures);
            }
        }
    }
    let [this, other] = &times;
    let names = this.first().into_iter().flatten().map(|figure| figure.what.clone());
    let rows = names.enumerate().map(|(number, what)| row(what, number, this, other));
    Ok(AgainstBench { rounds, rows: rows.collect() })
}

/// The row of figure `number` of each round.
fn row(what: String, number: usize, this: &[Vec<Figure>], other: &[Vec<Figure>]) -> AgainstRow {
    let pick = |rounds: &[Vec<Figure>]| -> Vec<f64> {
        rounds.iter().filter_map(|figures| Some(figures.get(number)?.us)).collect()
    };
    let (this, other) = (pick(this), pick(other));
    let ratio = Interval::of_ratios(&this, &other);
    AgainstRow {
        what,
        this_us: Summary::of(&this),
        other_us: Summary::of(&other),
        ratio,
        verdict: Verdict::of(ratio, this.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_an_interval_that_leaves_out_one_and_eight_rounds() {
        let interval = |low, high| Interval { low, median: f64::midpoint(low, high), high };
        assert_eq!(Verdict::of(interval(1.01, 1.2), LEAST_ROUNDS), Verdict::Worse);
        assert_eq!(Verdict::of(interval(0.8, 0.99), LEAST_ROUNDS), Verdict::Better);
        assert_eq!(Verdict::of(interval(0.9, 1.1), LEAST_ROUNDS), Verdict::NoDifference);
        assert_eq!(Verdict::of(interval(1.01, 1.2), LEAST_ROUNDS - 1), Verdict::TooFewRounds);
    }

    #[test]
    fn the_kernels_take_turns_at_the_beginning_and_the_first_round_is_left_out() {
        let other = KernelImage::from_bytes(Vec::new());
        let mut order = String::new();
        let mut took = 0.0;
        let bench = in_turns(&other, 2, &mut |_| {}, |kernel| {
            let is_other = kernel.bytes().is_empty();
            order.push(if is_other { 'o' } else { 't' });
            took += 1.0;
            Ok(vec![Figure { what: "x".to_owned(), us: if is_other { took } else { 2.0 * took } }])
        });
        let bench = bench.expect("nothing fails");
        assert_eq!(order, "tootto");
        let [row] = &bench.rows[..] else { panic!("one figure yields one row") };
        // In the rounds that count, `this` was measured fourth and fifth, `other` third and sixth.
        assert_eq!((row.this_us.median, row.other_us.median), (9.0, 4.5));
        assert_eq!(row.ratio.median, f64::midpoint(8.0 / 3.0, 10.0 / 6.0));
    }
}
