//! `kmem_alloc_nofault`: addresses without memory.

use vmkern::abi::layout::{EntryFlags, Protection};
use vmkern::inspect::ObjectView;
use vmkern::{KernReturn, MapId, MapKind, Op, Outcome};
use vmkern_tests::Run;
use vmkern_tests::harness::{in_guest, in_small_guest};
use vmkern_tests::kern::{Calls as _, PAGE};

use crate::NOWAIT;

const MAP: MapId = MapId::KERNEL;

#[test]
fn the_range_has_an_entry_and_no_object_page_or_translation() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let before = guest.account(map);
        let addr = guest.kmem_alloc_nofault(map, 3 * PAGE).expect("there is room");
        let entry = guest.entry(map, addr);
        assert_eq!((entry.start, entry.end), (addr, addr.add(3 * PAGE)));
        assert_eq!(
            (entry.object, entry.eflags, entry.wired),
            (ObjectView::None, EntryFlags::NOFAULT, 0)
        );
        assert_eq!(entry.protection, Protection::ALL);
        assert_eq!(guest.mapped_pages(addr, 3 * PAGE), 0);
        let after = guest.account(map);
        assert_eq!((after.free, after.wired), (before.free, before.wired));
        assert_eq!((after.entries, after.size), (1, 3 * PAGE));
    });
}

#[test]
fn calls_that_follow_each_other_are_contiguous_and_share_one_entry() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let all: Vec<_> = (1..=3)
            .map(|n| guest.kmem_alloc_nofault(map, n * PAGE).expect("there is room"))
            .collect();
        assert_eq!((all[1], all[2]), (all[0].add(PAGE), all[0].add(3 * PAGE)));
        assert_eq!(guest.pages(map), [(0, 6)]);
    });
}

#[test]
fn freeing_the_second_of_three_makes_two_entries_of_one() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let all: Vec<_> =
            (0..3).map(|_| guest.kmem_alloc_nofault(map, PAGE).expect("there is room")).collect();
        guest.kmem_free(map, all[1], PAGE);
        assert_eq!(guest.pages(map), [(0, 1), (2, 3)]);
        assert_eq!(guest.kmem_alloc_nofault(map, PAGE), Some(all[1]), "the lowest hole");
        // The plain insert merges with the entry before it, and the simplification that follows
        // merges the entry after it.
        assert_eq!(guest.pages(map), [(0, 3)]);
    });
}

#[test]
fn the_lowest_hole_that_is_large_enough_is_taken() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let addr = guest.kmem_alloc_nofault(map, 64 * PAGE).expect("the map is empty");
        for (page, pages) in [(0, 1), (4, 2), (10, 3), (20, 3)] {
            guest.kmem_free(map, addr.add(page * PAGE), pages * PAGE);
        }
        assert_eq!(guest.kmem_alloc_nofault(map, 3 * PAGE), Some(addr.add(10 * PAGE)));
        assert_eq!(guest.kmem_alloc_nofault(map, 2 * PAGE), Some(addr.add(4 * PAGE)));
        assert_eq!(
            guest.kmem_alloc_nofault(map, PAGE),
            Some(addr),
            "the hole before the first entry is one, too"
        );
        assert_eq!(
            guest.kmem_alloc_nofault(map, 4 * PAGE),
            None,
            "there is no contiguous hole of four"
        );
    });
}

#[test]
fn an_exact_fit_succeeds_and_a_page_more_gives_null() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let before = guest.account(map);
        assert_eq!(guest.kmem_alloc_nofault(map, 64 * PAGE + 1), None);
        assert_eq!(guest.account(map), before);
        assert_eq!(guest.kmem_alloc_nofault(map, 64 * PAGE), Some(guest.stats(map).min));
        assert_eq!(guest.kmem_alloc_nofault(map, 1), None);
    });
}

#[test]
fn a_touch_panics_with_freebsds_words_and_the_address_of_the_page() {
    for op in [|addr| Op::Read { addr }, |addr| Op::Write { addr, value: 1 }] {
        in_guest(|guest| {
            let addr = guest.kmem_alloc_nofault(MAP, 2 * PAGE).expect("there is room");
            let crash = guest.dies_of(op(addr.add(PAGE + 24)));
            let text =
                format!("vm_fault: fault on nofault entry, addr: {:x}", addr.add(PAGE).get());
            assert_eq!(crash.message, text);
        });
    }
}

