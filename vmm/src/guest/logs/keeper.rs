//! The thread that keeps all of a guest's log.
//!
//! It sleeps until the kernel rings for it, like a consumer of [`vmkern_abi::control`]. It writes
//! the bytes to the console before it takes more, so the kernel waits for a slow console. A console
//! that fails is given up, and the kernel does not wait for it any more.

use std::io::{self, Write};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmkern_abi::control::ControlRegion;
use vmkern_abi::log::{Keeping, LogRing};

use super::{LogEnd, overwritten, trim};
use crate::devices;
use crate::kvm::KvmError;
use crate::kvm::bell::Bell;
use crate::kvm::memory::Shared;

/// Bytes that are taken at a time.
const PIECE: usize = 8 << 10;
/// The keeper needs no time-out, but the bell requires one.
const LONG: Duration = Duration::from_secs(3600);

/// State that the thread shares with the guest's driver.
#[derive(Debug)]
struct State {
    bell: Arc<Bell>,
    closing: AtomicBool,
    /// Bytes that were not taken yet.
    collected: Mutex<Vec<u8>>,
}

/// The thread. Dropping it waits until it has taken everything that is there.
#[derive(Debug)]
pub(crate) struct Keeper {
    state: Arc<State>,
    thread: Option<JoinHandle<LogEnd>>,
}

impl Keeper {
    /// Starts the thread, before the kernel begins. The kernel's doorbell for it must ring `bell`.
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub(crate) fn start(
        region: Shared<ControlRegion>,
        serial: devices::Console,
        console: Box<dyn Write + Send>,
        bell: Arc<Bell>,
    ) -> Result<Self, KvmError> {
        let state =
            Arc::new(State { bell, closing: AtomicBool::new(false), collected: Mutex::default() });
        region.log.keep(Keeping::Everything);
        let ring = Ring(region);
        let shared = Arc::clone(&state);
        let run = move || {
            let ring = ring;
            Work {
                state: shared,
                serial,
                console: Some(console),
                next: 0,
                dropped: 0,
                in_line: false,
                error: None,
            }
            .run(&ring)
        };
        let thread =
            thread::Builder::new().name("vmkern-log".to_owned()).spawn(run).map_err(|error| {
                KvmError::io("starting the thread that keeps the kernel's log", &error)
            })?;
        Ok(Self { state, thread: Some(thread) })
    }

    /// The bytes since the last call.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.state.collected.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until it has taken everything that is there. The guest has stopped.
    pub(super) fn end(mut self) -> LogEnd {
        let mut end = self.close().unwrap_or_default();
        end.rest = self.take();
        end
    }

