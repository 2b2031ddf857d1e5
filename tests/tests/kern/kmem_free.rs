//! `kmem_free`: everything in a range is freed, whoever owns it.

use vmkern::abi::crash::CrashKind;
use vmkern::inspect::ObjectView;
use vmkern::{GuestVirt, MapId, MapKind, Op, Outcome};
use vmkern_tests::Run;
use vmkern_tests::harness::{in_guest, in_guest_to_be_damaged, in_small_guest};
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};

use crate::{NOWAIT, assert_wired_memory};

/// A system map of 64 pages, with a block over its first `pages`.
fn block(guest: &mut KernGuest, pages: u64) -> (MapId, GuestVirt) {
    let map = guest.kmem_suballoc(MapId::KERNEL, 64 * PAGE, MapKind::System);
    (map, guest.kmem_malloc(map, pages * PAGE, NOWAIT).expect("there is room"))
}

#[test]
fn pages_translations_entry_and_bytes_go_and_every_count_comes_back() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 64 * PAGE, MapKind::System);
        let before = guest.account(map);
        let addr = guest.kmem_malloc(map, 7 * PAGE, NOWAIT).expect("there is room");
        guest.use_memory(addr, 7 * PAGE);
        guest.kmem_free(map, addr, 7 * PAGE);
        assert_eq!(guest.account(map), before);
        assert_eq!(guest.mapped_pages(addr, 7 * PAGE), 0);
    });
}

#[test]
fn an_unaligned_range_is_widened_to_whole_pages_on_both_sides() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 8);
        guest.kmem_free(map, addr.add(2 * PAGE + 4095), 2 * PAGE + 2);
        assert_eq!(guest.pages(map), [(0, 2), (6, 8)]);
        assert_eq!(guest.mapped_pages(addr, 8 * PAGE), 4);
        assert_wired_memory(guest, addr, 2 * PAGE);
        assert_wired_memory(guest, addr.add(6 * PAGE), 2 * PAGE);
    });
}

#[test]
fn size_0_at_an_aligned_address_inside_an_entry_cuts_it_and_frees_nothing() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 8);
        let before = guest.account(map);
        guest.kmem_free(map, addr.add(3 * PAGE), 0);
        assert_eq!(guest.pages(map), [(0, 3), (3, 8)]);
        let after = guest.account(map);
        assert_eq!((after.free, after.wired, after.size), (before.free, before.wired, before.size));
        guest.use_memory(addr, 8 * PAGE);
        // There is nothing to clip at an entry's start, nor in a hole.
        guest.kmem_free(map, addr.add(3 * PAGE), 0);
        guest.kmem_free(map, addr.add(20 * PAGE), 0);
        assert_eq!(guest.pages(map), [(0, 3), (3, 8)]);
        guest.kmem_free(map, addr, 8 * PAGE);
        assert_eq!(guest.stats(map).entries, 0, "both pieces go together");
    });
}

#[test]
fn size_0_at_an_unaligned_address_frees_its_page() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 8);
        guest.kmem_free(map, addr.add(3 * PAGE + 1), 0);
        assert_eq!(guest.pages(map), [(0, 3), (4, 8)]);
    });
}

#[test]
fn part_of_a_block_can_go_from_the_front_the_back_and_the_middle() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 12);
        guest.use_memory(addr, 12 * PAGE);
        guest.kmem_free(map, addr, 2 * PAGE);
        assert_eq!(guest.pages(map), [(2, 12)]);
        guest.kmem_free(map, addr.add(10 * PAGE), 2 * PAGE);
        assert_eq!(guest.pages(map), [(2, 10)]);
        guest.kmem_free(map, addr.add(5 * PAGE), PAGE);
        assert_eq!(guest.pages(map), [(2, 5), (6, 10)]);
        for (page, pages) in [(2, 3), (6, 4)] {
            assert_wired_memory(guest, addr.add(page * PAGE), pages * PAGE);
        }
    });
}

