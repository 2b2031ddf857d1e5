//! Maps and their entries.

use core::mem::offset_of;
use std::collections::HashSet;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::MapId;
use vmkern_abi::layout::{EntryFlags, KernelRoots, MapNode, Protection, VmMap, VmMapEntry};

use super::roots;
use crate::InspectError;
use crate::view::View;

const MAP: &str = "vm_map";
const ENTRY: &str = "vm_map_entry";
const NODE: &str = "map index root";

/// Size and use of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapStats {
    /// First address.
    pub min: GuestVirt,
    /// First address past the map.
    pub max: GuestVirt,
    /// Bytes in use.
    pub size: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of the largest hole.
    pub max_free: u64,
}

/// What an entry refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectView {
    /// Nothing yet.
    None,
    /// The kernel object.
    Kernel,
    /// The object of kmem_map.
    Kmem,
    /// Another map.
    SubMap(MapId),
    /// Another object, at this address.
    Other(GuestVirt),
}

/// An entry of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryView {
    /// First address.
    pub start: GuestVirt,
    /// First address past the entry.
    pub end: GuestVirt,
    /// Flags.
    pub eflags: EntryFlags,
    /// How often it is wired.
    pub wired: u32,
    /// The access that it allows.
    pub protection: Protection,
    /// What it refers to.
    pub object: ObjectView,
}

/// The address of map `id`, and a copy of the map, checked by itself.
fn map(view: &View<'_>, id: MapId) -> Result<(KPtr<VmMap>, VmMap), InspectError> {
    let (_, roots) = roots(view)?;
    let at = if id.0 < MapId::NAMED_MAX {
        let slot = roots.map_slot(id);
        slot.and_then(|slot| slot.get().non_null()).ok_or(InspectError::NoSuchMap(id))?
    } else {
        listed(view, &roots, id)?
    };
    let map = view.copy(MAP, at)?;
    if map.min_offset() > map.max_offset() {
        let problem =
            format!("it ends at {}, below its start {}", map.max_offset(), map.min_offset());
        return Err(InspectError::damaged(MAP, at.addr(), problem));
    }
    Ok((at, map))
}

/// The address of a map that `id` names by its address. It must be on the kernel's list of maps.
fn listed(view: &View<'_>, roots: &KernelRoots, id: MapId) -> Result<KPtr<VmMap>, InspectError> {
    let mut seen = HashSet::new();
    let mut next = roots.map_list.get();
    while let Some(at) = next.non_null() {
        if at.addr().get() == id.0 {
            return Ok(at);
        }
        if !seen.insert(at.addr()) {
            return Err(InspectError::damaged(MAP, at.addr(), "it is on the list of maps twice"));
        }
        next = view.copy(MAP, at)?.next_map.get();
    }
    Err(InspectError::NoSuchMap(id))
}

pub(super) fn stats(view: &View<'_>, id: MapId) -> Result<MapStats, InspectError> {
    let (at, map) = map(view, id)?;
    let (min, max) = (map.min_offset(), map.max_offset());
    let capacity = max.since(min);
    let root = map
        .index
        .root
        .get()
        .non_null()
        .ok_or_else(|| InspectError::damaged(MAP, at.addr(), "its index has no root"))?;
    let max_free = view.copy::<MapNode>(NODE, root)?.max_gap();
    let size = map.size.get();
    if size > capacity || max_free > capacity {
        let problem =
            format!("{size:#x} bytes used and a hole of {max_free:#x} in a map of {capacity:#x}");
        return Err(InspectError::damaged(MAP, at.addr(), problem));
    }
    Ok(MapStats { min, max, size, entries: map.nentries.get(), max_free })
}

