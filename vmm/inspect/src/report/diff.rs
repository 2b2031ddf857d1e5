//! The differences between two looks: two dumps, or a dump and a guest.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use vmkern_abi::layout::VmMeter;
use vmkern_abi::pte::PteFlags;

use super::census::{Census, Use};
use super::entries::{EntryReport, entries};
use super::hex::Hex;
use super::survey::Survey;
use super::walk::words;
use crate::read::leaves::{Leaf, Leaves};

/// The most changes of a kind that are kept; the rest is only counted.
const CHANGES_MAX: usize = 1 << 18;

/// A change of something that may be new or gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Change<T> {
    /// What it was; null when it was not there.
    pub before: Option<T>,
    /// What it is; null when it is gone.
    pub after: Option<T>,
}

/// Changes, and the number of those left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Changes<T> {
    /// The changes.
    pub changes: Vec<T>,
    /// The number of changes that are not listed.
    pub left_out: u64,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self { changes: Vec::new(), left_out: 0 }
    }
}

impl<T> Changes<T> {
    fn push(&mut self, change: T) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(change);
        } else {
            self.left_out += 1;
        }
    }
}

/// A map whose entries have changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapDiff {
    /// The map.
    pub name: Arc<str>,
    /// Whether it is in both looks: `both`, `before` or `after`.
    pub present: &'static str,
    /// Its entries that are new, gone or different, by their start.
    pub entries: Changes<Change<EntryReport>>,
}

/// Adjacent pages with the same change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageChange {
    /// First page.
    pub pfn: u64,
    /// Pages.
    pub pages: u64,
    /// What they were used for.
    pub before: Use,
    /// What they are used for.
    pub after: Use,
}

/// The content of a page-table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PteState {
    /// The physical address that the run's first address maps to.
    pub phys: Hex,
    /// What it grants.
    #[serde(serialize_with = "flag_words")]
    pub flags: PteFlags,
}

fn flag_words<S: Serializer>(flags: &PteFlags, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(words(*flags))
}

/// Adjacent page-table entries with the same change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PteChange {
    /// First address.
    pub start: Hex,
    /// Last address.
    pub last: Hex,
    /// Bytes that an entry maps.
    pub span: u64,
    /// Entries.
    pub entries: u64,
    /// What the first was; null when they mapped nothing.
    pub before: Option<PteState>,
    /// What the first is; null when they map nothing.
    pub after: Option<PteState>,
}

/// A counter that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CounterChange {
    /// Its name.
    pub counter: &'static str,
    /// What it was.
    pub before: u64,
    /// What it is.
    pub after: u64,
}

/// `inspect A diff B`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiffReport {
    /// The name of the earlier source.
    pub before: String,
    /// The name of the later source.
    pub after: String,
    /// Counters.
    pub counters: Vec<CounterChange>,
    /// Maps.
    pub maps: Vec<MapDiff>,
    /// Numbers of pages by old and new use, the most frequent change first.
    pub page_changes: Vec<PageChangeCount>,
    /// Pages.
    pub pages: Changes<PageChange>,
    /// Page-table entries.
    pub page_table: Changes<PteChange>,
    /// Page-table entries in which only the bits differ that the CPU sets by itself: accessed and
    /// modified.
    pub accessed_or_modified: u64,
}

/// How many pages have changed in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageChangeCount {
    /// What they were used for.
    pub before: Use,
    /// What they are used for.
    pub after: Use,
    /// Pages.
    pub pages: u64,
}

pub(super) fn diff(
    before: &Survey<'_, '_>,
    after: &Survey<'_, '_>,
    names: [String; 2],
) -> DiffReport {
    let (old, new) = (Census::take(before), Census::take(after));
    let pages = pages(&old.uses, &new.uses);
    let mut counts: BTreeMap<(Use, Use), u64> = BTreeMap::new();
    for change in &pages.changes {
        *counts.entry((change.before, change.after)).or_default() += change.pages;
    }
    let mut page_changes: Vec<_> = counts
        .into_iter()
        .map(|((before, after), pages)| PageChangeCount { before, after, pages })
        .collect();
    page_changes.sort_by_key(|count| std::cmp::Reverse(count.pages));
    let (page_table, accessed_or_modified) = page_table(before, after);
    let [before_name, after_name] = names;
    DiffReport {
        before: before_name,
        after: after_name,
        counters: counters(before, after),
        maps: maps(before, after),
        page_changes,
        pages,
        page_table,
        accessed_or_modified,
    }
}

fn counters(before: &Survey<'_, '_>, after: &Survey<'_, '_>) -> Vec<CounterChange> {
    let (Some(old), Some(new)) = (before.roots(), after.roots()) else { return Vec::new() };
    let pair = |name: &&'static str| {
        let (before, after) = (old.meter.by_name(name)?.get(), new.meter.by_name(name)?.get());
        (before != after).then_some(CounterChange { counter: name, before, after })
    };
    VmMeter::NAMES.iter().filter_map(pair).collect()
}

fn maps(before: &Survey<'_, '_>, after: &Survey<'_, '_>) -> Vec<MapDiff> {
    let mut old: BTreeMap<u64, _> =
        before.maps().into_iter().map(|map| (map.at.addr().get(), map)).collect();
    let mut diffs = Vec::new();
    for map in after.maps() {
        let new_entries = entries(after, &map).kept;
        let (present, old_entries) = match old.remove(&map.at.addr().get()) {
            Some(old) => ("both", entries(before, &old).kept),
            None => ("after", Vec::new()),
        };
        let entries = entry_changes(old_entries, new_entries);
        if present != "both" || !entries.changes.is_empty() {
            diffs.push(MapDiff { name: map.name, present, entries });
        }
    }
    for map in old.into_values() {
        let entries = entry_changes(entries(before, &map).kept, Vec::new());
        diffs.push(MapDiff { name: map.name, present: "before", entries });
    }
    diffs
}

