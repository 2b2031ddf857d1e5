//! A stretch of a map, one column a page: what it looks like, and what changed in it.

use std::fmt::Write as _;

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::MapId;
use vmkern_abi::layout::EntryFlags;
use vmkern_abi::pte::PteFlags;

use crate::Guest;
use crate::inspect::{EntryView, InspectError, ObjectView};
use crate::script::{BAD, FAINT, GOOD, map_name};

/// Columns of a bar.
pub(super) const COLUMNS: u64 = 44;

/// What a stretch of a map looked like at one moment.
#[derive(Clone, Debug)]
pub(super) struct Window {
    map: MapId,
    start: GuestVirt,
    entries: Vec<EntryView>,
    /// What the page tables say of each page.
    pages: Vec<Option<PteFlags>>,
}

impl Window {
    /// Looks at [`COLUMNS`] pages from `start` (page aligned) on.
    pub fn look(guest: &Guest, map: MapId, start: GuestVirt) -> Result<Self, InspectError> {
        let end = start.checked_add(COLUMNS * PAGE_SIZE).unwrap_or(start);
        let mut entries = guest.map_entries(map)?;
        entries.retain(|entry| entry.start < end && entry.end > start);
        let mut pages = vec![None; usize::try_from(COLUMNS).unwrap_or_default()];
        for run in guest.page_runs(start, end)? {
            for (index, page) in (0..).zip(&mut pages) {
                let at = start.add(index * PAGE_SIZE);
                if at >= run.start && at < run.end {
                    *page = Some(run.flags);
                }
            }
        }
        Ok(Self { map, start, entries, pages })
    }

    fn at(&self, index: usize) -> GuestVirt {
        self.start.add(index as u64 * PAGE_SIZE)
    }

    fn entry(&self, at: GuestVirt) -> Option<(usize, &EntryView)> {
        self.entries.iter().enumerate().find(|(_, entry)| at >= entry.start && at < entry.end)
    }

    /// The bar: a page with memory behind it, a page of an entry without, a free page; neighbouring
    /// entries differ.
    pub fn bar(&self) -> String {
        let mut bar = format!("   {:<10} {} ", map_name(self.map), self.start);
        let _ = write!(bar, "{FAINT}[{FAINT:#}");
        for (index, page) in self.pages.iter().enumerate() {
            let entry =
                self.entry(self.at(index)).map(|(number, entry)| (number % 2 == 0, entry.eflags));
            match (entry, page) {
                (Some((_, eflags)), _) if eflags.contains(EntryFlags::IS_SUB_MAP) => {
                    let _ = write!(bar, "{FAINT}~{FAINT:#}");
                }
                (Some((even, _)), Some(_)) => {
                    let _ = write!(bar, "{GOOD}{}{GOOD:#}", if even { '#' } else { '@' });
                }
                (Some(_), None) => bar.push('-'),
                (None, Some(_)) => {
                    let _ = write!(bar, "{BAD}!{BAD:#}");
                }
                (None, None) => bar.push('.'),
            }
        }
        let _ = writeln!(bar, "{FAINT}]{FAINT:#}");
        bar
    }

    /// One line for each entry in sight.
    pub fn entries(&self) -> String {
        // 1. A line for each entry: what it stands for, and how it is wired.
        let mut text = String::new();
        for entry in &self.entries {
            let what = match entry.object {
                ObjectView::SubMap(map) if map.0 < MapId::NAMED_MAX => {
                    format!("submap {}", map_name(map))
                }
                ObjectView::SubMap(_) => "a submap".to_owned(),
                ObjectView::None if entry.eflags.contains(EntryFlags::NOFAULT) => {
                    "no object, NOFAULT".to_owned()
                }
                ObjectView::None => "no object".to_owned(),
                ObjectView::Kernel => "kernel_object".to_owned(),
                ObjectView::Kmem => "kmem_object".to_owned(),
                ObjectView::Other(_) => "an object of its own".to_owned(),
            };
            let size = size(entry.end.since(entry.start));
            let wired =
                if entry.wired > 0 { format!(", wired {}", entry.wired) } else { String::new() };
            let _ = writeln!(text, "   entry {}-{} {size}, {what}{wired}", entry.start, entry.end);
        }
        // 2. No line is no entry.
        if text.is_empty() {
            text.push_str("   entry none in sight\n");
        }
        text
    }

    /// The flags that [`Window::changes`] names.
    pub fn changed_flags(&self, before: &Self) -> PteFlags {
        let none = PteFlags::empty();
        let pairs = self.pages.iter().zip(&before.pages);
        pairs.map(|(now, before)| now.unwrap_or(none) ^ before.unwrap_or(none)).collect()
    }

    /// What the page tables say now and did not say in `before`, which is the same stretch.
    pub fn changes(&self, before: &Self) -> String {
        // 1. Neighbours that changed alike are one line.
        let mut text = String::new();
        let differs = |index: usize| self.pages[index] != before.pages[index];
        let mut index = 0;
        while index < self.pages.len() {
            let first = index;
            let pair = (before.pages[first], self.pages[first]);
            while index < self.pages.len()
                && differs(index) == differs(first)
                && (before.pages[index], self.pages[index]) == pair
            {
                index += 1;
            }
            if !differs(first) {
                continue;
            }
            // 2. What was entered, removed, changed.
            // A run that reaches the last column may go on behind it.
            let mut pages = count((index - first) as u64, "page");
            if index == self.pages.len() {
                pages.push_str(" in sight");
            }
            let line = match pair {
                (None, Some(new)) => {
                    format!("{GOOD}+{GOOD:#} {} {pages}: {}", self.at(first), flags(new))
                }
                (Some(old), None) => {
                    format!("{BAD}-{BAD:#} {} {pages}: {}", self.at(first), flags(old))
                }
                (Some(old), Some(new)) => {
                    format!("  {} {pages}: {}", self.at(first), difference(old, new))
                }
                (None, None) => continue,
            };
            let _ = writeln!(text, "   PTE {line}");
        }
        // 3. No line is no change.
        if text.is_empty() {
            text.push_str("   PTE   unchanged in sight\n");
        }
        text
    }
}

/// A size in pages, or in a larger unit when there are many.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
        bytes if bytes >= 1 << 20 => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
        bytes => count(bytes / PAGE_SIZE, "page"),
    }
}

/// `1 page`, `2 pages`.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What an entry has gained and lost. Stacks are all that the tour finds entered by
/// `pmap_qenter` and then used.
fn difference(old: PteFlags, new: PteFlags) -> String {
    let mut text = Vec::new();
    for (what, flags_of) in [("gains", new - old), ("loses", old - new)] {
        if !flags_of.is_empty() {
            text.push(format!("{what} {}", flags(flags_of)));
        }
    }
    if new.contains(PteFlags::KENTER) {
        text.push("of a thread's stack".to_owned());
    }
    text.join(", ")
}

/// Flags as FreeBSD names them.
pub(super) fn flags(flags: PteFlags) -> String {
    flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}
