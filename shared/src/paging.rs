//! The bits of page-table entries that a CPU requires to be zero.
//!
//! A valid entry with a reserved bit set translates nothing; an access through it causes a page
//! fault with the RSVD bit set (Intel SDM volume 3, section 4.7; AMD APM volume 2, section 5.3).
//! Which bits these are depends on the CPU: on MAXPHYADDR, on support for 1 GiB pages, on its
//! vendor, and on EFER.NXE. The host takes them from the CPUID that it sets for the guest's CPUs,
//! and passes them to the kernel in
//! [`ControlRegion::paging`](crate::control::ControlRegion::paging).

use bitflags::bitflags;

use crate::pte::{Level, PG_FRAME, PG_PS_FRAME, Pte, PteFlags};

bitflags! {
    /// The features of a CPU that matter here, besides the width of its addresses.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PagingFeatures: u32 {
        /// EFER.NXE is set: bit 63 forbids execution and is not reserved.
        const NX = 1 << 8;
        /// The CPU supports 1 GiB pages.
        const PAGE1GB = 1 << 9;
        /// Bit 8 is reserved in entries of the root, as on AMD's CPUs. (Older manuals of theirs
        /// reserve it one level below, too; the CPUs ignore it there.)
        const ROOT_G_RESERVED = 1 << 10;
    }
}

/// The rules of a CPU, in a word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Paging(u32);

/// Most bits of a physical address in the architecture.
const PHYS_BITS_MAX: u32 = 52;
/// Fewest bits on any CPU with PAE.
const PHYS_BITS_MIN: u32 = 32;
/// The bits of a CPU that does not report their number.
const PHYS_BITS_SILENT: u32 = 36;

impl Paging {
    /// Rules that hold for every CPU on which the kernel runs: a bit that any CPU may use is not
    /// reserved.
    pub const ANY: Self =
        Self::new(PHYS_BITS_MAX, PagingFeatures::NX.union(PagingFeatures::PAGE1GB));

    /// The rules of a CPU with physical addresses of `phys_bits` bits, 32 to 52 (MAXPHYADDR).
    #[must_use]
    pub const fn new(phys_bits: u32, features: PagingFeatures) -> Self {
        let bits = if phys_bits > PHYS_BITS_MAX {
            PHYS_BITS_MAX
        } else if phys_bits < PHYS_BITS_MIN {
            PHYS_BITS_MIN
        } else {
            phys_bits
        };
        Self(bits | features.bits())
    }

    /// The rules that `word` encodes ([`Paging::word`]). 0, the value of memory that was never
    /// written, is [`Paging::ANY`].
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::ANY,
            word => Self::new(word & 0xff, PagingFeatures::from_bits_truncate(word)),
        }
    }

    /// The rules as a word, not 0: MAXPHYADDR in bits 0 to 7, then [`PagingFeatures`].
    #[must_use]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The rules of the CPU whose CPUID leaf `n` is `leaf(n)`: EAX, EBX, ECX, EDX. EFER.NXE is
    /// assumed to be set, because the kernel sets it before it turns paging on.
    #[must_use]
    pub fn of_cpuid(leaf: impl Fn(u32) -> [u32; 4]) -> Self {
        const PAGE1GB: u32 = 1 << 26;
        // EBX of "AuthenticAMD" and of "HygonGenuine".
        let vendors = [*b"Auth", *b"Hygo"].map(u32::from_le_bytes);
        let [last, ..] = leaf(0x8000_0000);
        let features = if last >= 0x8000_0001 { leaf(0x8000_0001)[3] } else { 0 };
        let phys_bits =
            if last >= 0x8000_0008 { leaf(0x8000_0008)[0] & 0xff } else { PHYS_BITS_SILENT };
        let mut known = PagingFeatures::NX;
        known.set(PagingFeatures::PAGE1GB, features & PAGE1GB != 0);
        known.set(PagingFeatures::ROOT_G_RESERVED, vendors.contains(&leaf(0)[1]));
        Self::new(phys_bits, known)
    }

    /// The same rules with EFER.NXE clear.
    #[must_use]
    pub const fn without_nx(self) -> Self {
        Self(self.0 & !PagingFeatures::NX.bits())
    }

    /// MAXPHYADDR.
    #[must_use]
    pub const fn phys_bits(self) -> u32 {
        self.0 & 0xff
    }

    const fn has(self, feature: PagingFeatures) -> bool {
        self.0 & feature.bits() != 0
    }

    /// The bits of `pte`, a valid entry of a table of `level`, that are set but must not be; 0 if
    /// the entry is valid for the CPU.
    #[must_use]
    #[inline]
    pub const fn reserved(self, level: Level, pte: Pte) -> u64 {
        let mut mask = PG_FRAME & !((1 << self.phys_bits()) - 1);
        if !self.has(PagingFeatures::NX) {
            mask |= PteFlags::NX.bits();
        }
        let root_g = if self.has(PagingFeatures::ROOT_G_RESERVED) { PteFlags::G.bits() } else { 0 };
        mask |= match level {
            Level::Pt => 0,
            // Bit 12 of a large page is its PAT bit.
            Level::Pd if pte.is_large() => PG_FRAME & !PG_PS_FRAME & !(1 << 12),
            Level::Pd => 0,
            Level::Pdpt if pte.is_large() && self.has(PagingFeatures::PAGE1GB) => {
                PG_FRAME & (level.span() - 1) & !(1 << 12)
            }
            Level::Pdpt if pte.is_large() => PteFlags::PS.bits(),
            Level::Pdpt => 0,
            Level::Pml4 => PteFlags::PS.bits() | root_g,
        };
        pte.bits() & mask
    }
}