pub(super) fn entries(view: &View<'_>, id: MapId) -> Result<Vec<EntryView>, InspectError> {
    // 1. The map, and where its list begins and ends.
    let (roots_at, roots) = roots(view)?;
    let (map_at, map) = map(view, id)?;
    let header = KPtr::<VmMapEntry>::new(map_at.addr());
    let (mut previous, mut at, mut below) = (header, map.header.next.get(), map.min_offset());
    let mut entries = Vec::new();
    // 2. Addresses ascend, each entry is at least a page long, and the count is checked. So a cycle
    //    is detected in its first round.
    while at != header {
        let broken = |problem: String| Err(InspectError::damaged(ENTRY, at.addr(), problem));
        if entries.len() as u64 >= map.nentries.get() {
            return broken(format!(
                "the list continues after {} entries, the map's own count",
                map.nentries.get()
            ));
        }
        let entry = view.copy(ENTRY, at)?;
        let (start, end) = (entry.start.get(), entry.end.get());
        if entry.prev.get() != previous {
            return broken(format!(
                "its prev is {:?}, but the list came from {previous:?}",
                entry.prev.get()
            ));
        }
        // 3. The range must lie above the previous one and within the map.
        if start < below
            || end <= start
            || end > map.max_offset()
            || !start.is_page_aligned()
            || !end.is_page_aligned()
        {
            return broken(format!(
                "its range [{start}, {end}) does not fit between {below} and {}",
                map.max_offset()
            ));
        }
        let eflags = entry.eflags.get();
        let object = object(entry.object.get().addr(), eflags, roots_at, &roots);
        let (wired, protection) = (entry.wired_count.get(), entry.protection.get());
        entries.push(EntryView { start, end, eflags, wired, protection, object });
        (previous, at, below) = (at, entry.next.get(), end);
    }
    // 4. Compare the number with the map's count.
    check_count(map_at, &map, entries.len())?;
    Ok(entries)
}

/// Fails unless `map` counts the `found` entries that its list has.
fn check_count(map_at: KPtr<VmMap>, map: &VmMap, found: usize) -> Result<(), InspectError> {
    if found as u64 != map.nentries.get() {
        let problem = format!("it counts {} entries, but its list has {found}", map.nentries.get());
        return Err(InspectError::damaged(MAP, map_at.addr(), problem));
    }
    Ok(())
}

