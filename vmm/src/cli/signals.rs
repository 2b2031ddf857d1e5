//! Ctrl-C, a polite kill and a terminal that goes away: every run ends, and the command with 128
//! and the signal's number.
//!
//! The first signal interrupts the runs, and hurries what waits for room in a pipe; then the
//! command ends in order. When that takes too long, or another signal comes, the process ends at
//! once. Nothing here waits for anybody, and whoever prints owns no lock.

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

/// The runs that a signal ends.
#[derive(Debug, Default)]
pub struct Signals {
    /// The first signal that came; 0 before that.
    fired: AtomicI32,
    stops: Mutex<Vec<Weak<Stop>>>,
    /// Whether somebody types, and Ctrl-C ends no more than the statement that is waited for.
    typed: AtomicBool,
    /// The terminal as it was before an editor came to it.
    terminal: OnceLock<Termios>,
}

/// As long as it lives, Ctrl-C ends no more than the statement that is waited for.
#[derive(Debug)]
pub struct TypedGuard<'s>(&'s Signals);

impl Drop for TypedGuard<'_> {
    fn drop(&mut self) {
        self.0.typed.store(false, Ordering::SeqCst);
    }
}

/// Listens to signals from now on. If that is not possible, a signal ends the process as it does
/// without us.
pub fn catch() -> &'static Signals {
    // 1. One set of handlers for the process.
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    let signals = SIGNALS.get_or_init(Signals::default);
    let (ready, listening) = channel::<()>();
    // 2. The thread comes first: without one, nobody would hear what a handler notes.
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
        // Nothing is sent: the other end is dropped when the handlers are there, or never will be.
        let _ = listening.recv();
    }
    // 4. A file that grows past RLIMIT_FSIZE is then an error of the write, and not the end of the
    //    process.
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

    /// A run's limits, which a signal ends as well as `limit`.
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

    /// From now on Ctrl-C ends no more than the statement that is waited for; a second one that
    /// comes before that has ended, and every other signal, ends the process as ever.
    pub fn typed(&self) -> TypedGuard<'_> {
        if let Ok(terminal) = tcgetattr(stdin()) {
            self.terminal.get_or_init(|| terminal);
        }
        self.typed.store(true, Ordering::SeqCst);
        TypedGuard(self)
    }

    fn fire(&self, signal: i32) {
        self.fired.store(signal, Ordering::SeqCst);
        print::hurry();
        self.interrupt();
    }

    /// Interrupts the runs. Says whether one of them had not been interrupted yet.
    fn interrupt(&self) -> bool {
        let stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_news = false;
        for stop in stops.iter().filter_map(Weak::upgrade) {
            is_news |= !stop.is_interrupted();
            stop.interrupt();
        }
        is_news
    }

    /// Ends the process at once. The kernel of the host takes back what is left, but for files.
    fn leave(&self) -> ! {
        vmkern::output::abandon();
        if let Some(terminal) = self.terminal.get() {
            // The editor may have been at work.
            let _ = tcsetattr(stdin(), OptionalActions::Now, terminal);
        }
        let status = self.status().unwrap_or(Status::Interrupted);
        print::err_at_once(&said(status));
        low_level::exit(i32::from(status as u8))
    }
}

/// What is said at the end.
pub fn said(status: Status) -> String {
    let what = match status {
        Status::HungUp => "the terminal is gone",
        Status::Terminated => "terminated",
        _ => "interrupted",
    };
    format!("vmkern: {what}\n")
}
