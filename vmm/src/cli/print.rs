//! Standard output and standard error.
//!
//! Everything that the command prints goes through here, without a lock that a thread could hold
//! while it waits for room. Output that cannot be written makes the exit status 7 ([`failures`]),
//! unless the run's own status is not 0. A reader that has gone away is not a failure.
//!
//! Printing waits for room as long as it takes: a pager may take its time. But a run's limit and a
//! signal end that wait as they end the run; what is printed after that may wait [`GRACE`] longer.

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmkern::output::Stream;
use vmkern::script::{Status, Step, Stop};
use vmkern::text;

use super::color::Color;

/// How long there may be no room for what is said after a run was ended from outside.
const GRACE: Duration = Duration::from_millis(500);
/// Bytes of JSON that are collected before they are written.
const BUFFER: usize = 64 << 10;

/// One of the two, with the first thing that went wrong with it.
struct Printer {
    name: &'static str,
    stream: Stream,
    /// Whether it may have styles.
    styled: bool,
    failure: OnceLock<io::Error>,
}

static OUT: LazyLock<Printer> = LazyLock::new(|| {
    Printer::new("standard output", Stream::stdout(), anstream::AutoStream::choice(&io::stdout()))
});
static ERR: LazyLock<Printer> = LazyLock::new(|| {
    Printer::new("standard error", Stream::stderr(), anstream::AutoStream::choice(&io::stderr()))
});

static COLOR: OnceLock<Color> = OnceLock::new();

/// Sets whether what is printed has styles. Comes before anything is.
pub fn choose(color: Color) {
    COLOR.get_or_init(|| color);
}

impl Printer {
    fn new(name: &'static str, stream: Stream, choice: anstream::ColorChoice) -> Self {
        let styled = COLOR.get().copied().unwrap_or_default().is_styled(choice);
        Self { name, stream, styled, failure: OnceLock::new() }
    }

    fn print(&self, text: &str) {
        let text = text::screen(text);
        let text = if self.styled {
            text
        } else {
            Cow::Owned(anstream::adapter::strip_str(&text).to_string())
        };
        // The error is kept for `failures`.
        let _ = self.write(text.as_bytes());
    }

    /// Writes `bytes`, unless something went wrong before.
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.kind().into());
        }
        self.stream.write(bytes, &mut go_on).inspect_err(|error| {
            let again = error
                .raw_os_error()
                .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            let _ = self.failure.set(again);
        })
    }
}

/// Writes `text` to standard output, without its styles where those are not wanted.
pub fn out(text: &str) {
    OUT.print(text);
}

/// Writes `text` to standard error in the same way.
pub fn err(text: &str) {
    ERR.print(text);
}

/// Writes `text` to standard output, as it is, if there is room for it now.
pub fn out_at_once(text: &str) {
    OUT.stream.try_write(text.as_bytes());
}

/// Writes `text` to standard error if there is room for it now.
pub fn err_at_once(text: &str) {
    ERR.stream.try_write(text.as_bytes());
}

/// Lets `write` write JSON to standard output, in pieces of text. What a terminal would obey
/// is escaped.
///
/// # Errors
/// The error of `write`, and of the stream, which is also kept for [`failures`].
pub fn json_to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, Json);
    write(&mut out)?;
    out.flush()
}

/// Writes a piece of JSON to standard output.
pub fn json(piece: &str) {
    // The error is kept for `failures`.
    let _ = OUT.write(text::json(piece).as_bytes());
}

/// Standard output for JSON. A buffer in front of it passes pieces on whole, so that each is text.
struct Json;

impl Write for Json {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = str::from_utf8(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        OUT.write(text::json(piece).as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what a step prints to standard error: on standard output it would stand in the middle of
/// a report.
pub fn output_aside(step: &Step) {
    if let Some(output) = &step.output {
        super::eprint(&format!("{}\n", text::plain(output)));
    }
}

/// Descriptions of the output that could not be written.
pub fn failures() -> Vec<String> {
    let failed = [&*OUT, &*ERR]
        .into_iter()
        .filter_map(|printer| Some((printer.name, printer.failure.get()?)));
    failed.map(|(name, error)| format!("cannot write to {name}: {error}")).collect()
}

/// How long there may be no room.
#[derive(Debug)]
enum Limit {
    /// As long as it takes.
    Never,
    /// As long as this run may go on, and a little longer.
    Run(Weak<Stop>),
    /// Until then.
    Until(Instant),
}

static LIMIT: Mutex<Limit> = Mutex::new(Limit::Never);

fn set(limit: Limit) {
    *LIMIT.lock().unwrap_or_else(PoisonError::into_inner) = limit;
}

/// A run has begun: what is printed from now on waits for room only as long as that may go on.
pub fn run_begins(stop: &Arc<Stop>) {
    set(Limit::Run(Arc::downgrade(stop)));
}

/// A run has ended.
pub fn run_ends(ended: Ended) {
    let mut limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Limit::Run(_) = *limit {
        *limit = match ended {
            Ended::ByItself => Limit::Never,
            Ended::FromOutside => Limit::Until(Instant::now() + GRACE),
        };
    }
}

/// From now on nothing waits long.
pub fn hurry() {
    set(Limit::Until(Instant::now() + GRACE));
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    ByItself,
    /// By its time limit, or by a signal.
    FromOutside,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        match status {
            Status::Timeout | Status::Interrupted => Self::FromOutside,
            _ => Self::ByItself,
        }
    }
}

/// Whether to go on waiting for room.
pub fn go_on() -> ControlFlow<()> {
    let limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_over = match &*limit {
        Limit::Never => false,
        Limit::Run(stop) => stop.upgrade().is_some_and(|stop| stop.is_over(GRACE)),
        Limit::Until(end) => Instant::now() >= *end,
    };
    if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