#[test]
fn a_range_over_entries_and_holes_takes_all_that_is_there() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 16);
        for page in [2, 5, 8] {
            guest.kmem_free(map, addr.add(page * PAGE), PAGE);
        }
        guest.kmem_alloc_nofault(map, PAGE).expect("page 2 is free");
        assert_eq!(guest.stats(map).entries, 5);
        guest.kmem_free(map, addr.add(PAGE), 12 * PAGE);
        assert_eq!(guest.pages(map), [(0, 1), (13, 16)]);
        assert_eq!(guest.mapped_pages(addr, 16 * PAGE), 4);
    });
}

#[test]
fn nobody_asks_who_owns_what_is_freed() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 4);
        let other = guest.kmem_malloc(map, 4 * PAGE, NOWAIT).expect("there is room");
        assert_eq!(other, addr.add(4 * PAGE));
        guest.kmem_free(map, addr.add(2 * PAGE), 4 * PAGE);
        assert_eq!(guest.pages(map), [(0, 2), (6, 8)]);
        assert!(!guest.is_mapped(other), "half of the neighbour's block is gone");
    });
}

#[test]
fn freeing_twice_does_nothing_the_second_time() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 4);
        guest.kmem_free(map, addr, 4 * PAGE);
        let before = guest.account(map);
        guest.kmem_free(map, addr, 4 * PAGE);
        assert_eq!(guest.account(map), before);
    });
}

#[test]
fn freeing_twice_takes_the_memory_of_whoever_has_it_by_then() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 4);
        guest.kmem_free(map, addr, 4 * PAGE);
        assert_eq!(guest.kmem_alloc(map, 4 * PAGE), Some(addr));
        guest.kmem_free(map, addr, 4 * PAGE);
        assert_eq!(guest.stats(map).entries, 0);
        let crash = guest.dies_of(Op::Read { addr });
        assert_eq!(crash.kind, CrashKind::PageFault);
        assert_eq!(crash.cr2, addr);
    });
}

#[test]
fn a_range_whose_end_wraps_or_lies_outside_of_the_map_frees_nothing() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 4);
        let before = guest.account(map);
        let stats = guest.stats(map);
        guest.kmem_free(map, addr, u64::MAX);
        guest.kmem_free(map, addr, 0u64.wrapping_sub(addr.get()));
        guest.kmem_free(map, addr.add(PAGE), 0u64.wrapping_sub(PAGE));
        guest.kmem_free(map, stats.max, 64 * PAGE);
        guest.kmem_free(map, GuestVirt::new(0), stats.min.get());
        guest.kmem_free(map, GuestVirt::new(u64::MAX), 1);
        assert_eq!(guest.account(map), before);
        assert_eq!(guest.pages(map), [(0, 4)]);
    });
}

#[test]
fn a_range_that_is_larger_than_the_map_empties_it() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 4);
        let (min, outside) = (guest.stats(map).min, guest.stats(MapId::KMEM));
        guest.kmem_free(map, GuestVirt::new(min.get() - 64 * PAGE), 1024 * PAGE);
        assert_eq!(guest.stats(map).entries, 0);
        assert!(!guest.is_mapped(addr));
        assert_eq!(guest.stats(MapId::KMEM), outside);
    });
}

#[test]
fn the_address_of_another_map_is_outside_and_passed_over() {
    in_guest(|guest| {
        let addr = guest.kmem_alloc(MapId::KERNEL, 2 * PAGE).expect("there is room");
        let before = (guest.account(MapId::KMEM), guest.account(MapId::KERNEL));
        guest.kmem_free(MapId::KMEM, addr, 2 * PAGE);
        assert_eq!((guest.account(MapId::KMEM), guest.account(MapId::KERNEL)), before);
        guest.use_memory(addr, 2 * PAGE);
    });
}

#[test]
fn a_submaps_memory_freed_through_the_parent_is_unmapped_and_lost_and_its_addresses_are_given_away()
{
    in_guest_to_be_damaged(|guest| {
        let (map, addr) = block(guest, 8);
        let (before, parent) = (guest.account(map), guest.account(MapId::KERNEL));
        guest.kmem_free(MapId::KERNEL, addr.add(2 * PAGE), 3 * PAGE);
        // The submap's own account is unchanged, and the pages stay wired.
        let after = guest.account(map);
        assert_eq!(
            (after.wired, after.entries, after.size),
            (before.wired, before.entries, before.size)
        );
        assert_eq!(guest.mapped_pages(addr, 8 * PAGE), 5);
        // The parent has cut the submap's entry in two.
        assert_eq!(guest.account(MapId::KERNEL).entries, parent.entries + 1);
        assert_eq!(guest.account(MapId::KERNEL).size, parent.size - 3 * PAGE);
        assert_eq!(
            guest.kmem_alloc(MapId::KERNEL, 3 * PAGE),
            Some(addr.add(2 * PAGE)),
            "two owners"
        );
    });
}

