//! The kernel's log: what it sent over the serial line, and what it wrote into the ring.

use vmkern_abi::log::LogRing;

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
        let from = self.next;
        let (collected, mut count) = (&mut self.collected, 0);
        // Room is made for a note of what was lost, which is known only afterwards.
        let mark = collected.len();
        self.next = ring.read(from, |byte| {
            collected.push(byte);
            count += 1;
        });
        let lost = self.next.saturating_sub(from).saturating_sub(count);
        if lost > 0 {
            let note = format!("[{lost} bytes of the log were overwritten]\n");
            self.collected.splice(mark..mark, note.into_bytes());
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
    use vmkern_abi::log::LOG_BYTES;
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
        let note = b"[7 bytes of the log were overwritten]\n";
        assert_eq!(&log[..note.len()], note);
        assert_eq!(log.len(), note.len() + LOG_BYTES);
    }
}
