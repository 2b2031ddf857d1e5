//! The kernel's log: a byte ring that the guest writes without a VM exit.
//!
//! One writer at a time (the kernel serialises them), one reader. There are two ways to share it,
//! and the host chooses before the kernel begins:
//!
//! - **Nobody keeps the log.** The writer never waits: when the reader is slow, the oldest bytes
//!   are lost, and the reader can count them.
//! - **The host keeps all of it** ([`LogRing::keep`]): a thread of the host takes the written bytes
//!   and publishes how far it has read ([`LogRing::taken`]). A writer checks for room
//!   ([`LogRing::has_room`]) before it begins a line. A writer that owns no lock waits for room;
//!   one that must not wait drops the line and counts it ([`LogRing::drop_line`]). The keeper
//!   sleeps like a ring's consumer ([`Sleeper`]): after a write, the writer asks
//!   [`Sleeper::must_wake`], and rings the bell by a write to
//!   [`LOG_PORT`](crate::control::LOG_PORT). No writer waits for a keeper that has ended: a keeper
//!   announces its end as its last act.
//!
//! **Overtaking.** The writer counts each byte before it writes the next. A reader that has copied
//! bytes and then finds `written` of them counted knows that the writer was at most in the middle
//! of byte number `written`, which takes the place of the oldest byte: no byte younger than that
//! was overwritten before it was copied.

#[cfg(all(test, loom))]
mod loom;

use core::ops::Range;

use zerocopy::{FromBytes, KnownLayout};

use crate::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::control::Sleeper;
use crate::field::Field;

/// Capacity of the ring in bytes.
pub const LOG_BYTES: usize = 32 << 10;

/// Whether the host keeps the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Keeping {
    /// It does not: new bytes overwrite the oldest.
    Nothing = 0,
    /// It takes every byte.
    Everything = 1,
}

/// The ring. `N` is [`LOG_BYTES`] except in tests.
#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C)]
pub struct LogRing<const N: usize = LOG_BYTES> {
    /// Bytes ever written. Byte number `n` is at `n % N`.
    written: AtomicU64,
    /// Bytes that the keeper has taken; the host writes it.
    taken: AtomicU64,
    /// Lines that the kernel dropped for lack of room.
    dropped: AtomicU64,
    /// Not 0 while the host keeps the log; the host writes it.
    kept: AtomicU32,
    _line: [Field<u8>; 36],
    /// The keeper sleeps.
    pub keeper: Sleeper,
    bytes: [Field<u8>; N],
}

crate::describe!(LogRing as LogRing<LOG_BYTES> {
    written, taken, dropped, kept, _line, keeper, bytes
});

impl<const N: usize> LogRing<N> {
    const BYTES: u64 = N as u64;

    /// Has loom watch all of it.
    #[cfg(all(test, loom))]
    fn watch(&self) -> impl Iterator<Item = crate::atomic::watched::Watched> {
        let words =
            [self.written.watch(), self.taken.watch(), self.dropped.watch(), self.kept.watch()];
        words
            .into_iter()
            .chain([self.keeper.watch()])
            .chain(self.bytes.iter().map(Field::<u8>::watch))
    }

    /// The place of byte number `at`.
    #[expect(clippy::cast_possible_truncation, reason = "it is below N")]
    fn slot(&self, at: u64) -> &Field<u8> {
        &self.bytes[(at % Self::BYTES) as usize]
    }

    /// The oldest byte that is whole when `written` are counted: another one may be half-written.
    const fn oldest(written: u64) -> u64 {
        written.saturating_add(1).saturating_sub(Self::BYTES)
    }

    /// Appends `text`.
    pub fn write(&self, text: &[u8]) {
        let mut at = self.written.load(Ordering::Relaxed);
        for &byte in text {
            // A reader that sees this byte also sees the earlier ones counted.
            fence(Ordering::Release);
            self.slot(at).set(byte);
            at = at.wrapping_add(1);
            self.written.store(at, Ordering::Release);
        }
    }

    /// Whether `len` more bytes can be written without losing a byte that the host keeps. Only the
    /// writer calls it.
    #[must_use]
    pub fn has_room(&self, len: u64) -> bool {
        let end = self.written.load(Ordering::Relaxed).wrapping_add(len);
        // A reader must assume that the oldest byte of a full ring is being overwritten.
        !self.is_kept() || end.wrapping_sub(self.taken.load(Ordering::Acquire)) < Self::BYTES
    }

