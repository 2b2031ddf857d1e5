//! Reading, writing, filling and verifying memory by virtual address, exact to the byte.

use vmkern_abi::addr::{GuestVirt, PAGE_MASK, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, Outcome};
use vmkern_abi::field::Field;

use crate::num::to_usize;

/// The kind of access that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Only reads follow.
    Read,
    /// Writes follow, and perhaps reads.
    Write,
}

/// The kernel's own view of memory: through the page tables, faults included.
pub trait Access {
    /// `count` words from `start`, a multiple of 8; all in one page.
    fn words(&self, start: GuestVirt, count: usize, intent: Intent) -> &[Field<u64>];

    /// The word at `va`, a multiple of 8, or `None` if a read of it causes a fault that cannot be
    /// resolved.
    fn probe(&self, va: GuestVirt) -> Option<u64>;

    /// `count` bytes from `start`; all in one page.
    fn bytes(&self, start: GuestVirt, count: usize, intent: Intent) -> &[Field<u8>];
}

/// A part of a range that lies in one page: whole aligned words, or part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Words { start: u64, count: usize },
    Part { start: u64, count: usize },
}

/// The pieces of `[start, end)`, ascending.
struct Pieces {
    start: u64,
    end: u64,
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let Self { start, end } = *self;
        if start >= end {
            return None;
        }
        let (piece, len) = if start.is_multiple_of(8) && end - start >= 8 {
            let in_page = PAGE_SIZE - (start & PAGE_MASK);
            let len = in_page.min((end - start) & !7);
            (Piece::Words { start, count: to_usize(len / 8) }, len)
        } else {
            let len = (8 - start % 8).min(end - start);
            (Piece::Part { start, count: to_usize(len) }, len)
        };
        self.start = start + len;
        Some(piece)
    }
}

/// The outcome for a range that reaches the end of the address space, or wraps around it: no map of
/// the kernel does.
const WRAPS: Outcome = Outcome::Error(KernReturn::InvalidAddress);

fn pieces(addr: GuestVirt, size: u64) -> Result<Pieces, Outcome> {
    match addr.checked_add(size) {
        Some(end) => Ok(Pieces { start: addr.get(), end: end.get() }),
        None => Err(WRAPS),
    }
}

/// The 8 bytes at `addr`: one access if it is aligned, otherwise byte by byte, and past the end of
/// the address space from address 0 on.
pub fn read<A: Access>(access: &A, addr: GuestVirt) -> u64 {
    if addr.get().is_multiple_of(8) {
        return access.words(addr, 1, Intent::Read)[0].get();
    }
    u64::from_le_bytes(core::array::from_fn(|i| {
        access.bytes(GuestVirt::new(addr.get().wrapping_add(i as u64)), 1, Intent::Read)[0].get()
    }))
}

/// Writes the 8 bytes at `addr`, as [`read`] reads them.
pub fn write<A: Access>(access: &A, addr: GuestVirt, value: u64) {
    if addr.get().is_multiple_of(8) {
        access.words(addr, 1, Intent::Write)[0].set(value);
        return;
    }
    for (i, byte) in (0..).zip(value.to_le_bytes()) {
        access.bytes(GuestVirt::new(addr.get().wrapping_add(i)), 1, Intent::Write)[0].set(byte);
    }
}

/// Writes one byte of each page of the range, with the value that is already there.
pub fn touch<A: Access>(access: &A, addr: GuestVirt, size: u64) -> Outcome {
    let Some(end) = addr.checked_add(size) else { return WRAPS };
    let mut at = addr;
    while at < end {
        let byte = &access.bytes(at, 1, Intent::Write)[0];
        byte.set(byte.get());
        match at.page().checked_add(PAGE_SIZE) {
            Some(next) => at = next,
            None => break,
        }
    }
    Outcome::Ok
}

/// Fills the range with the words that `word` returns for addresses that are multiples of 8.
pub fn fill<A: Access>(
    access: &A,
    addr: GuestVirt,
    size: u64,
    word: impl Fn(u64) -> u64,
) -> Outcome {
    let pieces = match pieces(addr, size) {
        Ok(pieces) => pieces,
        Err(outcome) => return outcome,
    };
    for piece in pieces {
        match piece {
            Piece::Words { start, count } => {
                let fields = access.words(GuestVirt::new(start), count, Intent::Write);
                for (field, at) in fields.iter().zip((start..).step_by(8)) {
                    field.set(word(at));
                }
            }
            Piece::Part { start, count } => {
                let wanted = part(word(start & !7), start, count).to_le_bytes();
                for (field, byte) in
                    access.bytes(GuestVirt::new(start), count, Intent::Write).iter().zip(wanted)
                {
                    field.set(byte);
                }
            }
        }
    }
    Outcome::Ok
}

/// Checks that the range holds what [`fill`] writes: returns [`Outcome::Ok`] or the first
/// [`Outcome::Mismatch`].
pub fn verify<A: Access>(
    access: &A,
    addr: GuestVirt,
    size: u64,
    word: impl Fn(u64) -> u64,
) -> Outcome {
    let pieces = match pieces(addr, size) {
        Ok(pieces) => pieces,
        Err(outcome) => return outcome,
    };
    for piece in pieces {
        match piece {
            // 1. Whole words, which are most of a range.
            Piece::Words { start, count } => {
                let fields = access.words(GuestVirt::new(start), count, Intent::Read);
                for (field, at) in fields.iter().zip((start..).step_by(8)) {
                    let (got, want) = (field.get(), word(at));
                    if got != want {
                        return Outcome::Mismatch { addr: GuestVirt::new(at), got, want };
                    }
                }
            }
            // 2. Part of a word at either end: its bytes against those of the wanted word.
            Piece::Part { start, count } => {
                let mut got = [0; 8];
                for (byte, field) in
                    got.iter_mut().zip(access.bytes(GuestVirt::new(start), count, Intent::Read))
                {
                    *byte = field.get();
                }
                let (got, want) = (u64::from_le_bytes(got), part(word(start & !7), start, count));
                if got != want {
                    return Outcome::Mismatch { addr: GuestVirt::new(start), got, want };
                }
            }
        }
    }
    Outcome::Ok
}

/// The `count` bytes from address `start` on, taken from the word that contains them, low bytes
/// first.
const fn part(word: u64, start: u64, count: usize) -> u64 {
    let shifted = word >> (8 * (start % 8));
    if count >= 8 { shifted } else { shifted & ((1 << (8 * count)) - 1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_cover_a_range_once_within_words_and_pages(
            start in 0u64..20_000,
            size in 0u64..20_000,
        ) {
            let mut at = start;
            for piece in (Pieces { start, end: start + size }) {
                let (from, len) = match piece {
                    Piece::Words { start, count } => {
                        prop_assert!(start.is_multiple_of(8) && count > 0);
                        (start, count as u64 * 8)
                    }
                    Piece::Part { start, count } => {
                        prop_assert!(count > 0 && count < 8);
                        prop_assert_eq!(start / 8, (start + count as u64 - 1) / 8);
                        (start, count as u64)
                    }
                };
                prop_assert_eq!(from, at);
                prop_assert_eq!(from / PAGE_SIZE, (from + len - 1) / PAGE_SIZE);
                at += len;
            }
            prop_assert_eq!(at, start + size);
        }
    }
}