/// The entries that differ, matched by their starts.
fn entry_changes(old: Vec<EntryReport>, new: Vec<EntryReport>) -> Changes<Change<EntryReport>> {
    let mut changes = Changes::default();
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let (before, after) = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => (old.next(), None),
            (None, Some(_)) => (None, new.next()),
            (Some(a), Some(b)) if a.start < b.start => (old.next(), None),
            (Some(a), Some(b)) if a.start > b.start => (None, new.next()),
            (Some(_), Some(_)) => (old.next(), new.next()),
        };
        // The structure's own address does not count.
        let alike = |a: &EntryReport, b: &EntryReport| EntryReport { at: b.at, ..a.clone() } == *b;
        if !before.as_ref().zip(after.as_ref()).is_some_and(|(a, b)| alike(a, b)) {
            changes.push(Change { before, after });
        }
    }
}

fn pages(old: &[Use], new: &[Use]) -> Changes<PageChange> {
    let mut changes = Changes::default();
    let mut run: Option<PageChange> = None;
    let of = |uses: &[Use], pfn: usize| uses.get(pfn).copied().unwrap_or(Use::Hole);
    for pfn in 0..old.len().max(new.len()) {
        let (before, after) = (of(old, pfn), of(new, pfn));
        match &mut run {
            Some(run) if run.before == before && run.after == after => run.pages += 1,
            _ => {
                let next = (before != after).then_some(PageChange {
                    pfn: pfn as u64,
                    pages: 1,
                    before,
                    after,
                });
                if let Some(done) = std::mem::replace(&mut run, next) {
                    changes.push(done);
                }
            }
        }
    }
    if let Some(run) = run {
        changes.push(run);
    }
    changes
}

/// The changes of page-table entries, and the number of entries that differ only in bits that the
/// CPU sets.
fn page_table(before: &Survey<'_, '_>, after: &Survey<'_, '_>) -> (Changes<PteChange>, u64) {
    // 1. The translations of both, merged in order of addresses.
    let good = |survey: &Survey<'_, '_>, leaf| survey.damage.ok(leaf);
    let mut old = Leaves::all(before.view).filter_map(|leaf| good(before, leaf)).peekable();
    let mut new = Leaves::all(after.view).filter_map(|leaf| good(after, leaf)).peekable();
    let (mut changes, mut by_cpu) = (Changes::default(), 0);
    let mut run: Option<PteChange> = None;
    // If a large page was split, it is gone and its pieces are new.
    let key = |leaf: &Leaf| (leaf.va, std::cmp::Reverse(leaf.span));
    loop {
        let (a, b) = match (old.peek().map(key), new.peek().map(key)) {
            (None, None) => break,
            (Some(a), Some(b)) if a == b => (old.next(), new.next()),
            (Some(a), Some(b)) if a > b => (None, new.next()),
            (None, Some(_)) => (None, new.next()),
            (Some(_), _) => (old.next(), None),
        };
        // 2. Bits that the CPU sets by itself are counted, but are not a change.
        if let (Some(a), Some(b)) = (&a, &b) {
            let set_by_cpu = PteFlags::A | PteFlags::M;
            if a.phys == b.phys && a.flags - set_by_cpu == b.flags - set_by_cpu {
                by_cpu += u64::from(a.flags != b.flags);
                continue;
            }
        }
        let Some(leaf) = b.as_ref().or(a.as_ref()) else { continue };
        // 3. A change. Changes that continue one another form one run.
        let next = change(leaf, a, b);
        match &mut run {
            Some(run) if continues(run, &next) => {
                run.last = next.last;
                run.entries += 1;
            }
            run => {
                if let Some(done) = run.replace(next) {
                    changes.push(done);
                }
            }
        }
    }
    // 4. The last run.
    if let Some(run) = run {
        changes.push(run);
    }
    (changes, by_cpu)
}

/// The change of one translation; `leaf` is the newer of the two that exist.
fn change(leaf: &Leaf, a: Option<Leaf>, b: Option<Leaf>) -> PteChange {
    let state = |leaf: Leaf| PteState { phys: leaf.phys.into(), flags: leaf.flags };
    PteChange {
        start: leaf.va.into(),
        last: Hex(leaf.last()),
        span: leaf.span,
        entries: 1,
        before: a.map(state),
        after: b.map(state),
    }
}

/// Whether `next` directly follows `run` and has the same change.
fn continues(run: &PteChange, next: &PteChange) -> bool {
    let flags = |state: Option<PteState>| state.map(|state| state.flags);
    run.last.0.checked_add(1) == Some(next.start.0)
        && run.span == next.span
        && flags(run.before) == flags(next.before)
        && flags(run.after) == flags(next.after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_pages_that_change_alike_are_one_change() {
        use Use::{Free, Fresh, Kmem};
        let changes =
            pages(&[Fresh, Fresh, Free, Kmem, Kmem], &[Kmem, Kmem, Kmem, Kmem, Free, Fresh]);
        let told: Vec<_> =
            changes.changes.iter().map(|c| (c.pfn, c.pages, c.before, c.after)).collect();
        assert_eq!(
            told,
            [(0, 2, Fresh, Kmem), (2, 1, Free, Kmem), (4, 1, Kmem, Free), (5, 1, Use::Hole, Fresh)]
        );
    }
}
