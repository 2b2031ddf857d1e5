//! Every mapping of a range, from the page tables.
//!
//! One pass over the tables, in place, reads each of them once. Tables that form a cycle in a
//! damaged guest are entered a few times and then skipped. A table in a page that a dump does not
//! hold is not read: it is all zeros. So the work is bounded by the bytes that a source holds,
//! whatever RAM it claims. Entries with reserved bits map nothing and are reported.

use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::{Level, NPTEPG, Pte, PteFlags};
use vmkern_abi::walk::TableReader as _;

use crate::InspectError;
use crate::ram::PageWords;
use crate::view::View;

/// How often a table may be entered. A valid table is entered once, or a few times if parts of the
/// address space share it.
const VISITS_MAX: u8 = 4;
/// The most errors that are reported.
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

/// The tables that were looked into, and how often each was.
#[derive(Default)]
struct Visits {
    /// By page number. Zeros until a table is noted: the host allocates memory only for the pages
    /// that are written to.
    counts: Vec<u8>,
    tables: Vec<GuestPhys>,
}

impl Visits {
    fn of(view: &View<'_>) -> Self {
        let end = view.source().segments().last().map_or(0, |segment| segment.end.get());
        let pages = usize::try_from(end / PAGE_SIZE).unwrap_or(0);
        Self { counts: vec![0; pages], tables: Vec::new() }
    }

    /// Notes another visit of the table at `at`, which is RAM. Returns the number of visits, this
    /// one included.
    fn note(&mut self, at: GuestPhys) -> u8 {
        let count = usize::try_from(at.pfn()).ok().and_then(|pfn| self.counts.get_mut(pfn));
        let Some(count) = count else { return u8::MAX };
        if *count == 0 {
            self.tables.push(at.page());
        }
        *count = count.saturating_add(1);
        *count
    }
}

/// The mappings between two addresses, both inclusive, in ascending order, and the errors met on
/// the way.
pub struct Leaves<'v, 'a> {
    view: &'v View<'a>,
    paging: Paging,
    first: u64,
    last: u64,
    stack: Vec<Table<'a>>,
    visits: Visits,
    tables: [u64; 4],
    errors: u32,
}

impl<'v, 'a> Leaves<'v, 'a> {
    /// The mappings that overlap the addresses from `first` to `last`.
    #[must_use]
    pub fn new(view: &'v View<'a>, first: GuestVirt, last: GuestVirt) -> Self {
        Self {
            view,
            paging: view.paging(),
            first: first.get(),
            last: last.get(),
            stack: Vec::new(),
            visits: Visits::default(),
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
        self.visits.tables.iter().copied()
    }

    fn enter(
        &mut self,
        level: Level,
        at: GuestPhys,
        base: u64,
        granted: PteFlags,
    ) -> Result<(), Broken> {
        let words = self.view.table(at).map_err(|error| Broken::Unreadable(Box::new(error)))?;
        let count = self.visits.note(at);
        if count > VISITS_MAX {
            return Err(Broken::Again(level, at));
        }
        if count == 1 {
            self.tables[level as usize - 1] += 1;
        }
        if !self.view.source().holds(at) {
            return Ok(());
        }
        let index = match self.first.checked_sub(base) {
            Some(below) => usize::try_from(below >> level.shift()).unwrap_or(NPTEPG).min(NPTEPG),
            None => 0,
        };
        // The two halves of the address space are separated by a gap.
        let index =
            if level == Level::Pml4 { level.index(GuestVirt::new(self.first)) } else { index };
        self.stack.push(Table { level, at, words, index, base, granted });
        Ok(())
    }

    /// Reports `broken`, found at `base`; `None` once enough errors were reported.
    fn tell(&mut self, broken: Broken, base: u64) -> Option<<Self as Iterator>::Item> {
        self.errors += 1;
        if self.errors > ERRORS_MAX {
            self.errors = ERRORS_MAX;
            return None;
        }
        let damaged = |problem| InspectError::damaged("page table", GuestVirt::new(base), problem);
        Some(Err(match broken {
            Broken::Unreadable(error) => *error,
            Broken::Again(level, at) => {
                damaged(format!("the {} at {at} is used again and again", name(level)))
            }
            Broken::Reserved(level, pte, bits) => {
                let (level, pte) = (name(level), pte.bits());
                damaged(format!(
                    "the {level} entry {pte:#x} has reserved bits set: {bits:#x}; it translates \
                     nothing"
                ))
            }
        }))
    }
}

/// Why an entry leads nowhere. Only those that are reported are formatted.
enum Broken {
    /// The table is not RAM.
    Unreadable(Box<InspectError>),
    /// The table was entered too often.
    Again(Level, GuestPhys),
    /// These bits are set, but are reserved.
    Reserved(Level, Pte, u64),
}

impl Iterator for Leaves<'_, '_> {
    type Item = Result<Leaf, InspectError>;

    fn next(&mut self) -> Option<Self::Item> {
        // 1. The root table, the first time.
        if self.visits.counts.is_empty() {
            self.visits = Visits::of(self.view);
            let granted = PteFlags::RW | PteFlags::U;
            if let Err(broken) = self.enter(Level::Pml4, self.view.pml4().page(), 0, granted) {
                return self.tell(broken, 0);
            }
        }
        // 2. The next entry of the deepest table; after its last entry, go back up.
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
            // 3. An entry that translates: valid, and without reserved bits.
            let pte = Pte::from_bits(table.words[index].load(Ordering::Relaxed));
            if !pte.is_valid() {
                continue;
            }
            let reserved = self.paging.reserved(level, pte);
            if reserved != 0 {
                if let Some(item) = self.tell(Broken::Reserved(level, pte, reserved), base) {
                    return Some(item);
                }
                continue;
            }
            // 4. A leaf, with what all levels together permit.
            let flags = pte.flags();
            let inherited = PteFlags::RW | PteFlags::U;
            let granted =
                (table.granted & flags & inherited) | ((table.granted | flags) & PteFlags::NX);
            let is_leaf = level == Level::Pt || (level != Level::Pml4 && pte.is_large());
            if is_leaf {
                let phys = GuestPhys::new(pte.frame().get() & !(level.span() - 1));
                let own = flags - (inherited | PteFlags::NX);
                let at = GuestPhys::new(table.at.get() + index as u64 * 8);
                return Some(Ok(Leaf {
                    va: GuestVirt::new(base),
                    span: level.span(),
                    phys,
                    flags: own | granted,
                    at,
                }));
            }
            // 5. A table: descend into it.
            let below = Level::TOP_DOWN[5 - level as usize];
            if let Err(broken) = self.enter(below, pte.frame(), base, granted)
                && let Some(item) = self.tell(broken, base)
            {
                return Some(item);
            }
        }
        None
    }
}

/// The manuals' name for a table of this level.
#[must_use]
pub fn name(level: Level) -> &'static str {
    match level {
        Level::Pml4 => "PML4",
        Level::Pdpt => "PDPT",
        Level::Pd => "PD",
        Level::Pt => "PT",
    }
}
