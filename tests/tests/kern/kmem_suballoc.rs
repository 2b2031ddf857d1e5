//! `kmem_suballoc`: a map over a range of another map.

use vmkern::abi::layout::EntryFlags;
use vmkern::inspect::ObjectView;
use vmkern::{KernReturn, MapId, MapKind, Op, Outcome};
use vmkern_tests::Run;
use vmkern_tests::harness::{in_guest, in_small_guest};
use vmkern_tests::kern::{Calls as _, PAGE};

use crate::NOWAIT;

const MAP: MapId = MapId::KERNEL;

#[test]
fn the_parent_has_one_entry_for_it_and_the_map_is_empty_between_the_same_ends() {
    in_guest(|guest| {
        let before = guest.account(MAP);
        let map = guest.kmem_suballoc(MAP, 10 * PAGE, MapKind::User);
        let stats = guest.stats(map);
        assert_eq!((stats.max.since(stats.min), stats.size, stats.entries), (10 * PAGE, 0, 0));
        assert_eq!(stats.max_free, 10 * PAGE);
        let entry = guest.entry(MAP, stats.min);
        assert_eq!((entry.start, entry.end), (stats.min, stats.max));
        assert_eq!((entry.object, entry.eflags), (ObjectView::SubMap(map), EntryFlags::IS_SUB_MAP));
        let after = guest.account(MAP);
        assert_eq!((after.entries, after.size), (before.entries + 1, before.size + 10 * PAGE));
    });
}

#[test]
fn the_size_is_rounded_up_and_the_lowest_room_is_taken_aligned_to_pages_only() {
    in_guest(|guest| {
        let hole = guest.kmem_alloc_nofault(MAP, PAGE).expect("there is room");
        let first = guest.kmem_suballoc(MAP, 3 * PAGE - 1, MapKind::User);
        let second = guest.kmem_suballoc(MAP, 1, MapKind::User);
        let (first, second) = (guest.stats(first), guest.stats(second));
        assert_eq!((first.min, first.max), (hole.add(PAGE), hole.add(4 * PAGE)));
        assert_eq!((second.min, second.max), (hole.add(4 * PAGE), hole.add(5 * PAGE)));
    });
}

#[test]
fn a_submap_stays_an_entry_of_its_own_between_submaps_and_plain_ranges() {
    in_guest(|guest| {
        let parent = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        guest.kmem_alloc_nofault(parent, PAGE).expect("there is room");
        guest.kmem_suballoc(parent, 2 * PAGE, MapKind::System);
        guest.kmem_suballoc(parent, 2 * PAGE, MapKind::User);
        guest.kmem_alloc_nofault(parent, PAGE).expect("there is room");
        guest.kmem_alloc_nofault(parent, PAGE).expect("there is room");
        assert_eq!(guest.pages(parent), [(0, 1), (1, 3), (3, 5), (5, 7)]);
    });
}

#[test]
fn submaps_nest_and_each_level_serves() {
    in_guest(|guest| {
        let mut map = MAP;
        for level in 0..5_u64 {
            map = guest.kmem_suballoc(map, (64 - 8 * level) * PAGE, MapKind::System);
        }
        let addr = guest.kmem_malloc(map, 32 * PAGE, NOWAIT).expect("an exact fit");
        guest.use_memory(addr, 32 * PAGE);
        assert_eq!(guest.kmem_malloc(map, 1, NOWAIT), None);
        guest.kmem_free(map, addr, 32 * PAGE);
    });
}

#[test]
fn the_page_tables_of_the_whole_range_come_with_a_submap_of_kernel_map() {
    in_guest(|guest| {
        guest.take_boot_tables();
        let before = guest.free_pages();
        let map = guest.kmem_suballoc(MAP, 16 << 20, MapKind::System);
        assert_eq!(before - guest.free_pages(), 1 + 8, "the map's page and its page tables");
        let (min, free) = (guest.stats(map).min, guest.free_pages());
        for megabyte in [0, 5, 15] {
            let at = min.add(megabyte << 20);
            guest.ok(Op::PmapQenter { addr: at, count: 1 });
            guest.ok(Op::PmapQremove { addr: at, count: 1 });
        }
        assert_eq!(guest.free_pages(), free, "no page table was made");
    });
}

