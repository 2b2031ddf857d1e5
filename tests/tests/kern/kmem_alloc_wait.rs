//! `kmem_alloc_wait`: pageable memory, and waits for room.

use vmkern::abi::layout::EntryFlags;
use vmkern::inspect::ObjectView;
use vmkern::{Context, GuestVirt, KernReturn, MapId, MapKind, Op, Outcome};
use vmkern_tests::Run;
use vmkern_tests::harness::{in_guest, in_small_guest};
use vmkern_tests::kern::{ARGUMENTS, Calls as _, KernGuest, PAGE};

/// A pageable map of `pages`.
fn pageable(guest: &mut KernGuest, pages: u64) -> MapId {
    guest.kmem_suballoc(MapId::KERNEL, pages * PAGE, MapKind::User)
}

#[test]
fn the_range_has_an_entry_without_an_object_and_no_page_until_it_is_touched() {
    in_guest(|guest| {
        let map = pageable(guest, 64);
        let before = guest.account(map);
        let addr = guest.kmem_alloc_wait(map, 5 * PAGE - 3).expect("there is room");
        let entry = guest.entry(map, addr);
        assert_eq!((entry.start, entry.end), (addr, addr.add(5 * PAGE)));
        assert_eq!(
            (entry.object, entry.eflags, entry.wired),
            (ObjectView::None, EntryFlags::empty(), 0)
        );
        assert_eq!(guest.mapped_pages(addr, 5 * PAGE), 0);
        let after = guest.account(map);
        assert_eq!((after.free, after.wired), (before.free, before.wired));
    });
}

#[test]
fn a_page_comes_zeroed_at_the_first_touch_alone_and_goes_on_the_active_queue() {
    in_guest(|guest| {
        let map = pageable(guest, 64);
        let addr = guest.kmem_alloc_wait(map, 8 * PAGE).expect("there is room");
        let before = guest.counters();
        assert_eq!(guest.read(addr.add(3 * PAGE + 8)), 0);
        guest.ok(Op::VerifyZero { addr: addr.add(5 * PAGE), size: PAGE });
        let after = guest.counters();
        assert_eq!(guest.mapped_pages(addr, 8 * PAGE), 2);
        assert_eq!(after.v_zfod.get() - before.v_zfod.get(), 2);
        assert_eq!(after.v_active_count.get() - before.v_active_count.get(), 2);
        assert!(matches!(guest.object(map, addr), ObjectView::Other(_)));
        guest.use_memory(addr, 8 * PAGE);
        assert_eq!(guest.mapped_pages(addr, 8 * PAGE), 8);
    });
}

#[test]
fn ranges_that_follow_each_other_are_one_entry_touched_or_not() {
    in_guest(|guest| {
        let map = pageable(guest, 64);
        let first = guest.kmem_alloc_wait(map, 2 * PAGE).expect("there is room");
        guest.kmem_alloc_wait(map, 2 * PAGE).expect("there is room");
        assert_eq!(guest.pages(map), [(0, 4)]);
        guest.use_memory(first, 4 * PAGE);
        // The object that the access has created is extended.
        let third = guest.kmem_alloc_wait(map, 3 * PAGE).expect("there is room");
        assert_eq!(guest.pages(map), [(0, 7)]);
        guest.ok(Op::VerifyZero { addr: third, size: 3 * PAGE });
        guest.ok(Op::Verify { addr: first, size: 4 * PAGE, seed: 4 * PAGE });
    });
}

#[test]
fn what_could_never_fit_gives_null_at_once_even_in_a_full_map() {
    in_guest(|guest| {
        let map = pageable(guest, 8);
        assert_eq!(guest.kmem_alloc_wait(map, 8 * PAGE + 1), None);
        guest.kmem_alloc_wait(map, 8 * PAGE).expect("an exact fit");
        assert_eq!(guest.kmem_alloc_wait(map, 8 * PAGE + 1), None);
        assert_eq!(guest.kmem_alloc_wait(map, u64::MAX), None);
    });
}

#[test]
fn a_system_map_is_refused() {
    in_guest(|guest| {
        for map in [MapId::KERNEL, MapId::KMEM, MapId::BUFFER] {
            let outcome = guest.run(Op::KmemAllocWait { map, size: PAGE });
            assert_eq!(outcome, Outcome::Error(KernReturn::InvalidArgument), "{map:?}");
        }
    });
}

#[test]
fn without_room_it_sleeps_in_vmmaps_until_a_free_wakes_it() {
    in_guest(|guest| {
        let map = pageable(guest, 8);
        let addr = guest.kmem_alloc_wait(map, 8 * PAGE).expect("the map is empty");
        guest.blocks(1, Op::KmemAllocWait { map, size: 3 * PAGE }, "vmmaps");
        guest.ok(Op::Sleep { micros: 3_600_000_000 });
        guest.still_blocked(1);
        guest.kmem_free_wakeup(map, addr.add(4 * PAGE), 3 * PAGE);
        assert_eq!(guest.joined(1), addr.add(4 * PAGE));
        assert_eq!(guest.kmem_alloc_wait(map, 9 * PAGE), None);
    });
}

