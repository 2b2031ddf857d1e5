//! Every mapping of a range, from the page tables.
//!
//! One pass over the tables, in place, each read once. Tables that a damaged guest has tied into a knot are entered a few
//! times and then passed over, so that the work is bounded by the size of memory.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::pte::{Level, NPTEPG, Pte, PteFlags};

use super::InspectError;
use super::source::PageWords;
use super::view::View;

/// How often a table may be entered. A sound one is entered once, or a few times where parts of the address space share
/// it.
const VISITS_MAX: u32 = 4;
/// Most errors that are told.
const ERRORS_MAX: u32 = 64;

/// An entry that maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First address that it maps.
    pub va: GuestVirt,
    /// Bytes that it maps: 4 KiB, 2 MiB or 1 GiB.
    pub span: u64,
    /// The physical address behind `va`.
    pub phys: GuestPhys,
    /// What the whole path grants, and the entry's own other flags.
    pub flags: PteFlags,
    /// Where the entry lies.
    pub at: GuestPhys,
}

impl Leaf {
    /// The last address that it maps.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.va.get() | (self.span - 1)
    }
}

/// A table on the way down.
struct Table<'a> {
    level: Level,
    at: GuestPhys,
    words: &'a PageWords,
    /// The next entry to look at.
    index: usize,
    /// The address that entry 0 maps.
    base: u64,
    granted: PteFlags,
}

/// The mappings between two addresses, both inclusive, in ascending order, and the errors met on the way.
pub struct Leaves<'v, 'a> {
    view: &'v View<'a>,
    first: u64,
    last: u64,
    stack: Vec<Table<'a>>,
    visits: HashMap<GuestPhys, u32>,
    tables: [u64; 4],
    errors: u32,
}

impl<'v, 'a> Leaves<'v, 'a> {
    /// The mappings that touch an address from `first` to `last`.
    #[must_use]
    pub fn new(view: &'v View<'a>, first: GuestVirt, last: GuestVirt) -> Self {
        Self {
            view,
            first: first.get(),
            last: last.get(),
            stack: Vec::new(),
            visits: HashMap::new(),
            tables: [0; 4],
            errors: 0,
        }
    }

    /// All mappings.
    #[must_use]
    pub fn all(view: &'v View<'a>) -> Self {
        Self::new(view, GuestVirt::new(0), GuestVirt::new(u64::MAX))
    }

    /// Tables looked into so far, by level: PT, PD, PDPT, PML4.
    #[must_use]
    pub fn tables(&self) -> [u64; 4] {
        self.tables
    }

    /// The tables looked into so far, in no order.
    pub fn table_pages(&self) -> impl Iterator<Item = GuestPhys> {
        self.visits.keys().copied()
    }

    fn enter(&mut self, level: Level, at: GuestPhys, base: u64, granted: PteFlags) -> Result<(), InspectError> {
        let count = self.visits.entry(at).or_default();
        *count += 1;
        if *count > VISITS_MAX {
            let problem = format!("the {} at {at} is used again and again", name(level));
            return Err(InspectError::damaged("page table", GuestVirt::new(base), problem));
        }
        let words = self.view.table(at)?;
        if *count == 1 {
            self.tables[level as usize - 1] += 1;
        }
        let index = match self.first.checked_sub(base) {
            Some(below) => usize::try_from(below >> level.shift()).unwrap_or(NPTEPG).min(NPTEPG),
            None => 0,
        };
        // The two halves of the address space lie on either side of a gap.
        let index = if level == Level::Pml4 { level.index(GuestVirt::new(self.first)) } else { index };
        self.stack.push(Table { level, at, words, index, base, granted });
        Ok(())
    }

    fn tell(&mut self, error: InspectError) -> Option<<Self as Iterator>::Item> {
        self.errors += 1;
        (self.errors <= ERRORS_MAX).then_some(Err(error))
    }
}

impl Iterator for Leaves<'_, '_> {
    type Item = Result<Leaf, InspectError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.visits.is_empty() {
            let granted = PteFlags::RW | PteFlags::U;
            if let Err(error) = self.enter(Level::Pml4, self.view.pml4().page(), 0, granted) {
                return Some(Err(error));
            }
        }
        while let Some(table) = self.stack.last_mut() {
            let (level, index) = (table.level, table.index);
            if index >= NPTEPG {
                self.stack.pop();
                continue;
            }
            table.index += 1;
            let mut base = table.base + ((index as u64) << level.shift());
            if level == Level::Pml4 && index >= NPTEPG / 2 {
                base |= 0xffff << 48;
            }
            if base > self.last {
                self.stack.pop();
                continue;
            }
            let pte = Pte::from_bits(table.words[index].load(Ordering::Relaxed));
            if !pte.is_valid() {
                continue;
            }
            let flags = pte.flags();
            let inherited = PteFlags::RW | PteFlags::U;
            let granted = (table.granted & flags & inherited) | ((table.granted | flags) & PteFlags::NX);
            let is_leaf = level == Level::Pt || (level != Level::Pml4 && pte.is_large());
            if is_leaf {
                let phys = GuestPhys::new(pte.frame().get() & !(level.span() - 1));
                let own = flags - (inherited | PteFlags::NX);
                let at = GuestPhys::new(table.at.get() + index as u64 * 8);
                return Some(Ok(Leaf { va: GuestVirt::new(base), span: level.span(), phys, flags: own | granted, at }));
            }
            let below = Level::TOP_DOWN[5 - level as usize];
            if let Err(error) = self.enter(below, pte.frame(), base, granted)
                && let Some(item) = self.tell(error)
            {
                return Some(item);
            }
        }
        None
    }
}

/// How the manuals call a table of this level.
#[must_use]
pub fn name(level: Level) -> &'static str {
    match level {
        Level::Pml4 => "PML4",
        Level::Pdpt => "PDPT",
        Level::Pd => "PD",
        Level::Pt => "PT",
    }
}
