//! The kernel's log: its output on the serial line, and the content of its log ring.
//!
//! The guest's driver collects it between operations. If every line is wanted, a separate thread
//! collects it all the time ([`Keeper`]), and the kernel waits for that thread
//! ([`vmkern_abi::log`]).

mod keeper;

use std::io;

use vmkern_abi::log::{LOG_BYTES, LogRing};

pub(crate) use self::keeper::Keeper;
use crate::devices::Console;

/// The most bytes of the log that are kept until they are taken.
const KEPT: usize = 8 << 20;

/// The state of a log at its guest's end.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LogEnd {
    /// The bytes that were not taken yet.
    pub rest: Vec<u8>,
    /// Why it could not be written to the console completely.
    pub error: Option<io::Error>,
    /// Lines that the kernel dropped, because there was no room and the code that logged them could
    /// not wait.
    pub dropped: u64,
}

/// Moves the log out of the guest.
#[derive(Debug)]
pub(crate) enum Logs {
    /// From time to time.
    Collected(Collector),
    /// All the time, and all of it.
    Kept(Keeper),
}

impl Logs {
    /// Collects the content of the ring before the kernel overwrites it. Costs one load when there
    /// is nothing.
    pub(crate) fn collect(&mut self, ring: &LogRing) {
        if let Self::Collected(collector) = self
            && ring.written() != collector.next
        {
            collector.collect_pieces(ring);
        }
    }

    /// Collects the output on the serial line.
    pub(crate) fn collect_console(&mut self) {
        if let Self::Collected(collector) = self {
            collector.collected.append(&mut collector.console.take());
        }
    }

    /// Everything since the last call.
    pub(crate) fn take(&mut self, ring: &LogRing) -> Vec<u8> {
        self.collect(ring);
        self.collect_console();
        match self {
            Self::Collected(collector) => std::mem::take(&mut collector.collected),
            Self::Kept(keeper) => keeper.take(),
        }
    }

    /// Collects the rest. The guest has stopped.
    pub(crate) fn end(mut self, ring: &LogRing) -> LogEnd {
        let rest = self.take(ring);
        match self {
            Self::Collected(_) => LogEnd { rest, ..LogEnd::default() },
            Self::Kept(keeper) => {
                let mut end = keeper.end();
                end.rest.splice(..0, rest);
                end
            }
        }
    }
}

/// Collects the log until it is taken.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    console: Console,
    /// Number of the next byte to read from the ring.
    next: u64,
    collected: Vec<u8>,
}

impl Collector {
    pub(crate) fn new(console: Console) -> Self {
        Self { console, ..Self::default() }
    }

    /// Collects at most as much as the ring can hold, however fast the kernel writes. A note marks
    /// lost bytes.
    fn collect_pieces(&mut self, ring: &LogRing) {
        let mut piece = [0; 1024];
        for _ in 0..LOG_BYTES / piece.len() {
            let read = ring.read(self.next, &mut piece);
            let lost = read.start.saturating_sub(self.next);
            self.next = read.end;
            if lost > 0 {
                self.collected.extend(overwritten(lost).into_bytes());
            }
            if lost == 0 && read.is_empty() {
                break;
            }
            self.collected.extend(read.zip(piece).map(|(_, byte)| byte));
        }
        trim(&mut self.collected);
    }
}

fn overwritten(lost: u64) -> String {
    format!("[{lost} bytes of the log were overwritten]\n")
}

/// Keeps at most the newest [`KEPT`] bytes: a guest must not use up the host's memory.
fn trim(collected: &mut Vec<u8>) {
    if collected.len() > KEPT {
        let lost = collected.len() - KEPT / 2;
        let note = format!("[{lost} bytes of the log were not taken in time]\n");
        collected.splice(..lost, note.into_bytes());
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn a_slow_reader_is_told_how_much_it_lost() {
        let ring = Box::new(
            LogRing::read_from_bytes(&vec![0; size_of::<LogRing>()]).expect("zeros are a ring"),
        );
        let mut logs = Logs::Collected(Collector::new(Console::default()));
        ring.write(b"one\n");
        assert_eq!(logs.take(&ring), b"one\n");
        ring.write(&[b'x'; LOG_BYTES + 7]);
        let log = logs.take(&ring);
        // The oldest byte in the ring may be in the middle of being overwritten.
        let note = b"[8 bytes of the log were overwritten]\n";
        assert_eq!(&log[..note.len()], note);
        assert_eq!(log.len(), note.len() + LOG_BYTES - 1);
    }
}