    fn close(&mut self) -> Option<LogEnd> {
        let thread = self.thread.take()?;
        self.state.closing.store(true, Ordering::SeqCst);
        self.state.bell.ring();
        thread.join().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

/// The ring in guest memory. Once it is dropped, the kernel does not wait for the keeper any more.
struct Ring(Shared<ControlRegion>);

impl Deref for Ring {
    type Target = LogRing;

    fn deref(&self) -> &LogRing {
        &self.0.log
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.0.log.keep(Keeping::Nothing);
    }
}

/// The thread's own state.
struct Work {
    state: Arc<State>,
    serial: devices::Console,
    console: Option<Box<dyn Write + Send>>,
    /// Number of the next byte to take.
    next: u64,
    /// Dropped lines that were reported.
    dropped: u64,
    /// Whether the last line is incomplete.
    in_line: bool,
    error: Option<io::Error>,
}

impl Work {
    fn run(mut self, ring: &LogRing) -> LogEnd {
        loop {
            // Read the flag first, so everything that was written before the close is still taken.
            let is_last = self.state.closing.load(Ordering::SeqCst);
            if self.move_on(ring) {
                continue;
            }
            if is_last {
                break;
            }
            ring.keeper.prepare();
            if ring.written() == self.next && !self.state.closing.load(Ordering::SeqCst) {
                self.state.bell.wait(Instant::now() + LONG);
            }
            ring.keeper.cancel();
        }
        self.tell_dropped(ring);
        LogEnd { rest: Vec::new(), error: self.error, dropped: ring.dropped() }
    }

    /// Takes one piece. Returns whether there was any.
    fn move_on(&mut self, ring: &LogRing) -> bool {
        let serial = self.serial.take();
        self.put(&serial);
        let mut piece = [0; PIECE];
        let read = ring.read(self.next, &mut piece);
        let lost = read.start.saturating_sub(self.next);
        if lost > 0 {
            self.put(overwritten(lost).as_bytes());
        }
        let count = usize::try_from(read.end - read.start).map_or(PIECE, |count| count.min(PIECE));
        self.put(&piece[..count]);
        self.next = read.end;
        ring.taken(self.next);
        if !self.in_line {
            self.tell_dropped(ring);
        }
        count > 0 || lost > 0 || !serial.is_empty()
    }

    /// Reports how many lines were dropped since the last report.
    fn tell_dropped(&mut self, ring: &LogRing) {
        let dropped = ring.dropped();
        if dropped > self.dropped {
            let lines = dropped - self.dropped;
            self.dropped = dropped;
            let what =
                if lines == 1 { "1 line was".to_owned() } else { format!("{lines} lines were") };
            self.put(
                format!("[{what} dropped here: there was no room, and no waiting for it]\n")
                    .as_bytes(),
            );
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.in_line = *last != b'\n';
        if let Some(console) = &mut self.console
            && let Err(error) = console.write_all(bytes).and_then(|()| console.flush())
        {
            self.error = Some(error);
            self.console = None;
        }
        let mut collected = self.state.collected.lock().unwrap_or_else(PoisonError::into_inner);
        collected.extend_from_slice(bytes);
        trim(&mut collected);
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::log::LOG_BYTES;

    use super::*;
    use crate::kvm::boot::CONTROL;
    use crate::kvm::memory::GuestRam;

    /// A console whose output a test can read, and that fails after a number of bytes.
    #[derive(Clone)]
    struct Paper {
        written: Arc<Mutex<Vec<u8>>>,
        room: usize,
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            if written.len() + bytes.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A region with a keeper whose console has room for `room` bytes, and its doorbell.
    fn kept(room: usize) -> (Shared<ControlRegion>, Keeper, Paper, Arc<Bell>) {
        let ram = Arc::new(GuestRam::new(8 << 20).expect("address space is there"));
        let region = || ram.shared::<ControlRegion>(CONTROL).expect("it is RAM");
        let (paper, bell) =
            (Paper { written: Arc::default(), room }, Bell::new().expect("an eventfd can be had"));
        let (serial, console) = (devices::Console::default(), Box::new(paper.clone()));
        let keeper =
            Keeper::start(region(), serial, console, Arc::clone(&bell)).expect("there are threads");
        (region(), keeper, paper, bell)
    }

    /// Writes like a kernel that holds no lock.
    fn write(ring: &LogRing, text: &[u8], bell: &Bell) {
        while !ring.has_room(text.len() as u64) {
            thread::yield_now();
        }
        ring.write(text);
        if ring.keeper.must_wake() {
            bell.ring();
        }
    }

    #[test]
    fn ten_rings_full_of_lines_arrive_and_what_could_not_wait_is_counted_where_it_is_missing() {
        let (region, keeper, paper, bell) = kept(usize::MAX);
        let mut expected = String::new();
        for number in 0.. {
            let line = format!("line {number}\n");
            write(&region.log, line.as_bytes(), &bell);
            expected.push_str(&line);
            if expected.len() > 10 * LOG_BYTES {
                break;
            }
        }
        // The keeper has taken everything, and sleeps.
        while !region.log.has_room(LOG_BYTES as u64 - 1) {
            thread::yield_now();
        }
        (0..3).for_each(|_| region.log.drop_line());
        write(&region.log, b"last\n", &bell);
        let end = keeper.end();
        assert_eq!((end.dropped, end.error.is_none()), (3, true));
        let written = String::from_utf8(paper.written.lock().expect("nobody failed").clone())
            .expect("it is text");
        let note = "[3 lines were dropped here: there was no room, and no waiting for it]\n";
        assert!(
            written == expected.clone() + "last\n" + note || written == expected + note + "last\n",
            "{written}"
        );
        assert!(!region.log.is_kept(), "nobody waits for a keeper that is gone");
        assert!(end.rest.ends_with(b"last\n") || end.rest.ends_with(note.as_bytes()));
    }

    #[test]
    fn a_console_that_fails_keeps_no_kernel_waiting_and_is_reported() {
        let (region, keeper, paper, bell) = kept(3 * LOG_BYTES);
        for _ in 0..10 * LOG_BYTES / 8 {
            write(&region.log, b"a line.\n", &bell);
        }
        let end = keeper.end();
        assert_eq!(end.error.map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
        assert_eq!(end.rest.len(), 10 * LOG_BYTES, "reports have the log all the same");
        assert!(paper.written.lock().expect("nobody failed").len() <= 3 * LOG_BYTES);
    }

    #[test]
    fn what_was_sent_over_the_serial_line_stands_first_and_half_a_line_is_not_torn_by_a_note() {
        let ram = Arc::new(GuestRam::new(8 << 20).expect("address space is there"));
        let region = || ram.shared::<ControlRegion>(CONTROL).expect("it is RAM");
        let (paper, bell) =
            (Paper { written: Arc::default(), room: 1 << 20 }, Bell::new().expect("an eventfd"));
        let mut serial = devices::Console::default();
        serial.write_all(b"early\n").expect("it takes all");
        region().log.write(b"half");
        region().log.drop_line();
        let keeper = Keeper::start(region(), serial, Box::new(paper.clone()), bell)
            .expect("there are threads");
        region().log.write(b" and half\n");
        let end = keeper.end();
        let note = "[1 line was dropped here: there was no room, and no waiting for it]\n";
        assert_eq!(String::from_utf8_lossy(&end.rest), format!("early\nhalf and half\n{note}"));
    }
}
