//! The walk from a virtual to a physical address, as in hardware.
//!
//! The kernel's pmap, the simulated machine and the host's inspector all use this one walker. It is
//! generic over how an entry is read, so each of them decides what an unreadable table means: a bug
//! for the kernel, a finding for the host, which trusts no address that it reads. The reader also
//! states the rules of its CPU for entries: an entry with a reserved bit set translates nothing, as
//! in hardware.

use crate::addr::{GuestPhys, GuestVirt};
use crate::paging::Paging;
use crate::pte::{Level, Pte, PteFlags};

/// Access to page-table pages by physical address.
pub trait TableReader {
    /// Why an entry could not be read.
    type Error;

    /// Entry `index` (0 to 511) of the 4 KiB table at `table`.
    ///
    /// # Errors
    /// When `table` is not memory of the guest.
    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, Self::Error>;

    /// The rules for entries of the CPU that uses the tables.
    fn paging(&self) -> Paging;
}

impl<R: TableReader + ?Sized> TableReader for &R {
    type Error = R::Error;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, Self::Error> {
        (**self).entry(table, index)
    }

    fn paging(&self) -> Paging {
        (**self).paging()
    }
}

/// One step of a walk: the table that was read and the entry found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The level of the table.
    pub level: Level,
    /// The table.
    pub table: GuestPhys,
    /// The entry's index in it.
    pub index: usize,
    /// The entry.
    pub pte: Pte,
}

/// A mapping found at the end of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The physical address behind the virtual one, offset included.
    pub phys: GuestPhys,
    /// Bytes that the last entry maps: 4 KiB, 2 MiB or 1 GiB.
    pub span: u64,
    /// The rights of the whole path: `RW` and `U` if every level has them, `NX` if any level has
    /// it, and all other bits of the last entry.
    pub flags: PteFlags,
}

/// A finished walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    steps: [Option<Step>; 4],
    /// The mapping there, or `None` when the last step's entry is not valid or is refused.
    pub mapping: Option<Mapping>,
    /// The bits that are set in the last step's valid entry but must not be: the CPU faults with
    /// "reserved bit set". 0 otherwise.
    pub reserved: u64,
}

impl Walk {
    /// The steps from the root down; at least one, unless the root itself could not be read.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.steps.iter().flatten()
    }

    /// The last step: the entry that maps the page, or the first that does not lead on.
    ///
    /// # Panics
    /// When the root could not be read ([`walk_as_far`]).
    #[must_use]
    pub fn last(&self) -> Step {
        *self.steps().next_back().expect("a walk has at least its root step")
    }
}

/// The effect of an entry of a table on the addresses below it.
enum Way {
    /// It maps them.
    Leaf,
    /// It points to a table.
    Down(GuestPhys),
    /// It is not valid.
    Nowhere,
    /// The CPU refuses it, for these bits.
    Reserved(u64),
}

fn way(paging: Paging, level: Level, pte: Pte) -> Way {
    if !pte.is_valid() {
        return Way::Nowhere;
    }
    let reserved = paging.reserved(level, pte);
    match level {
        _ if reserved != 0 => Way::Reserved(reserved),
        Level::Pt => Way::Leaf,
        Level::Pd | Level::Pdpt if pte.is_large() => Way::Leaf,
        _ => Way::Down(pte.frame()),
    }
}

/// The table of `level` on the way from the root table `pml4` to `va`, and the index of the entry
/// for `va` in it: where a mapping of that size is, or would be. `None` when a table above is
/// missing, a larger page is in the way, or an entry above is refused.
///
/// # Errors
/// When a table above cannot be read.
#[inline]
pub fn find_entry<R: TableReader>(
    reader: &R,
    pml4: GuestPhys,
    va: GuestVirt,
    level: Level,
) -> Result<Option<(GuestPhys, usize)>, R::Error> {
    let mut table = pml4;
    let paging = reader.paging();
    for at in Level::TOP_DOWN {
        let index = at.index(va);
        if at == level {
            return Ok(Some((table, index)));
        }
        match way(paging, at, reader.entry(table, index)?) {
            Way::Down(next) => table = next,
            Way::Leaf | Way::Nowhere | Way::Reserved(_) => break,
        }
    }
    Ok(None)
}

/// Walks from the root table `pml4` to `va`. Non-canonical addresses map nothing, and their walk
/// reads only the root.
///
/// # Errors
/// When a table on the way cannot be read.
pub fn walk<R: TableReader>(reader: &R, pml4: GuestPhys, va: GuestVirt) -> Result<Walk, R::Error> {
    match walk_as_far(reader, pml4, va) {
        (walk, None) => Ok(walk),
        (_, Some(error)) => Err(error),
    }
}

