//! Ctrl-C and a polite kill: every run ends, and the command with status 130.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals as Listener;
use vmkern::script::{Status, Stop};

/// How long the runs have to end after a signal, before the process does.
const GRACE: Duration = Duration::from_secs(2);

/// The runs that a signal ends.
#[derive(Debug, Default)]
pub struct Signals {
    fired: AtomicBool,
    stops: Mutex<Vec<Weak<Stop>>>,
}

/// Listens to signals from now on. If that is not possible, a signal ends the process as it does without us.
pub fn catch() -> &'static Signals {
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    let signals = SIGNALS.get_or_init(Signals::default);
    let (ready, listening) = channel::<()>();
    // The thread comes first: without one, nobody would hear what a handler notes.
    let listen = move || {
        let Ok(mut listener) = Listener::new([SIGINT, SIGTERM, SIGHUP]) else { return };
        drop(ready);
        for _ in listener.forever() {
            if signals.fired() {
                leave();
            }
            signals.fire();
            let end = || {
                thread::sleep(GRACE);
                leave();
            };
            if thread::Builder::new().spawn(end).is_err() {
                end();
            }
        }
    };
    if thread::Builder::new().spawn(listen).is_ok() {
        // Nothing is sent: the other end is dropped when the handlers are there, or never will be.
        let _ = listening.recv();
    }
    // A file that grows past RLIMIT_FSIZE is then an error of the write, and not the end of the process.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    signals
}

/// Ends the process at once. The kernel of the host takes back what is left.
fn leave() -> ! {
    std::process::exit(i32::from(Status::Interrupted as u8))
}

impl Signals {
    /// Whether a signal has come.
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
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

    fn fire(&self) {
        self.fired.store(true, Ordering::SeqCst);
        super::eprint("vmkern: interrupted\n");
        let stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        for stop in stops.iter().filter_map(Weak::upgrade) {
            stop.interrupt();
        }
    }
}
