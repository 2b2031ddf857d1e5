//! All maps with their entries, copied.
//!
//! The entries are those of the map's list, in its order. Reading continues past contradictory
//! links. It ends at the header, at an entry that was visited before, and at one that cannot be
//! read.

use std::borrow::Cow;
use std::collections::HashSet;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::layout::{
    EntryFlags, KernelRoots, MapNode, MapPool, PoolPage, Protection, VmMap, VmMapEntry,
};

use super::finding::{Findings, Updating};
use super::map_list::MAP_LIST;
use super::map_state::MAP_REGISTRY;
use super::memory::Memory;

/// A [`VmMapEntry`], copied, with its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub at: GuestVirt,
    pub prev: GuestVirt,
    pub next: GuestVirt,
    pub start: GuestVirt,
    pub end: GuestVirt,
    pub object: GuestVirt,
    pub offset: u64,
    pub eflags: EntryFlags,
    pub wired_count: u32,
    pub deleter: u32,
    pub protection: Protection,
    pub max_protection: Protection,
    pub inheritance: u8,
}

impl Entry {
    fn of(at: GuestVirt, entry: &VmMapEntry) -> Self {
        Self {
            at,
            prev: entry.prev.get().addr(),
            next: entry.next.get().addr(),
            start: entry.start.get(),
            end: entry.end.get(),
            object: entry.object.get().addr(),
            offset: entry.offset.get(),
            eflags: entry.eflags.get(),
            wired_count: entry.wired_count.get(),
            deleter: entry.deleter.get(),
            protection: entry.protection.get(),
            max_protection: entry.max_protection.get(),
            inheritance: entry.inheritance.get(),
        }
    }

    /// Bytes of the range; 0 when it ends before it starts.
    pub(super) fn len(&self) -> u64 {
        self.end.get().saturating_sub(self.start.get())
    }

    pub(super) fn is_submap(&self) -> bool {
        self.eflags.contains(EntryFlags::IS_SUB_MAP)
    }

    /// Its object, if it has one.
    pub(super) fn object(&self) -> Option<GuestVirt> {
        (!self.is_submap() && self.object.get() != 0).then_some(self.object)
    }
}

/// A [`MapPool`], copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    pub used: u64,
    pub capacity: u64,
    pub first: KPtr<PoolPage>,
    pub top: KPtr<PoolPage>,
    pub last: KPtr<PoolPage>,
}

impl Pool {
    fn of(pool: &MapPool) -> Self {
        Self {
            used: pool.used.get(),
            capacity: pool.capacity.get(),
            first: pool.first.get(),
            top: pool.top.get(),
            last: pool.last.get(),
        }
    }
}

/// A [`VmMap`] with its entries, copied.
#[derive(Debug)]
pub(super) struct Map {
    pub at: GuestVirt,
    /// Its name.
    pub name: &'static str,
    pub min: GuestVirt,
    pub max: GuestVirt,
    /// The header as an entry.
    pub header: Entry,
    pub nentries: u64,
    pub size: u64,
    pub needs_wakeup: u32,
    pub system_map: u32,
    pub pmap: GuestPhys,
    pub root: KPtr<MapNode>,
    pub height: u32,
    pub nodes: u64,
    pub home: GuestVirt,
    pub entry_pool: Pool,
    pub node_pool: Pool,
    pub unlinked: KPtr<MapNode>,
    pub credits: u64,
    pub plain_pages: u64,
    /// Number of the thread that owns its lock, plus 1; 0 if it is free.
    pub lock_owner: u32,
    /// Its list of entries.
    pub entries: Vec<Entry>,
}

impl Map {
    /// Whether it is being changed.
    pub(super) fn is_updating(&self) -> bool {
        self.lock_owner != 0
    }

    pub(super) fn updating(&self) -> Option<Updating> {
        let owner = self.lock_owner.checked_sub(1)?;
        Some(Updating { what: Cow::Borrowed(self.name), at: self.at, owner: owner & 0xffff })
    }

