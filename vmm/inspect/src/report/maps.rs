//! Maps and submaps.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use vmkern_abi::layout::{EntryFlags, VmMap};

use super::bar::{self, Stretch, Taken};
use super::entries::{Entries, EntryReport, entries};
use super::hex::Hex;
use super::survey::{MapAt, MapName, Survey};

/// A map: its size and use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapReport {
    /// The kernel's name for it, or its address.
    pub name: Arc<str>,
    /// The structure's address.
    pub at: Hex,
    /// The map that it is a submap of.
    pub parent: Option<Arc<str>>,
    /// How many maps it is nested in.
    pub depth: u32,
    /// Whether it is a system map, whose lock is a mutex instead of an sx lock.
    pub system: bool,
    /// Number of the thread that has locked it.
    pub locked_by: Option<u32>,
    /// First address.
    pub start: Hex,
    /// First address past the map.
    pub end: Hex,
    /// Entries found.
    pub entry_count: u64,
    /// Bytes in them.
    pub used_bytes: u64,
    /// Bytes outside entries.
    pub free_bytes: u64,
    /// Holes between them.
    pub holes: u64,
    /// Bytes of the largest.
    pub largest_hole: u64,
    /// Percent of the free bytes that lie outside the largest hole.
    pub fragmentation: u8,
    /// Its address space.
    pub bar: Vec<Stretch>,
}

/// `inspect maps`: every map before its submaps, in the order of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapsReport {
    /// The maps.
    pub maps: Vec<MapReport>,
}

/// `inspect map NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapEntriesReport {
    /// The map.
    pub map: MapReport,
    /// Its entries, in the order of addresses.
    pub entries: Vec<EntryReport>,
    /// The number of entries that are not listed.
    pub left_out: u64,
}

pub(super) fn maps(survey: &Survey<'_, '_>) -> MapsReport {
    // 1. Each map, with the submaps that its entries refer to.
    let maps = survey.maps();
    let mut reports: HashMap<u64, MapReport> = HashMap::new();
    let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
    let by_name: HashMap<Arc<str>, u64> =
        maps.iter().map(|map| (Arc::clone(&map.name), map.at.addr().get())).collect();
    let mut has_parent = std::collections::HashSet::new();
    for map in &maps {
        let entries = entries(survey, map);
        let submaps = entries.kept.iter().filter_map(|entry| match &entry.object {
            super::ObjectRef::SubMap(name) => by_name.get(name).copied(),
            _ => None,
        });
        // The first map that refers to another one is its parent.
        let submaps: Vec<_> = submaps.filter(|at| has_parent.insert(*at)).collect();
        children.insert(map.at.addr().get(), submaps);
        reports.insert(map.at.addr().get(), report(map, &entries));
    }
    // 2. Parents before children, starting from the maps without a parent.
    let mut ordered = Vec::new();
    let mut stack: Vec<(u64, u32, Option<Arc<str>>)> = maps
        .iter()
        .rev()
        .map(|map| map.at.addr().get())
        .filter(|at| !has_parent.contains(at))
        .map(|at| (at, 0, None))
        .collect();
    while let Some((at, depth, parent)) = stack.pop() {
        let Some(mut report) = reports.remove(&at) else { continue };
        (report.depth, report.parent) = (depth, parent);
        let name = Arc::clone(&report.name);
        let below = children.remove(&at).unwrap_or_default();
        stack.extend(
            below.into_iter().rev().map(|child| (child, depth + 1, Some(Arc::clone(&name)))),
        );
        ordered.push(report);
    }
    // 3. Maps that contain one another are reached from no root.
    let mut left: Vec<_> = reports.into_values().collect();
    left.sort_by_key(|report| report.at);
    for report in left {
        let problem = || "it is a part of itself".to_owned();
        survey.damage.say("vm_map", vmkern_abi::addr::GuestVirt::new(report.at.0), problem);
        ordered.push(report);
    }
    MapsReport { maps: ordered }
}

/// One map with its entries, or `None` when there is no such map.
pub(super) fn map(survey: &Survey<'_, '_>, name: &MapName) -> Option<MapEntriesReport> {
    let map = survey.map(name)?;
    let entries = entries(survey, &map);
    let report = report(&map, &entries);
    Some(MapEntriesReport { map: report, entries: entries.kept, left_out: entries.left_out })
}

fn report(map: &MapAt, entries: &Entries) -> MapReport {
    // 1. The holes between the valid entries.
    let (start, end) = (map.map.min_offset().get(), map.map.max_offset().get());
    let mut taken = Vec::with_capacity(entries.kept.len());
    let (mut below, mut used, mut holes, mut largest) = (start, 0, 0, 0);
    let mut hole = |from: u64, to: u64| {
        if from < to {
            holes += 1;
            largest = u64::max(largest, to - from);
        }
    };
    for entry in &entries.kept {
        let (from, to) = (entry.start.0, entry.end.0);
        if from < below || to <= from || to > end {
            continue;
        }
        hole(below, from);
        used += to - from;
        below = to;
        taken.push(Taken {
            start: from,
            end: to,
            is_submap: entry.flags.contains(EntryFlags::IS_SUB_MAP),
        });
    }
    hole(below, end);
    // 2. The free bytes.
    let free = end.saturating_sub(start).saturating_sub(used);
    // 3. The caller sets its place among the maps.
    MapReport {
        name: Arc::clone(&map.name),
        at: map.at.into(),
        parent: None,
        depth: 0,
        system: map.map.system_map.is_set(),
        locked_by: owner(&map.map).checked_sub(1),
        start: Hex(start),
        end: Hex(end),
        entry_count: entries.count(),
        used_bytes: used,
        free_bytes: free,
        holes,
        largest_hole: largest,
        fragmentation: fragmentation(free, largest),
        bar: bar::bar(start, end, &taken),
    }
}

/// The word of the map's lock, mutex or sx lock: the number of the thread that owns it, plus one.
fn owner(map: &VmMap) -> u32 {
    if map.system_map.is_set() { map.lock.owner.get() & 0xffff } else { map.sx.owner.get() }
}

/// Percent of `free` outside its `largest` piece, rounded up, so only an unbroken hole is 0.
fn fragmentation(free: u64, largest: u64) -> u8 {
    let outside = u128::from(free.saturating_sub(largest));
    u8::try_from((outside * 100).div_ceil(u128::from(free.max(1)))).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::fragmentation;

    #[test]
    fn fragmentation_is_0_for_one_hole_and_rises_with_what_lies_outside_of_the_largest() {
        assert_eq!(
            [fragmentation(0, 0), fragmentation(100, 100), fragmentation(100, 75)],
            [0, 0, 25]
        );
        assert_eq!(fragmentation(1 << 40, (1 << 40) - 4096), 1);
        assert_eq!(fragmentation(u64::MAX, 0), 100);
    }
}