    /// Whether the host keeps all of the log, so that waiting for room makes sense.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire) != 0
    }

    /// Starts or stops the keeping of the log. Only the host calls it.
    pub fn keep(&self, keeping: Keeping) {
        self.kept.store(keeping as u32, Ordering::Release);
    }

    /// Records that the keeper has read all bytes below number `end`, so there is room for others.
    pub fn taken(&self, end: u64) {
        self.taken.store(end, Ordering::Release);
    }

    /// Counts a line that the writer drops. Only the writer calls it.
    pub fn drop_line(&self) {
        self.dropped.store(self.dropped.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Lines that were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Bytes ever written: the number of the next one.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Copies bytes from number `from` on to the beginning of `into`, as many as exist and fit, and
    /// returns their numbers. The range begins later if bytes were overwritten before they could be
    /// read. It is empty if there are no bytes, or if all that would have fit were overwritten; it
    /// then begins and ends at the number to continue from. The only assumption about the writer is
    /// that it writes in order.
    #[must_use]
    pub fn read(&self, from: u64, into: &mut [u8]) -> Range<u64> {
        let written = self.written();
        let start = from.max(Self::oldest(written)).min(written);
        let end = written.min(start.saturating_add(into.len() as u64));
        for (byte, at) in into.iter_mut().zip(start..end) {
            *byte = self.slot(at).get();
        }
        fence(Ordering::Acquire);
        let whole = Self::oldest(self.written.load(Ordering::Relaxed)).clamp(start, end);
        // Neither exceeds the length of `into`.
        let [lost, copied] =
            [whole - start, end - start].map(|count| usize::try_from(count).unwrap_or(into.len()));
        into.copy_within(lost..copied, 0);
        whole..end
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;

    use zerocopy::FromZeros;

    use super::*;

    fn ring() -> Box<LogRing> {
        Box::new(LogRing::new_zeroed())
    }

    #[test]
    fn what_is_read_is_what_was_written_under_its_number() {
        let ring = ring();
        let mut piece = [0; 4];
        assert_eq!(ring.read(0, &mut piece), 0..0);
        ring.write(b"abcdef");
        assert_eq!((ring.read(0, &mut piece), &piece), (0..4, b"abcd"));
        assert_eq!((ring.read(4, &mut piece), &piece[..2]), (4..6, &b"ef"[..]));
        assert_eq!(ring.read(6, &mut piece), 6..6);
    }

    #[test]
    fn a_slow_reader_goes_on_with_the_oldest_whole_byte() {
        let ring = ring();
        ring.write(&[b'x'; LOG_BYTES]);
        ring.write(b"yz");
        let mut piece = [0; LOG_BYTES + 1];
        let total = LOG_BYTES as u64 + 2;
        assert_eq!(ring.read(0, &mut piece), 3..total);
        assert_eq!(piece[LOG_BYTES - 4..], *b"xyz\0\0");
    }

    #[test]
    fn a_ring_that_is_kept_has_no_room_until_its_keeper_took_what_is_in_it() {
        let ring = ring();
        let all = LOG_BYTES as u64;
        assert!(ring.has_room(10 * all), "nobody keeps it");
        ring.keep(Keeping::Everything);
        assert!(ring.has_room(all - 1) && !ring.has_room(all));
        ring.write(&[b'x'; LOG_BYTES - 1]);
        assert!(ring.has_room(0) && !ring.has_room(1));
        let mut piece = [0; LOG_BYTES];
        assert_eq!(ring.read(0, &mut piece), 0..all - 1, "not one of them was lost");
        ring.taken(10);
        assert!(ring.has_room(10) && !ring.has_room(11));
        ring.keep(Keeping::Nothing);
        assert!(ring.has_room(all));
    }

    #[test]
    fn a_count_that_lies_ends_no_reader() {
        let ring = ring();
        let mut piece = [0; 64];
        for (count, from, read) in [
            (u64::MAX, 0, u64::MAX - LOG_BYTES as u64..u64::MAX - LOG_BYTES as u64 + 64),
            (u64::MAX, u64::MAX, u64::MAX..u64::MAX),
            (5, 70, 5..5),
        ] {
            ring.written.store(count, Ordering::Relaxed);
            assert_eq!(ring.read(from, &mut piece), read);
        }
    }
}
