//! The dump of a guest's memory at the end of a run.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use vmkern::Guest;
use vmkern::dump::Saving;
use vmkern::guest::SaveError;
use vmkern::output::Destination;
use vmkern::script::Stop;

/// How long writing takes before its progress is shown.
const PATIENCE: Duration = Duration::from_millis(500);

/// Writes a dump of `guest`, which ran `program`, to `to`. Shows how far it is where it takes
/// long; the run's time limit does not count any more, but an interruption does.
///
/// # Errors
/// When it cannot be written.
pub fn dump(guest: &Guest, to: Destination, program: &str, stop: &Stop) -> Result<(), SaveError> {
    let path = to.path().to_path_buf();
    let start = Instant::now();
    let mut bar: Option<ProgressBar> = None;
    let mut progress = |saving: Saving| {
        if bar.is_none() && start.elapsed() > PATIENCE {
            bar = Some(new_bar(saving.total, &path));
        }
        if let Some(bar) = &bar {
            bar.set_position(saving.done);
        }
        if stop.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let saved = guest.save_dump_to(to, program, &mut progress);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    saved.map(|_| ())
}

fn new_bar(total: u64, path: &Path) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}");
    let bar = ProgressBar::new(total).with_message(format!("writing {}", vmkern::text::name(path)));
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
