//! `kmem_free_wakeup`: a free that wakes threads that wait for room.

use vmkern::{GuestVirt, MapId, MapKind, Op};
use vmkern_tests::Run;
use vmkern_tests::harness::in_guest;
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};

/// A pageable map of 8 pages, all of it taken.
fn full(guest: &mut KernGuest) -> (MapId, GuestVirt) {
    let map = guest.kmem_suballoc(MapId::KERNEL, 8 * PAGE, MapKind::User);
    (map, guest.kmem_alloc_wait(map, 8 * PAGE).expect("the map is empty"))
}

#[test]
fn the_pages_of_a_touched_range_are_freed_and_its_object_with_them() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 8 * PAGE, MapKind::User);
        let count = |guest: &mut KernGuest| guest.counters().v_active_count.get();
        let (queued, before) = (count(guest), guest.account(map));
        for _ in 0..2 {
            let addr = guest.kmem_alloc_wait(map, 8 * PAGE).expect("the map is empty");
            guest.use_memory(addr, 8 * PAGE);
            assert_eq!(count(guest), queued + 8);
            guest.kmem_free_wakeup(map, addr, 8 * PAGE);
            assert_eq!((count(guest), guest.account(map)), (queued, before));
            assert_eq!(guest.mapped_pages(addr, 8 * PAGE), 0);
        }
    });
}

#[test]
fn part_of_a_range_goes_with_its_pages_and_the_rest_keeps_its_contents() {
    in_guest(|guest| {
        let (map, addr) = full(guest);
        guest.ok(Op::Fill { addr, size: 8 * PAGE, seed: 3 });
        guest.kmem_free_wakeup(map, addr.add(2 * PAGE), 3 * PAGE);
        assert_eq!(guest.pages(map), [(0, 2), (5, 8)]);
        assert_eq!(guest.mapped_pages(addr, 8 * PAGE), 5);
        guest.ok(Op::Verify { addr, size: 2 * PAGE, seed: 3 });
        guest.ok(Op::Verify { addr: addr.add(5 * PAGE), size: 3 * PAGE, seed: 3 });
        // The hole is allocated again, with new pages.
        assert_eq!(guest.kmem_alloc_wait(map, 3 * PAGE), Some(addr.add(2 * PAGE)));
        guest.ok(Op::VerifyZero { addr: addr.add(2 * PAGE), size: 3 * PAGE });
    });
}

#[test]
fn an_unaligned_range_is_widened_to_whole_pages() {
    in_guest(|guest| {
        let (map, addr) = full(guest);
        guest.kmem_free_wakeup(map, addr.add(PAGE - 1), 2);
        assert_eq!(guest.pages(map), [(2, 8)]);
        guest.kmem_free_wakeup(map, addr.add(4 * PAGE + 1), 0);
        assert_eq!(guest.pages(map), [(2, 4), (5, 8)]);
    });
}

#[test]
fn it_wakes_also_when_there_was_nothing_to_free() {
    in_guest(|guest| {
        let (map, addr) = full(guest);
        guest.blocks(1, Op::KmemAllocWait { map, size: PAGE }, "vmmaps");
        guest.kmem_free(map, addr, PAGE);
        guest.still_blocked(1);
        guest.kmem_free_wakeup(map, addr, PAGE);
        assert_eq!(guest.joined(1), addr);
    });
}

#[test]
fn it_wakes_also_when_its_range_wraps_or_lies_outside() {
    in_guest(|guest| {
        for (addr, size) in [(GuestVirt::new(0), PAGE), (GuestVirt::new(u64::MAX - 5), 100)] {
            let (map, range) = full(guest);
            guest.blocks(1, Op::KmemAllocWait { map, size: PAGE }, "vmmaps");
            guest.kmem_free(map, range, 2 * PAGE);
            guest.kmem_free_wakeup(map, addr, size);
            assert_eq!(guest.joined(1), range);
        }
    });
}

#[test]
fn it_wakes_nobody_who_waits_for_another_map() {
    in_guest(|guest| {
        let (map, addr) = full(guest);
        let (other, range) = full(guest);
        guest.blocks(1, Op::KmemAllocWait { map, size: PAGE }, "vmmaps");
        guest.kmem_free(map, addr, PAGE);
        guest.kmem_free_wakeup(other, range, 8 * PAGE);
        guest.still_blocked(1);
        guest.kmem_free_wakeup(map, addr, 0);
        assert_eq!(guest.joined(1), addr);
    });
}

#[test]
fn who_must_sleep_again_is_woken_by_the_next_free_as_well() {
    in_guest(|guest| {
        let (map, addr) = full(guest);
        guest.blocks(1, Op::KmemAllocWait { map, size: 4 * PAGE }, "vmmaps");
        for page in [0, 2, 1] {
            guest.kmem_free_wakeup(map, addr.add(page * PAGE), PAGE);
            guest.still_blocked(1);
        }
        guest.kmem_free_wakeup(map, addr.add(3 * PAGE), PAGE);
        assert_eq!(guest.joined(1), addr);
    });
}

#[test]
fn freeing_twice_does_nothing_the_second_time() {
    in_guest(|guest| {
        let (map, addr) = full(guest);
        guest.use_memory(addr, 8 * PAGE);
        guest.kmem_free_wakeup(map, addr, 4 * PAGE);
        let before = guest.account(map);
        guest.kmem_free_wakeup(map, addr, 4 * PAGE);
        assert_eq!(guest.account(map), before);
    });
}

#[test]
fn a_range_larger_than_the_map_empties_it_and_nothing_else() {
    in_guest(|guest| {
        let (map, addr) = full(guest);
        let (other, _) = full(guest);
        guest.kmem_free_wakeup(map, GuestVirt::new(addr.get() - 100 * PAGE), 1000 * PAGE);
        assert_eq!(guest.stats(map).entries, 0);
        assert_eq!(guest.stats(other).size, 8 * PAGE);
    });
}
