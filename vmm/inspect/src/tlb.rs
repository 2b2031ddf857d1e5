//! A view's cache of translations.
//!
//! The kernel's structures lie in the direct map, which consists of large pages: a list of 100,000
//! structures needs only a few hundred translations. Two direct-mapped tables hold them, one for
//! large pages in pieces of 2 MiB, one for small pages.

use std::cell::Cell;

use vmkern_abi::addr::{GuestPhys, GuestVirt, NBPDR, PAGE_SIZE};
use vmkern_abi::walk::Mapping;

/// Entries of each table.
const ENTRIES: usize = 512;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// The first address that it translates plus 1, or 0 for none.
    tag: u64,
    phys: GuestPhys,
}

/// Translations of pages of `SPAN` bytes.
struct Table<const SPAN: u64>(Vec<Cell<Entry>>);

impl<const SPAN: u64> Table<SPAN> {
    fn new() -> Self {
        Self(vec![Cell::default(); ENTRIES])
    }

    fn base(va: GuestVirt) -> u64 {
        va.get() & !(SPAN - 1)
    }

    fn slot(&self, va: GuestVirt) -> &Cell<Entry> {
        &self.0[usize::try_from(va.get() / SPAN % ENTRIES as u64).unwrap_or(0)]
    }

    fn lookup(&self, va: GuestVirt) -> Option<GuestPhys> {
        let entry = self.slot(va).get();
        (entry.tag == Self::base(va) + 1).then(|| entry.phys.add(va.get() & (SPAN - 1)))
    }

    fn insert(&self, va: GuestVirt, phys: GuestPhys) {
        let phys = GuestPhys::new(phys.get() & !(SPAN - 1));
        self.slot(va).set(Entry { tag: Self::base(va) + 1, phys });
    }
}

/// The translations of one view.
pub(super) struct Tlb {
    large: Table<NBPDR>,
    small: Table<PAGE_SIZE>,
}

impl Tlb {
    pub(super) fn new() -> Self {
        Self { large: Table::new(), small: Table::new() }
    }

    /// The physical address behind `va`, if it is known.
    pub(super) fn lookup(&self, va: GuestVirt) -> Option<GuestPhys> {
        self.large.lookup(va).or_else(|| self.small.lookup(va))
    }

    /// Adds the result of a walk to `va`.
    pub(super) fn insert(&self, va: GuestVirt, mapping: &Mapping) {
        if mapping.span >= NBPDR {
            self.large.insert(va, mapping.phys);
        } else {
            self.small.insert(va, mapping.phys);
        }
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::pte::PteFlags;

    use super::*;

    #[test]
    fn a_translation_holds_for_its_own_page_alone() {
        let tlb = Tlb::new();
        let at = |va: u64| tlb.lookup(GuestVirt::new(va)).map(GuestPhys::get);
        let insert = |va: u64, phys: u64, span: u64| {
            let mapping = Mapping { phys: GuestPhys::new(phys), span, flags: PteFlags::V };
            tlb.insert(GuestVirt::new(va), &mapping);
        };
        assert_eq!((at(0), at(u64::MAX)), (None, None));
        insert(0x1234, 0x9_9234, PAGE_SIZE);
        insert(0xffff_ff00_0020_0010, 0x4060_0010, 1 << 30);
        assert_eq!((at(0x1000), at(0x1fff)), (Some(0x9_9000), Some(0x9_9fff)));
        assert_eq!((at(0xfff), at(0x2000), at(0x1000 + 512 * 4096)), (None, None, None));
        assert_eq!(at(0xffff_ff00_003f_ffff), Some(0x407f_ffff));
        assert_eq!(at(0xffff_ff00_0040_0000), None);
        insert(0x1000 + 512 * 4096, 0x7000, PAGE_SIZE);
        assert_eq!((at(0x1000), at(0x1001 + 512 * 4096)), (None, Some(0x7001)));
    }
}