fn object(
    at: GuestVirt,
    eflags: EntryFlags,
    roots_at: KPtr<KernelRoots>,
    roots: &KernelRoots,
) -> ObjectView {
    let field = |offset: usize| roots_at.addr().checked_add(offset as u64);
    if eflags.contains(EntryFlags::IS_SUB_MAP) {
        let named = roots.named_maps().find(|(_, _, map)| map.get().addr() == at);
        return ObjectView::SubMap(named.map_or(MapId(at.get()), |(_, id, _)| id));
    }
    match at {
        at if at.get() == 0 => ObjectView::None,
        at if Some(at) == field(offset_of!(KernelRoots, kernel_object)) => ObjectView::Kernel,
        at if Some(at) == field(offset_of!(KernelRoots, kmem_object)) => ObjectView::Kmem,
        at => ObjectView::Other(at),
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::GuestPhys;
    use vmkern_abi::layout::VmMeter;
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::testing::{TestRam, mapped_ram, view};

    const PAGE0: u64 = 0x4000_0000;
    const ROOTS: KPtr<KernelRoots> = KPtr::new(GuestVirt::new(PAGE0));
    const KMEM: KPtr<VmMap> = KPtr::new(GuestVirt::new(PAGE0 + 0x1000));
    const BASE: u64 = 0xffff_ff80_0000_0000;

    fn entry_at(index: u64) -> KPtr<VmMapEntry> {
        KPtr::new(GuestVirt::new(PAGE0 + 0x1400 + index * 64))
    }

    fn put<T: IntoBytes + FromBytes>(ram: &TestRam, at: u64, mut value: T) {
        let frame = [32, 33, 40][usize::try_from((at - PAGE0) / 4096).expect("three pages")];
        ram.write(GuestPhys::from_pfn(frame).add(at % 4096), value.as_mut_bytes())
            .expect("it is RAM");
    }

    /// A kmem_map of 16 pages with an entry at page 1 and one at pages 3 to 4.
    fn put_map(ram: &TestRam, edit: impl Fn(&VmMap, &[VmMapEntry; 2])) {
        let roots = KernelRoots { meter: VmMeter::default(), ..KernelRoots::default() };
        roots.abi_version.set(vmkern_abi::ABI_VERSION);
        roots.maps[1].set(KMEM);
        put(ram, PAGE0, roots);
        let map = VmMap::default();
        let header = KPtr::new(KMEM.addr());
        map.header.start.set(GuestVirt::new(BASE));
        map.header.end.set(GuestVirt::new(BASE + 0x1_0000));
        map.header.next.set(entry_at(0));
        map.header.prev.set(entry_at(1));
        map.nentries.set(2);
        map.size.set(0x3000);
        map.index.root.set(KPtr::new(GuestVirt::new(PAGE0 + 0x2000)));
        let entries = [(0x1000, 0x2000), (0x3000, 0x5000)].map(|(start, end)| {
            let entry = VmMapEntry::default();
            entry.start.set(GuestVirt::new(BASE + start));
            entry.end.set(GuestVirt::new(BASE + end));
            entry
        });
        entries[0].prev.set(header);
        entries[0].next.set(entry_at(1));
        entries[1].prev.set(entry_at(0));
        entries[1].next.set(header);
        let kmem_object = ROOTS.addr().add(offset_of!(KernelRoots, kmem_object) as u64);
        entries[0].object.set(KPtr::new(kmem_object));
        edit(&map, &entries);
        put(ram, KMEM.addr().get(), map);
        for (index, entry) in (0..).zip(entries) {
            put(ram, entry_at(index).addr().get(), entry);
        }
        let node = MapNode::default();
        node.gaps[1].set(0xb);
        put(ram, PAGE0 + 0x2000, node);
    }

    #[test]
    fn a_sound_map_is_read_in_order() {
        let ram = mapped_ram().with_roots(ROOTS);
        put_map(&ram, |_, _| {});
        let entries = entries(&view(&ram), MapId::KMEM).expect("the map is sound");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].object, ObjectView::Kmem);
        assert_eq!(entries[1].object, ObjectView::None);
        let stats = stats(&view(&ram), MapId::KMEM).expect("the map is sound");
        assert_eq!((stats.size, stats.entries, stats.max_free), (0x3000, 2, 0xb000));
        assert_eq!(
            super::stats(&view(&ram), MapId::EXEC),
            Err(InspectError::NoSuchMap(MapId::EXEC))
        );
        assert_eq!(
            super::stats(&view(&ram), MapId(u64::MAX)),
            Err(InspectError::NoSuchMap(MapId(u64::MAX)))
        );
    }

    #[test]
    fn a_map_named_by_address_is_believed_only_if_it_is_on_the_kernels_list() {
        let ram = mapped_ram().with_roots(ROOTS);
        let by_address = MapId(KMEM.addr().get());
        put_map(&ram, |_, _| {});
        assert_eq!(stats(&view(&ram), by_address), Err(InspectError::NoSuchMap(by_address)));
        let roots = || {
            let roots = KernelRoots { meter: VmMeter::default(), ..KernelRoots::default() };
            roots.abi_version.set(vmkern_abi::ABI_VERSION);
            roots.map_list.set(KMEM);
            roots
        };
        put(&ram, PAGE0, roots());
        assert_eq!(stats(&view(&ram), by_address).map(|stats| stats.entries), Ok(2));
        assert_eq!(entries(&view(&ram), by_address).map(|entries| entries.len()), Ok(2));
        let inside = MapId(KMEM.addr().get() + 64);
        assert_eq!(stats(&view(&ram), inside), Err(InspectError::NoSuchMap(inside)));
        put_map(&ram, |map, _| map.next_map.set(KMEM));
        put(&ram, PAGE0, roots());
        assert!(matches!(stats(&view(&ram), inside), Err(InspectError::Damaged { .. })));
    }

    #[test]
    fn a_damaged_map_is_an_error_and_never_an_endless_loop() {
        type Edit = fn(&VmMap, &[VmMapEntry; 2]);
        let damages: [Edit; 7] = [
            |_, entries| entries[1].next.set(entry_at(0)),
            |_, entries| entries[1].next.set(entry_at(1)),
            |_, entries| entries[0].prev.set(entry_at(1)),
            |_, entries| entries[1].start.set(GuestVirt::new(BASE)),
            |_, entries| entries[1].end.set(GuestVirt::new(BASE + 0x2_0000)),
            |map, _| map.nentries.set(u64::MAX),
            |map, _| map.header.next.set(KPtr::new(GuestVirt::new(0xdead_0000_0000_0000))),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let ram = mapped_ram().with_roots(ROOTS);
            put_map(&ram, damage);
            assert!(entries(&view(&ram), MapId::KMEM).is_err(), "damage {number} went unseen");
        }
    }
}