    fn read(
        memory: &Memory<'_>,
        findings: &Findings,
        at: KPtr<VmMap>,
        name: &'static str,
    ) -> Option<(Self, VmMap)> {
        // 1. A copy of the map; a map that cannot be read is a finding.
        let map: VmMap = match memory.get("vm_map", at) {
            Ok(map) => map,
            Err(error) => {
                findings.unreadable(&error);
                return None;
            }
        };
        let lock = if map.system_map.is_set() { map.lock.owner.get() } else { map.sx.owner.get() };
        // 2. The fields that rules use. The entries are read later, when all maps are known.
        let read = Self {
            at: at.addr(),
            name,
            min: map.min_offset(),
            max: map.max_offset(),
            header: Entry::of(at.addr(), &map.header),
            nentries: map.nentries.get(),
            size: map.size.get(),
            needs_wakeup: map.needs_wakeup.get().raw(),
            system_map: map.system_map.get().raw(),
            pmap: map.pmap.get(),
            root: map.index.root.get(),
            height: map.index.height.get(),
            nodes: map.index.nodes.get(),
            home: map.reserve.home.get().addr(),
            entry_pool: Pool::of(&map.reserve.entries),
            node_pool: Pool::of(&map.reserve.nodes),
            unlinked: map.reserve.unlinked.get(),
            credits: map.reserve.credits.get(),
            plain_pages: map.reserve.plain_pages.get(),
            lock_owner: lock,
            entries: Vec::new(),
        };
        Some((read, map))
    }

    fn read_entries(&mut self, memory: &Memory<'_>, findings: &Findings) {
        let mut seen = HashSet::new();
        let mut at = self.header.next;
        while at != self.at {
            if !seen.insert(at) {
                findings.add(&MAP_LIST, "vm_map_entry", at, || {
                    let map = format!("{} at {}", self.name, self.at);
                    format!(
                        "the list of {map} leads back to it after {} entries and never ends",
                        seen.len()
                    )
                });
                return;
            }
            match memory.get::<VmMapEntry>("vm_map_entry", KPtr::new(at)) {
                Ok(entry) => {
                    let entry = Entry::of(at, &entry);
                    self.entries.push(entry);
                    at = entry.next;
                }
                Err(error) => {
                    if !self.is_updating() {
                        findings.unreadable(&error);
                    }
                    return;
                }
            }
        }
    }
}

/// The name of a map that has none of its own.
pub(super) const UNNAMED: &str = "vm_map";

/// All maps.
#[derive(Debug, Default)]
pub(super) struct Maps {
    /// The maps on the kernel's list, then those that only roots or entries name.
    pub all: Vec<Map>,
    /// How many of them are on the list.
    pub listed: usize,
}

impl Maps {
    /// Reads the list of maps, and further maps that roots and submap entries name.
    pub(super) fn read(memory: &Memory<'_>, roots: &KernelRoots, findings: &Findings) -> Self {
        // 1. The maps on the list, which may lead to a map twice.
        let mut maps = Self::default();
        let mut seen = HashSet::new();
        let mut next = roots.map_list.get();
        while let Some(at) = next.non_null() {
            if !seen.insert(at.addr()) {
                findings.add(
                    &MAP_REGISTRY,
                    "vm_map",
                    at.addr(),
                    || "it is on the list of maps twice",
                );
                break;
            }
            let Some((map, raw)) = Map::read(memory, findings, at, name(roots, at)) else { break };
            maps.all.push(map);
            next = raw.next_map.get();
        }
        // 2. Their entries.
        maps.listed = maps.all.len();
        maps.all.iter_mut().for_each(|map| map.read_entries(memory, findings));
        // 3. Maps that only a root or an entry names.
        let named = roots.named_maps();
        let mut others: Vec<KPtr<VmMap>> =
            named.filter_map(|(_, _, map)| map.get().non_null()).collect();
        others.extend(maps.all.iter().flat_map(submaps));
        while let Some(at) = others.pop() {
            if seen.insert(at.addr())
                && let Some((mut map, _)) = Map::read(memory, findings, at, name(roots, at))
            {
                map.read_entries(memory, findings);
                others.extend(submaps(&map));
                maps.all.push(map);
            }
        }
        maps
    }

    /// The map at `at`.
    pub(super) fn at(&self, at: GuestVirt) -> Option<&Map> {
        self.all.iter().find(|map| map.at == at)
    }
}

fn submaps(map: &Map) -> impl Iterator<Item = KPtr<VmMap>> {
    map.entries.iter().filter(|entry| entry.is_submap()).map(|entry| KPtr::new(entry.object))
}

/// The name of the map at `at`.
fn name(roots: &KernelRoots, at: KPtr<VmMap>) -> &'static str {
    roots.named_maps().find(|(_, _, map)| map.get() == at).map_or(UNNAMED, |(name, ..)| name)
}
