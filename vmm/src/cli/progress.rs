//! The progress of a long script: a line on standard error, if that is a terminal, once a run has
//! taken a while.
//!
//! A thread waits that while and then draws the line again and again, so that it moves also while
//! one statement takes long, and a short run draws nothing. The run only notes where it is.

use std::io::{IsTerminal as _, stderr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::steps::Trace;

/// How long a run takes before its progress is shown.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two drawings.
const PERIOD: Duration = Duration::from_millis(100);

/// Where a run is.
#[derive(Debug, Default)]
struct Place {
    line: AtomicUsize,
    count: AtomicUsize,
    /// There once the run has taken a while.
    bar: OnceLock<ProgressBar>,
}

/// The progress of one run. Its line goes away with it.
#[derive(Debug)]
pub struct Progress {
    place: Arc<Place>,
    /// Ends the thread that draws when it is dropped.
    _run: Option<Sender<()>>,
}

impl Progress {
    /// Begins to watch a run. Where its steps are shown on the same terminal there is nothing to
    /// add.
    pub fn new(trace: Trace) -> Self {
        let place = Arc::new(Place::default());
        if trace == Trace::Shown || !stderr().is_terminal() {
            return Self { place, _run: None };
        }
        let (run, over) = channel();
        let seen = Arc::clone(&place);
        // Without a thread there is no line.
        let drawn =
            thread::Builder::new().name("progress".to_owned()).spawn(move || draw(&seen, &over));
        Self { place, _run: drawn.is_ok().then_some(run) }
    }

    /// Step number `count`, of line `line`, is done.
    pub fn step(&self, line: usize, count: usize) {
        self.place.line.store(line, Ordering::Relaxed);
        self.place.count.store(count, Ordering::Relaxed);
    }

    /// Lets `print` print without the line in its way.
    pub fn aside(&self, print: impl FnOnce()) {
        match self.place.bar.get() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the line away for good.
    pub fn clear(&self) {
        if let Some(bar) = self.place.bar.get() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Draws where a run is until it is over.
fn draw(place: &Place, over: &Receiver<()>) {
    if over.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let bar = place.bar.get_or_init(|| {
        let style = ProgressStyle::with_template("{spinner} line {msg}, {pos} steps, {elapsed}");
        let bar = ProgressBar::no_length().with_elapsed(PATIENCE);
        style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
    });
    while !bar.is_finished() && over.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        bar.set_message(place.line.load(Ordering::Relaxed).to_string());
        bar.set_position(place.count.load(Ordering::Relaxed) as u64);
        bar.tick();
    }
}
