//! Numbers between addresses (`u64`) and lengths in memory (`usize`), which have the same width
//! here.

const _: () = assert!(usize::BITS == u64::BITS);

/// The same number.
#[expect(clippy::cast_possible_truncation, reason = "both types have 64 bits")]
pub const fn to_usize(n: u64) -> usize {
    n as usize
}
