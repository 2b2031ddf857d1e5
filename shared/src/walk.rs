//! The walk from a virtual to a physical address, as the hardware does it.
//!
//! The kernel's pmap, the simulated machine and the host's inspector all use this one walker. It is generic over how
//! an entry is read, so that each of them can say what an unreadable table means: a bug for the kernel, a finding
//! for the host, who trusts no address that it reads.

use crate::addr::{GuestPhys, GuestVirt};
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
}

impl<R: TableReader + ?Sized> TableReader for &R {
    type Error = R::Error;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, Self::Error> {
        (**self).entry(table, index)
    }
}

/// One step of a walk: the table looked into and the entry found there.
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
    /// What the whole path grants: `RW` and `U` where every level has them, `NX` where any has; all other bits of
    /// the last entry.
    pub flags: PteFlags,
}

/// A finished walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    steps: [Option<Step>; 4],
    /// What is mapped there, or `None` when the last step's entry is not valid.
    pub mapping: Option<Mapping>,
}

impl Walk {
    /// The steps from the root down; at least one.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.steps.iter().flatten()
    }

    /// The last step: the entry that maps the page, or the first that is not valid.
    #[must_use]
    pub fn last(&self) -> Step {
        *self.steps().next_back().expect("a walk has at least its root step")
    }
}

/// What an entry of a table does with the addresses below it.
enum Way {
    /// It maps them.
    Leaf,
    /// It leads to a table.
    Down(GuestPhys),
    /// Nothing.
    Nowhere,
}

fn way(level: Level, pte: Pte) -> Way {
    match level {
        _ if !pte.is_valid() => Way::Nowhere,
        Level::Pt => Way::Leaf,
        Level::Pd | Level::Pdpt if pte.is_large() => Way::Leaf,
        _ => Way::Down(pte.frame()),
    }
}

/// The table of `level` on the way from the root table `pml4` to `va`, and the index of the entry for `va` in it: where a
/// mapping of that size is, or would be made. `None` when a table above is missing or a larger page is in the way.
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
    for at in Level::TOP_DOWN {
        let index = at.index(va);
        if at == level {
            return Ok(Some((table, index)));
        }
        match way(at, reader.entry(table, index)?) {
            Way::Down(next) => table = next,
            Way::Leaf | Way::Nowhere => break,
        }
    }
    Ok(None)
}

/// Walks from the root table `pml4` to `va`. Non-canonical addresses map nothing, and their walk reads only the root.
///
/// # Errors
/// When a table on the way cannot be read.
pub fn walk<R: TableReader>(reader: &R, pml4: GuestPhys, va: GuestVirt) -> Result<Walk, R::Error> {
    let mut walk = Walk { steps: [None; 4], mapping: None };
    let mut table = pml4;
    let mut granted = PteFlags::RW | PteFlags::U;
    let mut nx = PteFlags::empty();
    for (step, level) in walk.steps.iter_mut().zip(Level::TOP_DOWN) {
        let index = level.index(va);
        let pte = reader.entry(table, index)?;
        *step = Some(Step { level, table, index, pte });
        if !va.is_canonical() {
            break;
        }
        granted &= pte.flags();
        nx |= pte.flags() & PteFlags::NX;
        match way(level, pte) {
            Way::Nowhere => break,
            Way::Down(next) => table = next,
            Way::Leaf => {
                let within = va.get() & (level.span() - 1);
                let base = pte.frame().get() & !(level.span() - 1);
                let own = pte.flags() - (PteFlags::RW | PteFlags::U | PteFlags::NX);
                let flags = own | granted | nx;
                walk.mapping = Some(Mapping { phys: GuestPhys::new(base | within), span: level.span(), flags });
                break;
            }
        }
    }
    Ok(walk)
}
