//! `kmem_malloc`: wired memory for the allocators above, with and without waiting.

use vmkern::abi::layout::{EntryFlags, Protection};
use vmkern::inspect::ObjectView;
use vmkern::{Context, MapId, MapKind, Op, Outcome, ThreadId};
use vmkern_tests::Run;
use vmkern_tests::harness::{in_guest, in_small_guest};
use vmkern_tests::kern::{Calls as _, PAGE};

use crate::{NOWAIT, WAITOK, ZEROED, assert_wired_memory};

const MAP: MapId = MapId::KMEM;

#[test]
fn the_range_is_an_entry_of_kmem_object_wired_once_with_every_page_mapped() {
    in_guest(|guest| {
        let before = guest.account(MAP);
        let addr = guest.kmem_malloc(MAP, 5 * PAGE - 7, NOWAIT).expect("there is room");
        let entry = guest.entry(MAP, addr);
        assert_eq!((entry.start, entry.end), (addr, addr.add(5 * PAGE)));
        assert_eq!(
            (entry.object, entry.eflags, entry.wired),
            (ObjectView::Kmem, EntryFlags::empty(), 1)
        );
        assert_eq!(entry.protection, Protection::ALL);
        assert_wired_memory(guest, addr, 5 * PAGE);
        guest.use_memory(addr, 5 * PAGE);
        let after = guest.account(MAP);
        assert_eq!(
            (before.free - after.free, after.wired - before.wired),
            (5, 5),
            "pages, and nothing else"
        );
        assert_eq!((after.entries, after.size), (1, 5 * PAGE));
        guest.kmem_free(MAP, addr, 5 * PAGE);
        assert_eq!(guest.account(MAP), before);
    });
}

#[test]
fn it_faults_nothing_in() {
    in_guest(|guest| {
        let faults = guest.counters().v_faults.get();
        let addr = guest.malloc(20 * PAGE);
        guest.use_memory(addr, 20 * PAGE);
        assert_eq!(
            guest.counters().v_faults.get(),
            faults,
            "neither to wire nor at the first touch"
        );
        guest.kmem_alloc(MapId::KERNEL, 20 * PAGE).expect("there is room");
        assert_eq!(guest.counters().v_faults.get(), faults + 20, "kmem_alloc is wired by faults");
    });
}

#[test]
fn memory_is_zero_with_zero_and_only_then() {
    in_small_guest(|guest| {
        let (addr, size) = guest.drain(3);
        guest.ok(Op::Fill { addr, size, seed: 0xdead });
        guest.free(addr, size);
        let half = size / 2;
        let dirty = guest.kmem_malloc(MAP, half, NOWAIT).expect("there is room");
        let outcome = guest.run(Op::VerifyZero { addr: dirty, size: half });
        assert!(
            matches!(outcome, Outcome::Mismatch { .. }),
            "pages are not cleared for nothing: {outcome:?}"
        );
        guest.free(dirty, half);
        for flags in [ZEROED, WAITOK | vmkern::MallocFlags::ZERO, vmkern::MallocFlags::ZERO] {
            let clean = guest.kmem_malloc(MAP, half, flags).expect("there is room");
            guest.ok(Op::VerifyZero { addr: clean, size: half });
            guest.ok(Op::Fill { addr: clean, size: half, seed: 0xbeef });
            guest.free(clean, half);
        }
    });
}

#[test]
fn two_contiguous_blocks_end_as_one_entry_and_freeing_in_its_middle_makes_two() {
    in_guest(|guest| {
        let first = guest.malloc(3 * PAGE);
        let second = guest.malloc(4 * PAGE);
        assert_eq!(second, first.add(3 * PAGE));
        assert_eq!(guest.pages(MAP), [(0, 7)]);
        guest.free(first.add(3 * PAGE), PAGE);
        assert_eq!(guest.pages(MAP), [(0, 3), (4, 7)]);
        assert_eq!(guest.malloc(PAGE), second, "the lowest hole, which it fills");
        assert_eq!(guest.pages(MAP), [(0, 7)]);
    });
}

#[test]
fn an_exact_fit_of_the_whole_map_succeeds_and_one_page_more_is_null_at_once() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 64 * PAGE, MapKind::System);
        let before = guest.account(map);
        let ticks = guest.counters().ticks.get();
        assert_eq!(guest.kmem_malloc(map, 64 * PAGE + 1, NOWAIT), None);
        assert_eq!(guest.account(map), before);
        let addr = guest.kmem_malloc(map, 64 * PAGE, NOWAIT).expect("an exact fit");
        assert_eq!(addr, guest.stats(map).min);
        assert_eq!(guest.kmem_malloc(map, 1, NOWAIT), None);
        guest.kmem_free(map, addr.add(PAGE), PAGE);
        guest.kmem_free(map, addr.add(3 * PAGE), PAGE);
        assert_eq!(
            guest.kmem_malloc(map, 2 * PAGE, NOWAIT),
            None,
            "two free pages that are no neighbours"
        );
        assert_eq!(guest.counters().ticks.get(), ticks);
        assert_eq!(guest.counters().lowmem_events.get(), 0, "NOWAIT does not fire the event");
    });
}

