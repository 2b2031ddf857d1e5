//! The kernel's log: what it sent over the serial line, and what it wrote into the ring.

use vmkern_abi::log::{LOG_BYTES, LogRing};

use crate::devices::Console;

/// Bytes of the log that are kept for whoever takes it.
const KEPT: usize = 8 << 20;

/// Collects the log until somebody takes it.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    console: Console,
    /// Number of the next byte to read from the ring.
    next: u64,
    collected: Vec<u8>,
}

impl Logs {
    pub(crate) fn new(console: Console) -> Self {
        Self { console, ..Self::default() }
    }

    /// Moves on what the ring has, before the kernel overwrites it. Costs one load when there is nothing.
    pub(crate) fn collect(&mut self, ring: &LogRing) {
        if ring.written() != self.next {
            self.collect_pieces(ring);
        }
    }

    /// Moves on at most what the ring can hold, however fast the kernel writes. Where bytes were lost there is a note.
    fn collect_pieces(&mut self, ring: &LogRing) {
        let mut piece = [0; 1024];
        for _ in 0..LOG_BYTES / piece.len() {
            let read = ring.read(self.next, &mut piece);
            let lost = read.start.saturating_sub(self.next);
            self.next = read.end;
            if lost > 0 {
                self.collected.extend(format!("[{lost} bytes of the log were overwritten]\n").into_bytes());
            }
            if lost == 0 && read.is_empty() {
                break;
            }
            self.collected.extend(read.zip(piece).map(|(_, byte)| byte));
        }
        self.trim();
    }

    /// Keeps the newest [`KEPT`] bytes at most: a guest must not eat the host's memory.
    fn trim(&mut self) {
        if self.collected.len() > KEPT {
            let lost = self.collected.len() - KEPT / 2;
            let note = format!("[{lost} bytes of the log were not taken in time]\n");
            self.collected.splice(..lost, note.into_bytes());
        }
    }

    /// Moves on what came over the serial line.
    pub(crate) fn collect_console(&mut self) {
        self.collected.append(&mut self.console.take());
    }

    /// Everything since the last call.
    pub(crate) fn take(&mut self, ring: &LogRing) -> Vec<u8> {
        self.collect(ring);
        self.collect_console();
        std::mem::take(&mut self.collected)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn a_slow_reader_is_told_how_much_it_lost() {
        let ring = Box::new(LogRing::read_from_bytes(&vec![0; size_of::<LogRing>()]).expect("zeros are a ring"));
        let mut logs = Logs::new(Console::default());
        ring.write(b"one\n");
        assert_eq!(logs.take(&ring), b"one\n");
        ring.write(&[b'x'; LOG_BYTES + 7]);
        let log = logs.take(&ring);
        // The oldest byte in the ring may be the one that is being overwritten.
        let note = b"[8 bytes of the log were overwritten]\n";
        assert_eq!(&log[..note.len()], note);
        assert_eq!(log.len(), note.len() + LOG_BYTES - 1);
    }
}