/// [`walk`], as far as the tables can be read: the steps before the table that could not be, and
/// why it could not.
pub fn walk_as_far<R: TableReader>(
    reader: &R,
    pml4: GuestPhys,
    va: GuestVirt,
) -> (Walk, Option<R::Error>) {
    let mut walk = Walk { steps: [None; 4], mapping: None, reserved: 0 };
    let paging = reader.paging();
    let mut table = pml4;
    let mut granted = PteFlags::RW | PteFlags::U;
    let mut nx = PteFlags::empty();
    for (step, level) in walk.steps.iter_mut().zip(Level::TOP_DOWN) {
        // 1. The entry at this level.
        let index = level.index(va);
        let pte = match reader.entry(table, index) {
            Ok(pte) => pte,
            Err(error) => return (walk, Some(error)),
        };
        *step = Some(Step { level, table, index, pte });
        if !va.is_canonical() {
            break;
        }
        // 2. Every level must allow writes and user access; one is enough to forbid execution.
        granted &= pte.flags();
        nx |= pte.flags() & PteFlags::NX;
        // 3. Where it leads.
        match way(paging, level, pte) {
            Way::Nowhere => break,
            Way::Reserved(bits) => {
                walk.reserved = bits;
                break;
            }
            Way::Down(next) => table = next,
            Way::Leaf => {
                let within = va.get() & (level.span() - 1);
                let base = pte.frame().get() & !(level.span() - 1);
                let own = pte.flags() - (PteFlags::RW | PteFlags::U | PteFlags::NX);
                let flags = own | granted | nx;
                walk.mapping = Some(Mapping {
                    phys: GuestPhys::new(base | within),
                    span: level.span(),
                    flags,
                });
                break;
            }
        }
    }
    (walk, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::PagingFeatures;

    /// A root with one path below it, by the level of each table; what is not there cannot be read.
    struct Path<'a>(&'a [Pte]);

    impl TableReader for Path<'_> {
        type Error = GuestPhys;

        fn entry(&self, table: GuestPhys, _: usize) -> Result<Pte, GuestPhys> {
            let level = usize::try_from(table.pfn()).map_err(|_| table)?;
            self.0.get(level).copied().ok_or(table)
        }

        fn paging(&self) -> Paging {
            Paging::new(40, PagingFeatures::NX | PagingFeatures::PAGE1GB)
        }
    }

    fn to(pfn: u64, bits: u64) -> Pte {
        Pte::from_bits(GuestPhys::from_pfn(pfn).get() | PteFlags::V.bits() | bits)
    }

    fn go(path: &[Pte]) -> (Walk, Option<GuestPhys>) {
        walk_as_far(&Path(path), GuestPhys::new(0), GuestVirt::new(0x1234))
    }

    #[test]
    fn an_entry_with_a_reserved_bit_translates_nothing_at_any_level() {
        let good = [to(1, 0), to(2, 0), to(3, 0), to(7, 0)];
        let phys = |walk: Walk| walk.mapping.map(|mapping| mapping.phys.get());
        assert_eq!(phys(go(&good).0), Some(0x7234));
        for level in 0..4 {
            for bit in 40..52 {
                let mut path = good;
                path[level] = Pte::from_bits(path[level].bits() | 1 << bit);
                let (walk, error) = go(&path);
                assert_eq!(
                    (walk.mapping, walk.reserved, error),
                    (None, 1 << bit, None),
                    "level {level}, bit {bit}"
                );
                assert_eq!(walk.steps().count(), level + 1);
                let below = Level::TOP_DOWN[level + 1..].iter();
                let root = GuestPhys::new(0);
                let found = |at| find_entry(&Path(&path), root, GuestVirt::new(0), at);
                assert!(below.clone().all(|&at| found(at) == Ok(None)));
            }
        }
    }

    #[test]
    fn a_large_page_has_no_bits_between_its_flags_and_its_address() {
        let large = PteFlags::PS.bits();
        let (walk, _) = go(&[to(1, 0), to(2, 0), Pte::from_bits(0x20_0000 | 1 << 12 | large | 1)]);
        assert_eq!(
            walk.mapping.map(|mapping| mapping.phys.get()),
            Some(0x20_1234),
            "bit 12 is the PAT bit"
        );
        for bit in 13..21 {
            let (walk, _) =
                go(&[to(1, 0), to(2, 0), Pte::from_bits(0x20_0000 | 1 << bit | large | 1)]);
            assert_eq!((walk.mapping, walk.reserved), (None, 1 << bit));
        }
        for bit in 13..30 {
            let (walk, _) = go(&[to(1, 0), Pte::from_bits(0x4000_0000 | 1 << bit | large | 1)]);
            assert_eq!((walk.mapping, walk.reserved), (None, 1 << bit));
        }
        assert_eq!(go(&[to(1, large)]).0.reserved, large);
    }

    #[test]
    fn what_lies_above_a_table_that_cannot_be_read_is_told() {
        let wild = to(1 << 20, 0);
        let (walk, error) = go(&[to(1, 0), wild]);
        assert_eq!((walk.steps().count(), walk.last().pte, error), (2, wild, Some(wild.frame())));
        assert_eq!(walk.mapping, None);
        assert_eq!(go(&[]).0.steps().count(), 0);
    }
}