#[test]
fn a_failed_nowait_leaves_everything_as_it_was_wherever_the_pages_run_out() {
    in_small_guest(|guest| {
        // Neighbours on both sides, with which the entry must not merge.
        let below = guest.malloc(PAGE);
        let hole = guest.malloc(6 * PAGE);
        guest.malloc(PAGE);
        guest.free(hole, 6 * PAGE);
        for left in 0..6 {
            let (addr, size) = guest.drain(left);
            let before = (guest.account(MAP), guest.pages(MAP));
            assert_eq!(guest.kmem_malloc(MAP, 6 * PAGE, NOWAIT), None, "{left} pages for 6");
            assert_eq!((guest.account(MAP), guest.pages(MAP)), before, "{left} pages for 6");
            assert_eq!(guest.mapped_pages(hole, 6 * PAGE), 0);
            guest.free(addr, size);
        }
        let (addr, size) = guest.drain(6);
        assert_eq!(guest.kmem_malloc(MAP, 6 * PAGE, NOWAIT), Some(hole), "6 pages for 6");
        assert_eq!(guest.free_pages(), 0);
        guest.use_memory(below, 8 * PAGE);
        guest.free(addr, size);
    });
}

#[test]
fn it_waits_in_vmwait_with_half_of_its_pages_while_neighbours_come_and_go() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let low = guest.malloc(PAGE);
        let hole = guest.malloc(30 * PAGE);
        let high = guest.malloc(PAGE);
        let (addr, size) = guest.drain(0);
        guest.free(hole, 30 * PAGE);
        // It gets 28 of its 30 pages and leaves the last two to requests that cannot wait. Now one
        // of the two is taken, and it gets none.
        guest.blocks(1, Op::KmemMalloc { map: MAP, size: 30 * PAGE, flags: WAITOK }, "vmwait");
        assert_eq!(guest.free_pages(), 2);
        let entry = guest.entry(MAP, hole);
        assert_eq!((entry.start, entry.end, entry.wired), (hole, hole.add(30 * PAGE), 0));
        assert_eq!(
            guest.mapped_pages(hole, 30 * PAGE),
            0,
            "nothing is mapped before all of it is there"
        );
        for _ in 0..3 {
            guest.free(low, PAGE);
            guest.free(high, PAGE);
            assert_eq!(guest.malloc(PAGE), low);
            assert_eq!(guest.malloc(PAGE), high);
            assert_eq!(guest.pages(MAP)[..2], [(0, 1), (1, 31)], "it has not merged with either");
        }
        guest.free(addr, size);
        assert_eq!(guest.joined(1), hole);
        assert_eq!(guest.pages(MAP), [(0, 32)], "now it has, with both");
        assert_wired_memory(guest, low, 32 * PAGE);
        guest.use_memory(low, 32 * PAGE);
    });
}

#[test]
fn whoever_frees_it_while_it_is_being_made_brings_the_panic_entry_not_found_or_misaligned() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let (addr, size) = guest.drain(10);
        guest.blocks(1, Op::KmemMalloc { map: MAP, size: 20 * PAGE, flags: WAITOK }, "vmwait");
        guest.free(addr.add(size + 3 * PAGE), PAGE);
        guest
            .submit(ThreadId::MAIN, Op::KmemFree { map: MAP, addr, size })
            .expect("the guest lives");
        let death = loop {
            match guest.next_response() {
                Ok(_) => {}
                Err(vmkern::GuestError::Crashed(_)) => break guest.expect_dead(""),
                Err(error) => panic!("{error}"),
            }
            if guest.in_flight() == 0 {
                break guest.dies_of(Op::Join { thread: 1 });
            }
        };
        assert_eq!(death.message, "kmem_malloc: entry not found or misaligned");
        assert_eq!(death.thread, Some(1));
    });
}

#[test]
fn in_an_interrupt_nowait_takes_the_last_page_and_then_gives_null() {
    in_small_guest(|guest| {
        let (addr, size) = guest.drain(1);
        let op = Op::KmemMalloc { map: MAP, size: PAGE, flags: NOWAIT };
        let Outcome::Value(last) = guest.interrupt(op) else { panic!("there was a page") };
        assert_eq!(guest.interrupt(op), Outcome::Null);
        assert_eq!(last, addr.add(size).get());
        guest.free(addr, size + PAGE);
    });
}

#[test]
fn in_an_interrupt_waitok_is_a_panic() {
    in_guest(|guest| {
        let op = Op::KmemMalloc { map: MAP, size: PAGE, flags: WAITOK };
        let crash = guest.dies_of_in(Context::Interrupt, op);
        assert_eq!(crash.message, "vm_page_alloc(NORMAL|SYSTEM) in interrupt context");
    });
}

#[test]
fn its_offsets_count_from_the_first_kernel_address_so_that_all_system_maps_share_kmem_object() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 64 * PAGE, MapKind::System);
        let blocks = [(map, 5), (MAP, 7), (MapId::BUFFER, 3)].map(|(map, pages)| {
            (map, guest.kmem_malloc(map, pages * PAGE, ZEROED).expect("there is room"), pages)
        });
        for (map, addr, pages) in blocks {
            assert_eq!(guest.object(map, addr), ObjectView::Kmem);
            guest.use_memory(addr, pages * PAGE);
        }
        for (_, addr, pages) in blocks {
            guest.ok(Op::Verify { addr, size: pages * PAGE, seed: pages * PAGE });
        }
    });
}
