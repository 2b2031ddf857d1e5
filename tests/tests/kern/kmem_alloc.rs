//! `kmem_alloc`: wired zeroed memory, and waits for pages.

use vmkern::abi::layout::{EntryFlags, Protection};
use vmkern::inspect::ObjectView;
use vmkern::{Context, MapId, MapKind, Op, Outcome};
use vmkern_tests::Run;
use vmkern_tests::harness::{in_guest, in_small_guest, in_small_guest_left_blocked};
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};

use crate::{NOWAIT, assert_wired_memory};

const MAP: MapId = MapId::KERNEL;

#[test]
fn the_range_is_an_entry_of_kernel_object_wired_once_with_every_page_mapped() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let before = guest.account(map);
        let addr = guest.kmem_alloc(map, 5 * PAGE).expect("there is room");
        let entry = guest.entry(map, addr);
        assert_eq!((entry.start, entry.end), (addr, addr.add(5 * PAGE)));
        assert_eq!(
            (entry.object, entry.eflags, entry.wired),
            (ObjectView::Kernel, EntryFlags::empty(), 1)
        );
        assert_eq!(entry.protection, Protection::ALL);
        assert_wired_memory(guest, addr, 5 * PAGE);
        guest.ok(Op::VerifyZero { addr, size: 5 * PAGE });
        guest.use_memory(addr, 5 * PAGE);
        let after = guest.account(map);
        assert!(
            after.wired >= before.wired + 5
                && after.free + after.wired == before.free + before.wired
        );
        guest.kmem_free(map, addr, 5 * PAGE);
        assert_eq!(guest.account(map), before, "all of it comes back");
    });
}

#[test]
fn the_size_is_rounded_up_to_pages() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        for (size, pages) in [(1, 1), (PAGE, 1), (PAGE + 1, 2), (3 * PAGE - 1, 3)] {
            let before = guest.stats(map).size;
            let addr = guest.kmem_alloc(map, size).expect("there is room");
            assert_eq!(guest.stats(map).size - before, pages * PAGE, "{size} bytes");
            assert_wired_memory(guest, addr, pages * PAGE);
        }
    });
}

#[test]
fn memory_is_zero_whatever_the_pages_held_before() {
    in_small_guest(|guest| {
        // All but a few of the pages are dirty afterwards.
        let (addr, size) = guest.drain(100);
        guest.ok(Op::Fill { addr, size, seed: 0xdead });
        guest.free(addr, size);
        let half = size / 2;
        let addr = guest.kmem_alloc(MAP, half).expect("there is room");
        guest.ok(Op::VerifyZero { addr, size: half });
        guest.kmem_free(MAP, addr, half);
    });
}

#[test]
fn neighbours_wired_alike_are_one_entry() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let first = guest.kmem_alloc(map, 2 * PAGE).expect("there is room");
        let second = guest.kmem_alloc(map, 3 * PAGE).expect("there is room");
        assert_eq!(second, first.add(2 * PAGE));
        assert_eq!(guest.pages(map), [(0, 5)]);
        // Entries of another object do not merge with them.
        guest.kmem_malloc(map, PAGE, NOWAIT).expect("there is room");
        assert_eq!(guest.pages(map), [(0, 5), (5, 6)]);
    });
}

#[test]
fn a_hole_between_two_blocks_is_filled_and_all_three_are_one_entry() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let addr = guest.kmem_alloc(map, 6 * PAGE).expect("there is room");
        guest.kmem_free(map, addr.add(2 * PAGE), 2 * PAGE);
        assert_eq!(guest.pages(map), [(0, 2), (4, 6)]);
        assert_eq!(guest.kmem_alloc(map, 2 * PAGE), Some(addr.add(2 * PAGE)));
        assert_eq!(guest.pages(map), [(0, 6)]);
    });
}

#[test]
fn without_room_it_gives_null_at_once_and_asks_nobody() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 8 * PAGE, MapKind::System);
        assert_eq!(guest.kmem_alloc(map, 8 * PAGE + 1), None);
        let addr = guest.kmem_alloc(map, 8 * PAGE).expect("an exact fit");
        let asked = |guest: &mut KernGuest| {
            (guest.counters().ticks.get(), guest.counters().lowmem_events.get())
        };
        let before = asked(guest);
        assert_eq!(guest.kmem_alloc(map, 1), None);
        guest.kmem_free(map, addr.add(PAGE), PAGE);
        guest.kmem_free(map, addr.add(3 * PAGE), PAGE);
        assert_eq!(guest.kmem_alloc(map, 2 * PAGE), None, "two pages are free, but not together");
        assert_eq!(asked(guest), before);
    });
}