#[test]
fn its_kind_decides_which_functions_may_use_it() {
    in_guest(|guest| {
        let refused = Outcome::Error(KernReturn::InvalidArgument);
        let user = guest.kmem_suballoc(MAP, 8 * PAGE, MapKind::User);
        let system = guest.kmem_suballoc(MAP, 8 * PAGE, MapKind::System);
        assert_eq!(guest.run(Op::KmemMalloc { map: user, size: PAGE, flags: NOWAIT }), refused);
        assert_eq!(guest.run(Op::KmemAllocWait { map: system, size: PAGE }), refused);
        assert!(guest.kmem_alloc_wait(user, PAGE).is_some());
        assert!(guest.kmem_malloc(system, PAGE, NOWAIT).is_some());
    });
}

#[test]
fn without_room_it_panics_bad_status_return_of_3() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 8 * PAGE, MapKind::User);
        let crash = guest.dies_of(Op::KmemSuballoc {
            parent: map,
            size: 8 * PAGE + 1,
            kind: MapKind::User,
        });
        assert_eq!(crash.message, "kmem_suballoc: bad status return of 3");
    });
}

#[test]
fn a_size_of_0_and_one_that_wraps_panic_bad_status_return_of_1() {
    for size in [0, u64::MAX, u64::MAX - 4094] {
        in_guest(|guest| {
            let crash = guest.dies_of(Op::KmemSuballoc { parent: MAP, size, kind: MapKind::User });
            assert_eq!(crash.message, "kmem_suballoc: bad status return of 1", "{size:#x}");
        });
    }
}

#[test]
fn larger_than_kernel_map_is_no_space() {
    in_guest(|guest| {
        let crash =
            guest.dies_of(Op::KmemSuballoc { parent: MAP, size: 1 << 40, kind: MapKind::User });
        assert_eq!(crash.message, "kmem_suballoc: bad status return of 3");
    });
}

#[test]
fn behind_a_plain_range_of_a_pageable_map_it_panics_unable_to_change_range() {
    // The new range merges with the plain one before it; clipping it off again gives both an
    // object, which a submap must not have.
    in_guest(|guest| {
        let parent = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::User);
        guest.kmem_alloc_wait(parent, PAGE).expect("there is room");
        let crash = guest.dies_of(Op::KmemSuballoc { parent, size: PAGE, kind: MapKind::User });
        assert_eq!(crash.message, "kmem_suballoc: unable to change range to submap");
    });
}

#[test]
fn without_a_page_for_the_map_it_waits_in_vmwait() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let parent = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let (addr, size) = guest.drain(0);
        guest.blocks(
            1,
            Op::KmemSuballoc { parent, size: 8 * PAGE, kind: MapKind::System },
            "vmwait",
        );
        guest.free(addr, size);
        let map = MapId(guest.joined(1).get());
        assert!(guest.kmem_malloc(map, 8 * PAGE, NOWAIT).is_some());
    });
}

#[test]
fn freed_through_its_parent_it_is_unlinked_and_keeps_its_own_entries() {
    in_guest(|guest| {
        let before = guest.stats(MAP);
        let map = guest.kmem_suballoc(MAP, 8 * PAGE, MapKind::System);
        let addr = guest.kmem_alloc_nofault(map, 3 * PAGE).expect("there is room");
        let min = guest.stats(map).min;
        guest.kmem_free(MAP, min, 8 * PAGE);
        let after = guest.stats(MAP);
        assert_eq!((after.entries, after.size), (before.entries, before.size));
        assert_eq!(guest.pages(map), [(0, 3)], "the submap has not been told");
        assert_eq!(
            guest.kmem_alloc_nofault(MAP, PAGE),
            Some(addr),
            "the addresses are the parent's again"
        );
    });
}
