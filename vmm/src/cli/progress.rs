//! How far a long script is: a line on standard error, where that is a terminal, once a run has taken a while.
//!
//! The line is drawn by a thread of the bar's own, so that it moves also while one statement takes long.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a run may take before somebody wants to know how far it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// The progress of one run. Its line goes away with it.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    bar: ProgressBar,
}

impl Progress {
    /// Begins to watch a run. With `Shown` steps on the same terminal there is nothing to add.
    pub fn new(trace: super::steps::Trace) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if trace == super::steps::Trace::Shown {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{spinner} line {msg}, {pos} steps, {elapsed}") {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(PATIENCE);
        }
        Self { start: Instant::now(), bar }
    }

    /// Step number `count`, of line `line`, is done.
    pub fn step(&self, line: usize, count: usize) {
        if !self.bar.is_hidden() && self.start.elapsed() > PATIENCE {
            self.bar.set_message(line.to_string());
            self.bar.set_position(count as u64);
        }
    }

    /// Takes the line away for good.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Has `print` print without the line in its way.
    pub fn aside(&self, print: impl FnOnce()) {
        if self.bar.is_hidden() { print() } else { self.bar.suspend(print) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