#[test]
fn in_any_map_its_pages_are_kernel_objects() {
    in_guest(|guest| {
        for map in [MapId::KERNEL, MapId::KMEM, MapId::EXEC, MapId::BUFFER] {
            let addr = guest.kmem_alloc(map, 2 * PAGE).expect("there is room");
            assert_eq!(guest.object(map, addr), ObjectView::Kernel, "{map:?}");
            assert_wired_memory(guest, addr, 2 * PAGE);
            guest.kmem_free(map, addr, 2 * PAGE);
            assert_eq!(guest.mapped_pages(addr, 2 * PAGE), 0);
        }
    });
}

#[test]
fn page_tables_grow_across_2_mib_and_1_gib_of_kernel_map() {
    in_guest(|guest| {
        let base = guest.kmem_alloc_nofault(MAP, PAGE).expect("there is room");
        for span in [1_u64 << 21, 1 << 30] {
            // Up to one page below the next boundary.
            let below = (base.get() + 2 * PAGE).next_multiple_of(span) - PAGE;
            let gap = below - base.get() - PAGE;
            let filler = guest.kmem_alloc_nofault(MAP, gap).expect("there is room");
            let addr = guest.kmem_alloc(MAP, 3 * PAGE).expect("there is room");
            assert!(
                (addr.get() / span) < (addr.get() + 2 * PAGE) / span,
                "{addr} does not cross {span:#x}"
            );
            assert_wired_memory(guest, addr, 3 * PAGE);
            guest.use_memory(addr, 3 * PAGE);
            guest.kmem_free(MAP, addr, 3 * PAGE);
            guest.kmem_free(MAP, filler, gap);
        }
    });
}

#[test]
fn it_waits_in_vmwait_at_v_free_reserved_and_goes_on_when_pages_come() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let (addr, size) = guest.drain(200);
        let reserved = guest.counters().v_free_reserved.get();
        guest.blocks(1, Op::KmemAlloc { map: MAP, size: 300 * PAGE }, "vmwait");
        assert_eq!(guest.free_pages(), reserved, "NORMAL requests stop there");
        guest.free(addr, size);
        let got = guest.joined(1);
        guest.ok(Op::VerifyZero { addr: got, size: 300 * PAGE });
        guest.kmem_free(MAP, got, 300 * PAGE);
    });
}

#[test]
fn while_it_waits_its_entry_is_there_unwired_and_the_map_is_free_for_others() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let map = guest.kmem_suballoc(MAP, 1024 * PAGE, MapKind::System);
        let low = guest.kmem_alloc(map, PAGE).expect("there is room");
        let (addr, size) = guest.drain(200);
        guest.blocks(1, Op::KmemAlloc { map, size: 300 * PAGE }, "vmwait");
        let half = guest.entry(map, low.add(PAGE));
        assert_eq!((half.wired, half.object), (0, ObjectView::Kernel));
        assert_eq!(guest.pages(map), [(0, 1), (1, 301)], "what is not wired does not merge");
        // A neighbour comes and goes while it waits: its entry does not merge either.
        let above = guest.kmem_malloc(map, PAGE, NOWAIT).expect("NOWAIT may still have pages");
        assert_eq!(above, low.add(301 * PAGE));
        guest.kmem_free(map, above, PAGE);
        guest.kmem_free(map, low, PAGE);
        guest.free(addr, size);
        assert_eq!(guest.joined(1), low.add(PAGE));
        assert_eq!(guest.kmem_alloc(map, PAGE), Some(low));
        assert_eq!(guest.pages(map), [(0, 301)], "wired alike, it is one entry with its neighbour");
    });
}

#[test]
fn for_pages_that_never_come_it_waits_for_ever() {
    in_small_guest_left_blocked(|guest| {
        let pages = guest.counters().v_page_count.get();
        guest.blocks(1, Op::KmemAlloc { map: MAP, size: (pages + 1) * PAGE }, "vmwait");
        guest.ok(Op::Sleep { micros: 60_000_000 });
        guest.still_blocked(1);
        assert!(guest.counters().lowmem_events.get() > 0, "the pagedaemon keeps asking");
    });
}

#[test]
fn in_an_interrupt_it_is_a_panic() {
    in_guest(|guest| {
        let crash = guest.dies_of_in(Context::Interrupt, Op::KmemAlloc { map: MAP, size: PAGE });
        assert_eq!(crash.message, "vm_page_alloc(NORMAL|SYSTEM) in interrupt context");
    });
}

#[test]
fn two_waiters_both_get_their_memory() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        guest.make_thread(2);
        let (addr, size) = guest.drain(100);
        for thread in [1, 2] {
            guest.blocks(thread, Op::KmemAlloc { map: MAP, size: 150 * PAGE }, "vmwait");
        }
        guest.free(addr, size);
        let all = [guest.joined(1), guest.joined(2)];
        for addr in all {
            guest.use_memory(addr, 150 * PAGE);
            guest.kmem_free(MAP, addr, 150 * PAGE);
        }
        assert_eq!(guest.run(Op::Settle), Outcome::Ok);
    });
}
