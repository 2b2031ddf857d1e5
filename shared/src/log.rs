//! The kernel's log: a byte ring that the guest writes without leaving the CPU.
//!
//! One writer at a time (the kernel serialises), one reader. The writer never waits: when the reader is slow the oldest
//! bytes are lost, and the reader can tell how many.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::atomic::{AtomicU64, Ordering};
use crate::field::Field;

/// Bytes that the ring holds.
pub const LOG_BYTES: usize = 32 << 10;

/// The ring.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LogRing {
    /// Bytes ever written. Byte number `n` stands at `n % LOG_BYTES`.
    written: AtomicU64,
    bytes: [Field<u8>; LOG_BYTES],
}

crate::describe!(LogRing { written, bytes });

impl LogRing {
    /// Where byte number `at` stands.
    fn slot(&self, at: u64) -> &Field<u8> {
        const BYTES: u64 = LOG_BYTES as u64;
        &self.bytes[(at % BYTES) as usize]
    }

    /// Appends `text`.
    pub fn write(&self, text: &[u8]) {
        let mut at = self.written.load(Ordering::Relaxed);
        for &byte in text {
            self.slot(at).set(byte);
            at = at.wrapping_add(1);
        }
        self.written.store(at, Ordering::Release);
    }

    /// Hands each byte from number `from` on to `sink` and returns the number of the next one to read. Bytes that
    /// were overwritten meanwhile are skipped.
    pub fn read(&self, from: u64, mut sink: impl FnMut(u8)) -> u64 {
        let written = self.written.load(Ordering::Acquire);
        let kept = written.saturating_sub(LOG_BYTES as u64);
        let start = if from > written { written } else { from.max(kept) };
        for at in start..written {
            sink(self.slot(at).get());
        }
        written
    }
}