#[test]
fn page_tables_for_the_range_are_there_afterwards() {
    in_guest(|guest| {
        guest.take_boot_tables();
        let addr = guest.kmem_alloc_nofault(MAP, 8 << 20).expect("there is room");
        for at in [addr, addr.add(3 << 20), addr.add((8 << 20) - PAGE)] {
            guest.ok(Op::PmapQenter { addr: at, count: 1 });
            guest.use_memory(at, PAGE);
            guest.ok(Op::PmapQremove { addr: at, count: 1 });
        }
        let outside = addr.add(1 << 32);
        let outcome = guest.run(Op::PmapQenter { addr: outside, count: 1 });
        assert_eq!(
            outcome,
            Outcome::Error(KernReturn::InvalidAddress),
            "nothing has asked for tables there"
        );
    });
}

#[test]
fn without_a_page_for_the_page_tables_it_gives_null_and_leaves_no_trace() {
    in_small_guest(|guest| {
        guest.take_boot_tables();
        let (addr, size) = guest.drain(3);
        let before = guest.account(MAP);
        assert_eq!(guest.kmem_alloc_nofault(MAP, 64 << 20), None, "more than 30 page tables");
        assert_eq!(guest.account(MAP).entries, before.entries);
        assert_eq!(guest.account(MAP).size, before.size);
        guest.free(addr, size);
        assert!(guest.kmem_alloc_nofault(MAP, 64 << 20).is_some());
    });
}

#[test]
fn addresses_with_page_tables_of_the_boot_can_be_had_when_no_page_is_left() {
    in_small_guest(|guest| {
        let (addr, size) = guest.drain(0);
        let taken = guest.kmem_alloc_nofault(MAP, 8 << 20).expect("its page tables are there");
        assert_eq!(guest.free_pages(), 0);
        guest.kmem_free(MAP, taken, 8 << 20);
        guest.free(addr, size);
    });
}

#[test]
fn it_takes_no_page_even_when_none_is_left() {
    in_small_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let (addr, size) = guest.drain(0);
        let window = guest.kmem_alloc_nofault(map, 9 * PAGE).expect("there is room");
        guest.kmem_free(map, window, 9 * PAGE);
        guest.free(addr, size);
    });
}

#[test]
fn a_window_freed_with_its_mappings_leaves_none_to_the_next_owner() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MAP, 64 * PAGE, MapKind::System);
        let addr = guest.kmem_alloc_nofault(map, 4 * PAGE).expect("there is room");
        guest.ok(Op::PmapQenter { addr, count: 2 });
        guest.use_memory(addr, 2 * PAGE);
        guest.kmem_free(map, addr, 4 * PAGE);
        assert_eq!(guest.kmem_alloc_nofault(map, 4 * PAGE), Some(addr));
        assert_eq!(guest.mapped_pages(addr, 4 * PAGE), 0);
        // The pages themselves are lost, because they were not removed before.
        let crash = guest.dies_of(Op::Read { addr });
        assert!(crash.message.contains("fault on nofault entry"), "{}", crash.message);
    });
}

#[test]
fn every_kind_of_map_can_be_asked_and_an_interrupt_may_ask() {
    in_guest(|guest| {
        for map in [MapId::KERNEL, MapId::KMEM, MapId::EXEC, MapId::PIPE, MapId::BUFFER] {
            let before = guest.stats(map).size;
            assert!(guest.kmem_alloc_nofault(map, PAGE).is_some(), "{map:?}");
            assert_eq!(guest.stats(map).size, before + PAGE, "{map:?}");
        }
        let outcome = guest.interrupt(Op::KmemAllocNofault { map: MapId::KMEM, size: PAGE });
        assert!(matches!(outcome, Outcome::Value(_)), "{outcome:?}");
    });
}

#[test]
fn pages_entered_into_the_window_are_the_callers_to_take_out() {
    in_guest(|guest| {
        let addr = guest.kmem_alloc_nofault(MAP, 5 * PAGE).expect("there is room");
        let free = guest.free_pages();
        guest.ok(Op::PmapQenter { addr: addr.add(PAGE), count: 4 });
        assert_eq!(guest.free_pages(), free - 4);
        guest.use_memory(addr.add(PAGE), 4 * PAGE);
        guest.ok(Op::PmapQremove { addr: addr.add(PAGE), count: 4 });
        assert_eq!(guest.free_pages(), free);
        guest.kmem_free(MAP, addr, 5 * PAGE);
        assert!(guest.kmem_malloc(MapId::KMEM, PAGE, NOWAIT).is_some());
    });
}
