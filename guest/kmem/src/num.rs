//! Conversions between addresses (`u64`) and lengths in memory (`usize`), which have the same width
//! here, and to numbers that a structure stores in fewer bits.

const _: () = assert!(usize::BITS == u64::BITS);

/// The same number.
#[expect(clippy::cast_possible_truncation, reason = "both types have 64 bits")]
pub const fn to_usize(n: u64) -> usize {
    n as usize
}

/// The same number, which has at most 32 bits; a larger one would become the largest 32-bit number.
pub fn to_u32(n: impl TryInto<u32>) -> u32 {
    n.try_into().unwrap_or(u32::MAX)
}

/// The same number, which has at most 16 bits; a larger one would become the largest 16-bit number.
pub fn to_u16(n: impl TryInto<u16>) -> u16 {
    n.try_into().unwrap_or(u16::MAX)
}
