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
        if !pte.is_valid() || !va.is_canonical() {
            break;
        }
        granted &= pte.flags();
        nx |= pte.flags() & PteFlags::NX;
        let is_leaf = match level {
            Level::Pt => true,
            Level::Pd | Level::Pdpt => pte.is_large(),
            Level::Pml4 => false,
        };
        if is_leaf {
            let within = va.get() & (level.span() - 1);
            let base = pte.frame().get() & !(level.span() - 1);
            let own = pte.flags() - (PteFlags::RW | PteFlags::U | PteFlags::NX);
            walk.mapping =
                Some(Mapping { phys: GuestPhys::new(base | within), span: level.span(), flags: own | granted | nx });
            break;
        }
        table = pte.frame();
    }
    Ok(walk)
}