#[test]
fn it_sleeps_with_the_map_unlocked() {
    in_guest(|guest| {
        let map = pageable(guest, 8);
        let addr = guest.kmem_alloc_wait(map, 6 * PAGE).expect("the map is empty");
        guest.blocks(1, Op::KmemAllocWait { map, size: 3 * PAGE }, "vmmaps");
        let small = guest.kmem_alloc_wait(map, 2 * PAGE).expect("two pages are free");
        assert_eq!(small, addr.add(6 * PAGE));
        guest.use_memory(small, 2 * PAGE);
        guest.kmem_free_wakeup(map, addr, 6 * PAGE);
        assert_eq!(guest.joined(1), addr);
    });
}

#[test]
fn in_a_fragmented_map_it_waits_although_enough_is_free_in_all() {
    in_guest(|guest| {
        let map = pageable(guest, 8);
        let addr = guest.kmem_alloc_wait(map, 8 * PAGE).expect("the map is empty");
        for page in [1, 3, 5] {
            guest.kmem_free_wakeup(map, addr.add(page * PAGE), PAGE);
        }
        guest.blocks(1, Op::KmemAllocWait { map, size: 2 * PAGE }, "vmmaps");
        guest.kmem_free_wakeup(map, addr.add(4 * PAGE), PAGE);
        assert_eq!(guest.joined(1), addr.add(3 * PAGE));
    });
}

#[test]
fn a_free_wakes_everybody_and_who_finds_no_room_sleeps_again() {
    in_guest(|guest| {
        let map = pageable(guest, 8);
        let addr = guest.kmem_alloc_wait(map, 8 * PAGE).expect("the map is empty");
        for (thread, pages) in [(1, 8), (2, 3), (3, 8), (4, 2)] {
            guest.blocks(thread, Op::KmemAllocWait { map, size: pages * PAGE }, "vmmaps");
        }
        // The first waiter needs more than this; one wakeup serves two others, which came later.
        guest.kmem_free_wakeup(map, addr, 6 * PAGE);
        assert_eq!((guest.joined(2), guest.joined(4)), (addr, addr.add(3 * PAGE)));
        guest.still_blocked(1);
        guest.still_blocked(3);
        guest.kmem_free_wakeup(map, addr, 8 * PAGE);
        assert_eq!(guest.joined(1), addr, "of two equals the one that came first");
        guest.still_blocked(3);
        guest.kmem_free_wakeup(map, addr, 8 * PAGE);
        assert_eq!(guest.joined(3), addr);
    });
}

#[test]
fn a_request_for_the_whole_map_waits_until_it_is_empty_and_starves_behind_small_ones() {
    in_guest(|guest| {
        let map = pageable(guest, 4);
        let mut held = guest.kmem_alloc_wait(map, PAGE).expect("the map is empty");
        guest.blocks(1, Op::KmemAllocWait { map, size: 4 * PAGE }, "vmmaps");
        for _ in 0..20 {
            let next = guest.kmem_alloc_wait(map, PAGE).expect("there is room for small ones");
            guest.kmem_free_wakeup(map, held, PAGE);
            guest.still_blocked(1);
            held = next;
        }
        guest.kmem_free_wakeup(map, held, PAGE);
        assert_eq!(guest.joined(1), guest.stats(map).min);
        assert_eq!(guest.stats(map).max_free, 0);
    });
}

#[test]
fn exec_map_has_room_for_16_argument_lists_and_the_17th_waits() {
    in_guest(|guest| {
        let map = MapId::EXEC;
        let held: Vec<_> = (0..16)
            .map(|_| guest.kmem_alloc_wait(map, ARGUMENTS).expect("there is room"))
            .collect();
        assert_eq!(guest.stats(map).max_free, 16 * PAGE, "too little for another");
        guest.blocks(1, Op::KmemAllocWait { map, size: ARGUMENTS }, "vmmaps");
        guest.kmem_free_wakeup(map, held[9], ARGUMENTS);
        assert_eq!(guest.joined(1), held[9]);
        for addr in held {
            guest.kmem_free_wakeup(map, addr, ARGUMENTS);
        }
        assert_eq!(guest.stats(map).entries, 0);
    });
}

#[test]
fn an_interrupt_that_would_have_to_wait_for_room_is_a_panic() {
    in_guest(|guest| {
        let map = pageable(guest, 8);
        guest.kmem_alloc_wait(map, 8 * PAGE).expect("the map is empty");
        let crash = guest.dies_of_in(Context::Interrupt, Op::KmemAllocWait { map, size: PAGE });
        assert!(crash.message.contains("interrupt"), "{}", crash.message);
    });
}

#[test]
fn it_takes_room_even_when_no_page_is_left() {
    in_small_guest(|guest| {
        let map = pageable(guest, 64);
        let (addr, size) = guest.drain(0);
        let range = guest.kmem_alloc_wait(map, 64 * PAGE).expect("room does not depend on pages");
        guest.free(addr, size);
        guest.use_memory(range, 64 * PAGE);
    });
}

#[test]
fn touched_by_nobody_it_reads_as_zeros_also_where_memory_was_dirty() {
    in_small_guest(|guest| {
        let (addr, size) = guest.drain(60);
        guest.ok(Op::Fill { addr, size, seed: 0xdead });
        guest.free(addr, size);
        let map = MapId::EXEC;
        let range: GuestVirt = guest.kmem_alloc_wait(map, 200 * PAGE).expect("there is room");
        guest.ok(Op::VerifyZero { addr: range, size: 200 * PAGE });
    });
}
