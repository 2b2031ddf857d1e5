//! The entries of a map, as far as they can be read.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::layout::{EntryFlags, Protection, VmMap, VmMapEntry};

use super::hex::Hex;
use super::survey::{MapAt, ObjectRef, Survey};

const ENTRY: &str = "vm_map_entry";
const MAP: &str = "vm_map";

/// The most entries of one map that are kept; the rest is only counted.
pub(super) const ENTRIES_MAX: usize = 1 << 20;

/// An entry of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EntryReport {
    /// The structure's address.
    pub at: Hex,
    /// First address.
    pub start: Hex,
    /// First address past the range.
    pub end: Hex,
    /// The access that it allows, as `rwx`.
    #[serde(serialize_with = "protection_text")]
    pub protection: Protection,
    /// The most that it could allow.
    #[serde(serialize_with = "protection_text")]
    pub max_protection: Protection,
    /// How often it is wired.
    pub wired: u32,
    /// What it refers to.
    pub object: ObjectRef,
    /// The byte of the object at `start`.
    pub offset: Hex,
    /// Flags by their names.
    #[serde(serialize_with = "flag_names")]
    pub flags: EntryFlags,
}

impl EntryReport {
    /// Whole pages in the range; 0 if it ends before it begins.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0) / PAGE_SIZE
    }
}

fn protection_text<S: Serializer>(
    protection: &Protection,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(protection)
}

fn flag_names<S: Serializer>(flags: &EntryFlags, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(flags.iter_names().map(|(name, _)| name))
}

/// The entries read from a map's list.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// In the order of the list.
    pub kept: Vec<EntryReport>,
    /// Read, but not kept.
    pub left_out: u64,
}

impl Entries {
    pub fn count(&self) -> u64 {
        self.kept.len() as u64 + self.left_out
    }
}

/// All entries on the list of `map`: forwards up to where the list is broken, then backwards from
/// its end. Damage is noted.
pub(super) fn entries(survey: &Survey<'_, '_>, map: &MapAt) -> Entries {
    // 1. The list from its start, at most as many entries as a report keeps.
    let mut entries = Entries::default();
    let mut below = map.map.min_offset();
    let mut broken = false;
    let header = KPtr::new(map.at.addr());
    for item in
        survey.view.list(ENTRY, map.map.header.next.get(), |entry| entry.next.get()).until(header)
    {
        match item {
            Ok((at, entry)) => {
                judge(survey, &map.map, at, &entry, below);
                below = below.max(entry.end.get());
                if entries.kept.len() < ENTRIES_MAX {
                    entries.kept.push(report(survey, at, &entry));
                } else {
                    entries.left_out += 1;
                }
            }
            Err(error) => {
                survey.damage.note(error);
                broken = true;
            }
        }
    }
    // 2. The part after a damaged entry, from the list's end.
    if broken {
        from_the_end(survey, map, below, &mut entries);
    }
    // 3. Compare with the map's own count.
    let (found, counted) = (entries.count(), map.map.nentries.get());
    if found != counted {
        survey.damage.say(MAP, map.at.addr(), || {
            format!("it counts {counted} entries, but {found} were found")
        });
    }
    entries
}

/// Adds the entries above `below`, found from the list's end backwards.
fn from_the_end(survey: &Survey<'_, '_>, map: &MapAt, below: GuestVirt, entries: &mut Entries) {
    let header = KPtr::new(map.at.addr());
    let mut found = Vec::new();
    let mut above = map.map.max_offset();
    for (at, entry) in survey
        .view
        .list(ENTRY, map.map.header.prev.get(), |entry| entry.prev.get())
        .until(header)
        .flatten()
    {
        if entry.start.get() < below
            || entry.end.get() > above
            || entries.kept.len() + found.len() >= ENTRIES_MAX
        {
            break;
        }
        above = entry.start.get();
        found.push(report(survey, at, &entry));
    }
    entries.kept.extend(found.into_iter().rev());
}

/// Notes damage of `entry`, whose predecessor ends at `below`.
fn judge(
    survey: &Survey<'_, '_>,
    map: &VmMap,
    at: KPtr<VmMapEntry>,
    entry: &VmMapEntry,
    below: GuestVirt,
) {
    let (start, end) = (entry.start.get(), entry.end.get());
    let aligned = start.is_page_aligned() && end.is_page_aligned();
    if start < below || end <= start || end > map.max_offset() || !aligned {
        let problem = || {
            format!(
                "its range [{start}, {end}) does not fit between {below} and {}",
                map.max_offset()
            )
        };
        survey.damage.say(ENTRY, at.addr(), problem);
    }
}

fn report(survey: &Survey<'_, '_>, at: KPtr<VmMapEntry>, entry: &VmMapEntry) -> EntryReport {
    let (flags, object) = (entry.eflags.get(), entry.object.get());
    let object = if flags.contains(EntryFlags::IS_SUB_MAP) {
        ObjectRef::SubMap(survey.map_name(object.addr()))
    } else {
        survey.object(object)
    };
    EntryReport {
        at: at.into(),
        start: entry.start.get().into(),
        end: entry.end.get().into(),
        protection: entry.protection.get(),
        max_protection: entry.max_protection.get(),
        wired: entry.wired_count.get(),
        object,
        offset: Hex(entry.offset.get()),
        flags,
    }
}

/// Finds the entry that holds an address, in all maps of the kernel. It keeps the entries that it
/// has read for the next search.
pub(super) struct Lookup<'s, 'v, 'a> {
    survey: &'s Survey<'v, 'a>,
    /// The smallest first, because it is the innermost.
    maps: Vec<(MapAt, Option<Vec<EntryReport>>)>,
}

impl<'s, 'v, 'a> Lookup<'s, 'v, 'a> {
    pub fn new(survey: &'s Survey<'v, 'a>) -> Self {
        let mut maps: Vec<_> = survey.maps().into_iter().map(|map| (map, None)).collect();
        maps.sort_by_key(|(map, _)| {
            map.map.max_offset().get().saturating_sub(map.map.min_offset().get())
        });
        Self { survey, maps }
    }

    /// The innermost entry that holds `va`, with its map.
    pub fn find(&mut self, va: GuestVirt) -> Option<(Arc<str>, EntryReport)> {
        self.maps.iter_mut().find_map(|(map, known)| {
            if va < map.map.min_offset() || va >= map.map.max_offset() {
                return None;
            }
            let entries = known.get_or_insert_with(|| entries(self.survey, map).kept);
            let entry =
                entries.iter().find(|entry| (entry.start.0..entry.end.0).contains(&va.get()))?;
            (!entry.flags.contains(EntryFlags::IS_SUB_MAP))
                .then(|| (Arc::clone(&map.name), entry.clone()))
        })
    }
}
