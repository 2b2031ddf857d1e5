//! The x86_64 page-table entry (Intel SDM volume 3, section 5.5; AMD APM volume 2, section 5.3).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{GuestPhys, GuestVirt};

/// Entries in one 4 KiB table (FreeBSD's `NPTEPG`).
pub const NPTEPG: usize = 512;

/// Bits 12 to 51: the physical page (FreeBSD's `PG_FRAME`).
pub const PG_FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bits 21 to 51: the physical 2 MiB page (FreeBSD's `PG_PS_FRAME`).
pub const PG_PS_FRAME: u64 = 0x000f_ffff_ffe0_0000;

bitflags! {
    /// Flag bits of an entry, with FreeBSD's names.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PteFlags: u64 {
        /// Valid.
        const V = 1 << 0;
        /// Writable.
        const RW = 1 << 1;
        /// Accessible at CPL3.
        const U = 1 << 2;
        /// Write-through.
        const PWT = 1 << 3;
        /// Caching disabled.
        const PCD = 1 << 4;
        /// Accessed.
        const A = 1 << 5;
        /// Modified (the SDM's "dirty").
        const M = 1 << 6;
        /// A 2 MiB page in a page directory; PAT in a page table.
        const PS = 1 << 7;
        /// Global: survives a reload of CR3.
        const G = 1 << 8;
        /// Wired (available bit 1).
        const W = 1 << 9;
        /// Managed: a pv entry exists (available bit 2).
        const MANAGED = 1 << 10;
        /// Made by `pmap_kenter` or `pmap_qenter`: not counted as resident (available bit 3).
        const KENTER = 1 << 11;
        /// Execution disabled.
        const NX = 1 << 63;
    }
}

/// One entry of any level.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Pte(u64);

impl Pte {
    /// The entry that maps nothing.
    pub const EMPTY: Self = Self(0);

    /// An entry for the page or table at `frame` (page aligned).
    #[must_use]
    pub const fn new(frame: GuestPhys, flags: PteFlags) -> Self {
        Self((frame.get() & PG_FRAME) | flags.bits())
    }

    /// The entry with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// All bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The flag bits, without the unnamed ones.
    #[must_use]
    pub const fn flags(self) -> PteFlags {
        PteFlags::from_bits_truncate(self.0)
    }

    /// The 4 KiB page or the next table.
    #[must_use]
    pub const fn frame(self) -> GuestPhys {
        GuestPhys::new(self.0 & PG_FRAME)
    }

    /// Whether the entry maps something.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & PteFlags::V.bits() != 0
    }

    /// Whether a page-directory entry maps a 2 MiB page itself.
    #[must_use]
    pub const fn is_large(self) -> bool {
        self.0 & PteFlags::PS.bits() != 0
    }
}

impl core::fmt::Debug for Pte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Pte({} {:?})", self.frame(), self.flags())
    }
}

impl crate::field::Word for Pte {
    type Atomic = crate::atomic::AtomicU64;

    #[inline]
    fn load(cell: &Self::Atomic) -> Self {
        Self(u64::load(cell))
    }

    #[inline]
    fn store(cell: &Self::Atomic, value: Self) {
        u64::store(cell, value.0);
    }
}

/// A level of the page tables, by the name of the table that holds the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Page table: 4 KiB an entry.
    Pt = 1,
    /// Page directory: 2 MiB an entry.
    Pd = 2,
    /// Page-directory-pointer table: 1 GiB an entry.
    Pdpt = 3,
    /// Root: 512 GiB an entry.
    Pml4 = 4,
}

impl Level {
    /// From the root down.
    pub const TOP_DOWN: [Self; 4] = [Self::Pml4, Self::Pdpt, Self::Pd, Self::Pt];

    /// Base-2 logarithm of the bytes that one entry of this level maps.
    #[must_use]
    pub const fn shift(self) -> u32 {
        12 + 9 * (self as u32 - 1)
    }

    /// Bytes that one entry of this level maps.
    #[must_use]
    pub const fn span(self) -> u64 {
        1 << self.shift()
    }

    /// The index of the entry for `va` in a table of this level, 0 to 511.
    #[must_use]
    pub const fn index(self, va: GuestVirt) -> usize {
        ((va.get() >> self.shift()) & 0x1ff) as usize
    }
}
