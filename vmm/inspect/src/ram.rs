//! A guest's physical memory seen from outside: where it lies, how large it can be, and its pages
//! in place.

use std::sync::atomic::AtomicU64;

use thiserror::Error;
use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};

/// The least memory of a guest, in bytes.
pub const MEMORY_MIN: u64 = 8 << 20;
/// The most memory of a guest, in bytes.
pub const MEMORY_MAX: u64 = 64 << 30;

/// Where the range for memory-mapped devices begins: RAM lies below.
pub const HOLE_START: u64 = 3 << 30;
/// Where that range ends: the rest of RAM begins here.
pub const HOLE_END: u64 = 4 << 30;

/// Words in a page.
pub const PAGE_WORDS: usize = (PAGE_SIZE / 8) as usize;

/// A page of physical memory, in place. Atomic, because the guest may write to it at any time.
pub type PageWords = [AtomicU64; PAGE_WORDS];

const _: () = assert!(size_of::<PageWords>() as u64 == PAGE_SIZE);

/// A part of guest RAM: `[start, start + size)` in physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First address.
    pub start: GuestPhys,
    /// Bytes.
    pub size: u64,
}

/// Where `size` bytes of RAM lie: below the hole, and above it what does not fit there.
pub fn ram_ranges(size: u64) -> impl Iterator<Item = RamRange> {
    let low = size.min(HOLE_START);
    [
        RamRange { start: GuestPhys::new(0), size: low },
        RamRange { start: GuestPhys::new(HOLE_END), size: size - low },
    ]
    .into_iter()
    .filter(|range| range.size > 0)
}

/// An access to physical memory that the guest does not have.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[error("physical memory [{start:#x}, +{len:#x}) is not the guest's RAM")]
pub struct NotRam {
    /// First address of the access.
    pub start: GuestPhys,
    /// Bytes of the access.
    pub len: u64,
}

crate::debug_as_printed!(NotRam);