impl core::fmt::Debug for Paging {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "Paging({} bits, {:?})",
            self.phys_bits(),
            PagingFeatures::from_bits_truncate(self.0)
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    const V: u64 = PteFlags::V.bits();
    const PS: u64 = PteFlags::PS.bits();

    fn bits(paging: Paging, level: Level, bits: u64) -> Vec<u32> {
        let wrong = paging.reserved(level, Pte::from_bits(bits));
        (0..64).filter(|bit| wrong & 1 << bit != 0).collect()
    }

    #[test]
    fn the_bits_that_are_reserved_are_those_of_the_manuals() {
        let intel = Paging::new(46, PagingFeatures::NX | PagingFeatures::PAGE1GB);
        let amd = Paging::new(48, PagingFeatures::NX | PagingFeatures::ROOT_G_RESERVED);
        let all = u64::MAX;
        let high = |from: u32| (from..52).collect::<Vec<_>>();
        let with = |low: &[u32], from: u32| [low.to_vec(), high(from)].concat();
        let from_13 = |end: u32| (13..end).collect::<Vec<_>>();
        assert_eq!(bits(intel, Level::Pt, all), high(46));
        assert_eq!(bits(intel, Level::Pd, all & !PS), high(46));
        assert_eq!(bits(intel, Level::Pd, all), with(&from_13(21), 46));
        assert_eq!(bits(intel, Level::Pdpt, all & !PS), high(46));
        assert_eq!(bits(intel, Level::Pdpt, all), with(&from_13(30), 46));
        assert_eq!(bits(intel, Level::Pml4, all), with(&[7], 46));
        assert_eq!(bits(amd, Level::Pml4, all), with(&[7, 8], 48));
        assert_eq!(bits(amd, Level::Pdpt, all), with(&[7], 48));
        assert_eq!(bits(amd, Level::Pdpt, all & !PS), high(48));
        assert_eq!(bits(amd, Level::Pd, all & !PS), high(48));
        assert_eq!(bits(intel.without_nx(), Level::Pt, V | 1 << 63), [63]);
        assert_eq!(bits(Paging::ANY, Level::Pt, all), []);
    }

    #[test]
    fn rules_survive_as_a_word_and_memory_that_nobody_wrote_to_reserves_least() {
        for phys_bits in 32..=52 {
            for features in (0..8).map(|set| PagingFeatures::from_bits_truncate(set << 8)) {
                let paging = Paging::new(phys_bits, features);
                assert_eq!(Paging::from_word(paging.word()), paging);
                assert_ne!(paging.word(), 0);
            }
        }
        assert_eq!(Paging::from_word(0), Paging::ANY);
        assert_eq!(Paging::from_word(0xff).phys_bits(), 52);
        assert_eq!(Paging::from_word(1).phys_bits(), 32);
    }

    #[test]
    fn the_rules_of_a_cpu_follow_from_its_cpuid() {
        let cpu = |vendor: [u8; 4], last: u32, features: u32, sizes: u32| {
            Paging::of_cpuid(move |leaf| match leaf {
                0 => [0, u32::from_le_bytes(vendor), 0, 0],
                0x8000_0000 => [last, 0, 0, 0],
                0x8000_0001 => [0, 0, 0, features],
                0x8000_0008 => [sizes, 0, 0, 0],
                _ => [0; 4],
            })
        };
        let intel = cpu(*b"Genu", 0x8000_0008, 1 << 26, 0x302e);
        assert_eq!(intel, Paging::new(46, PagingFeatures::NX | PagingFeatures::PAGE1GB));
        let amd = cpu(*b"Auth", 0x8000_001f, 0, 0x3030);
        assert_eq!(amd, Paging::new(48, PagingFeatures::NX | PagingFeatures::ROOT_G_RESERVED));
        assert_eq!(cpu(*b"Genu", 0x8000_0004, 0, 0xffff).phys_bits(), 36);
    }
}
