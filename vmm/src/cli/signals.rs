//! Ctrl-C, `kill` and a terminal that hangs up: each ends every run, and the command with status
//! 128 + the signal's number.
//!
//! The first signal interrupts the runs, and shortens every wait for room in a pipe; then the
//! command ends in order. When that takes too long, or another signal comes, the process ends at
//! once. So it does while an editor waits for a line, which a signal cannot end: nothing runs then.
//! The listener waits for no other thread, and output takes no lock that it would need.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals as Listener;
use signal_hook::low_level;
use vmkern::script::{Status, Stop};

use super::print;

/// How long the runs have to end after a signal, before the process does.
const GRACE: Duration = Duration::from_secs(2);
/// Ends the mode in which a terminal marks what is pasted (xterm's DECRST 2004).
const PASTE_OFF: &str = "\x1b[?2004l";
/// Values of TERM for which the editor does not use that mode.
const PLAIN_TERMS: [&str; 3] = ["dumb", "cons25", "emacs"];

/// The runs that a signal ends.
#[derive(Debug, Default)]
pub struct Signals {
    /// The first signal that came; 0 before that.
    fired: AtomicI32,
    stops: Mutex<Vec<Weak<Stop>>>,
    /// Whether Ctrl-C ends only the statement that the shell waits for.
    typed: AtomicBool,
    /// Whether an editor waits for a line.
    prompt: AtomicBool,
    /// The terminal's settings before the first editor changed them.
    terminal: OnceLock<Termios>,
}

/// Something that holds as long as this lives.
#[derive(Debug)]
pub struct Guard<'s>(&'s AtomicBool);

impl<'s> Guard<'s> {
    fn new(flag: &'s AtomicBool) -> Self {
        flag.store(true, Ordering::SeqCst);
        Self(flag)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Listens to signals from now on. If that is not possible, signals keep their default actions.
pub fn catch() -> &'static Signals {
    // 1. One set of handlers for the process.
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    let signals = SIGNALS.get_or_init(Signals::default);
    let (ready, listening) = channel::<()>();
    // 2. The thread comes first: a handler without it would swallow the signal.
    let listen = move || {
        let Ok(mut listener) = Listener::new([SIGINT, SIGTERM, SIGHUP]) else { return };
        drop(ready);
        for signal in listener.forever() {
            if signals.fired() {
                signals.leave();
            }
            if signal == SIGINT && signals.typed.load(Ordering::SeqCst) && signals.interrupt() {
                continue;
            }
            signals.fire(signal);
            if signals.prompt.load(Ordering::SeqCst) {
                signals.leave();
            }
            let end = || {
                thread::sleep(GRACE);
                signals.leave();
            };
            if thread::Builder::new().spawn(end).is_err() {
                end();
            }
        }
    };
    // 3. The handlers are in place before anything can run long.
    if thread::Builder::new().spawn(listen).is_ok() {
        // Nothing is sent: the sender is dropped when the handlers are in place, or have failed.
        let _ = listening.recv();
    }
    // 4. A file that grows past RLIMIT_FSIZE makes the write fail; it does not end the process.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    signals
}

impl Signals {
    /// Whether a signal has come.
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst) != 0
    }

    /// The exit status that the signal means, if one has come.
    pub fn status(&self) -> Option<Status> {
        match self.fired.load(Ordering::SeqCst) {
            0 => None,
            SIGHUP => Some(Status::HungUp),
            SIGTERM => Some(Status::Terminated),
            _ => Some(Status::Interrupted),
        }
    }

    /// The limits of a run: it ends by a signal, or after `limit`.
    pub fn stop(&self, limit: Duration) -> Arc<Stop> {
        let stop = Arc::new(Stop::after(limit));
        let mut stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        stops.retain(|known| known.strong_count() > 0);
        stops.push(Arc::downgrade(&stop));
        drop(stops);
        if self.fired() {
            stop.interrupt();
        }
        stop
    }

    /// While the guard lives, Ctrl-C ends only the statement that the shell waits for. A second one
    /// before that statement has ended, and every other signal, ends the process as usual.
    pub fn typed(&self) -> Guard<'_> {
        if let Ok(terminal) = tcgetattr(stdin()) {
            self.terminal.get_or_init(|| terminal);
        }
        Guard::new(&self.typed)
    }

    /// While the guard lives, an editor waits for a line: a signal ends the process at once.
    pub fn prompt(&self) -> Guard<'_> {
        Guard::new(&self.prompt)
    }

    fn fire(&self, signal: i32) {
        self.fired.store(signal, Ordering::SeqCst);
        print::hurry();
        self.interrupt();
    }

    /// Interrupts the runs. Returns whether one of them had not been interrupted yet.
    fn interrupt(&self) -> bool {
        let stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_news = false;
        for stop in stops.iter().filter_map(Weak::upgrade) {
            is_news |= !stop.is_interrupted();
            stop.interrupt();
        }
        is_news
    }

    /// Ends the process at once. The host's kernel frees everything except unfinished files.
    fn leave(&self) -> ! {
        // 1. Unfinished files.
        vmkern::output::abandon();
        // 2. The terminal as it was before the editor that waits for a line there.
        if let Some(terminal) = self.terminal.get() {
            let _ = tcsetattr(stdin(), OptionalActions::Now, terminal);
            if self.prompt.load(Ordering::SeqCst) {
                let term = std::env::var("TERM").unwrap_or_default();
                let is_plain = PLAIN_TERMS.contains(&term.as_str());
                print::out_at_once(if is_plain { "" } else { PASTE_OFF });
                print::out_at_once("\n");
            }
        }
        // 3. The end.
        let status = self.status().unwrap_or(Status::Interrupted);
        print::err_at_once(&said(status));
        low_level::exit(i32::from(status as u8))
    }
}

/// The last line of a command that a signal ended.
pub fn said(status: Status) -> String {
    let what = match status {
        Status::HungUp => "the terminal is gone",
        Status::Terminated => "terminated",
        _ => "interrupted",
    };
    format!("vmkern: {what}\n")
}