#[test]
fn what_was_freed_through_the_parent_is_a_hole_for_faults() {
    in_guest(|guest| {
        let (_, addr) = block(guest, 8);
        guest.kmem_free(MapId::KERNEL, addr, PAGE);
        assert_eq!(
            guest.read(addr.add(PAGE)),
            guest.read(addr.add(PAGE)),
            "what is left of it is memory still"
        );
        let crash = guest.dies_of(Op::Read { addr });
        assert_eq!((crash.kind, crash.cr2), (CrashKind::PageFault, addr));
    });
}

#[test]
fn nobody_who_waits_for_room_is_woken() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 4 * PAGE, MapKind::User);
        let addr = guest.kmem_alloc_wait(map, 4 * PAGE).expect("the map is empty");
        guest.blocks(1, Op::KmemAllocWait { map, size: PAGE }, "vmmaps");
        guest.kmem_free(map, addr, 4 * PAGE);
        guest.still_blocked(1);
        assert_eq!(guest.stats(map).size, 0);
        guest.kmem_free_wakeup(map, addr, 0);
        assert_eq!(guest.joined(1), addr);
    });
}

#[test]
fn an_access_through_a_translation_that_was_in_use_faults_afterwards() {
    for pages in [1, 8, 64] {
        in_guest(|guest| {
            let addr = guest.malloc(pages * PAGE);
            let last = addr.add((pages - 1) * PAGE);
            guest.ok(Op::Touch { addr, size: pages * PAGE });
            guest.free(addr, pages * PAGE);
            let crash = guest.dies_of(Op::Write { addr: last, value: 1 });
            assert_eq!((crash.kind, crash.cr2), (CrashKind::PageFault, last));
            assert!(crash.message.contains("page fault: write (not present)"), "{}", crash.message);
        });
    }
}

#[test]
fn an_interrupt_may_free() {
    in_guest(|guest| {
        let (map, addr) = block(guest, 8);
        let op = Op::KmemFree { map, addr: addr.add(PAGE), size: 2 * PAGE };
        assert_eq!(guest.interrupt(op), Outcome::Ok);
        assert_eq!(guest.pages(map), [(0, 1), (3, 8)]);
    });
}

#[test]
fn pages_can_be_freed_one_by_one_when_none_is_left() {
    in_small_guest(|guest| {
        let before = guest.account(MapId::KMEM);
        let (addr, size) = guest.drain(0);
        let middle = addr.add(size / PAGE / 2 * PAGE);
        for page in (0..200).step_by(2).chain((1..200).step_by(2)) {
            guest.free(middle.add(page * PAGE), PAGE);
        }
        guest.free(addr, size);
        assert_eq!(guest.account(MapId::KMEM), before);
    });
}

#[test]
fn wired_memory_windows_and_pageable_memory_go_in_one_sweep() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 64 * PAGE, MapKind::User);
        let before = guest.account(map);
        let wired = guest.kmem_alloc(map, 2 * PAGE).expect("there is room");
        let window = guest.kmem_alloc_nofault(map, 2 * PAGE).expect("there is room");
        let pageable = guest.kmem_alloc_wait(map, 2 * PAGE).expect("there is room");
        guest.use_memory(pageable, 2 * PAGE);
        let objects = [wired, window, pageable].map(|addr| guest.object(map, addr));
        assert!(
            matches!(objects, [ObjectView::Kernel, ObjectView::None, ObjectView::Other(_)]),
            "{objects:?}"
        );
        guest.kmem_free(map, wired, 6 * PAGE);
        let after = guest.account(map);
        assert_eq!((after.entries, after.size), (before.entries, before.size));
        assert_eq!(guest.mapped_pages(wired, 6 * PAGE), 0);
    });
}
