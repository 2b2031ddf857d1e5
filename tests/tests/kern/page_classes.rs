//! Which request may take which page: `kmem_malloc`'s flags decide the class, and the class the floor.

use vmkern::{Guest, MallocFlags, MapId, Op};
use vmkern_tests::Run;
use vmkern_tests::harness::in_small_guest;
use vmkern_tests::kern::{Kern, PAGE};

use crate::{NOWAIT, WAITOK};

const RESERVE: MallocFlags = MallocFlags::USE_RESERVE;

/// Takes page after page with `flags` until null: the pages that are left.
fn floor(guest: &mut Guest, flags: MallocFlags) -> u64 {
    let (addr, size) = guest.drain(10);
    let mut got = 0;
    while guest.kmem_malloc(MapId::KMEM, PAGE, flags).is_some() {
        got += 1;
    }
    let left = guest.free_pages();
    assert_eq!(got + left, 10, "{flags:?}");
    guest.free(addr, size + got * PAGE);
    left
}

#[test]
fn nowait_takes_the_very_last_page() {
    in_small_guest(|guest| assert_eq!(floor(guest, NOWAIT), 0));
}

#[test]
fn nowait_with_use_reserve_leaves_v_interrupt_free_min() {
    in_small_guest(|guest| {
        let min = guest.counters().v_interrupt_free_min.get();
        assert_eq!(min, 2);
        assert_eq!(floor(guest, NOWAIT | RESERVE), min);
    });
}

#[test]
fn waitok_alone_or_with_use_reserve_and_no_flag_at_all_leave_two_and_wait() {
    for flags in [WAITOK, WAITOK | RESERVE, RESERVE, MallocFlags::empty()] {
        in_small_guest(|guest| {
            guest.make_thread(1);
            let (addr, size) = guest.drain(10);
            guest.blocks(1, Op::KmemMalloc { map: MapId::KMEM, size: 20 * PAGE, flags }, "vmwait");
            assert_eq!(guest.free_pages(), 2, "{flags:?}");
            guest.free(addr, size);
            let got = guest.joined(1);
            guest.use_memory(got, 20 * PAGE);
            guest.free(got, 20 * PAGE);
        });
    }
}

#[test]
fn kmem_alloc_leaves_v_free_reserved() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let reserved = guest.counters().v_free_reserved.get();
        let (addr, size) = guest.drain(reserved + 10);
        guest.blocks(1, Op::KmemAlloc { map: MapId::KERNEL, size: 20 * PAGE }, "vmwait");
        assert_eq!(guest.free_pages(), reserved);
        guest.free(addr, size);
        let got = guest.joined(1);
        guest.kmem_free(MapId::KERNEL, got, 20 * PAGE);
    });
}

#[test]
fn a_sleeper_is_woken_by_the_free_that_brings_v_free_min_and_not_before() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let min = guest.counters().v_free_min.get();
        let (addr, size) = guest.drain(2);
        guest.blocks(1, Op::KmemMalloc { map: MapId::KMEM, size: PAGE, flags: WAITOK }, "vmwait");
        for page in 0..min - 3 {
            guest.free(addr.add(page * PAGE), PAGE);
        }
        assert_eq!(guest.free_pages(), min - 1);
        guest.still_blocked(1);
        guest.free(addr.add((min - 3) * PAGE), PAGE);
        let got = guest.joined(1);
        guest.free(got, PAGE);
        guest.free(addr, size);
    });
}

#[test]
fn a_fault_waits_in_pfault_below_v_free_severe() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let pageable = guest.kmem_alloc_wait(MapId::EXEC, 2 * PAGE).expect("there is room");
        guest.ok(Op::Touch { addr: pageable, size: 1 });
        let severe = guest.counters().v_free_severe.get();
        let (addr, size) = guest.drain(severe - 1);
        guest.blocks(1, Op::Write { addr: pageable.add(PAGE), value: 7 }, "pfault");
        guest.free(addr, size);
        assert_eq!(guest.join(1), vmkern::Outcome::Ok);
        assert_eq!(guest.read(pageable.add(PAGE)), 7);
    });
}

#[test]
fn a_shortage_wakes_the_pagedaemon_which_asks_everybody_for_memory() {
    in_small_guest(|guest| {
        let (addr, size) = guest.drain(500);
        guest.on_lowmem(Op::KmemFree { map: MapId::KMEM, addr, size });
        let events = guest.counters().lowmem_events.get();
        let got = guest.kmem_malloc(MapId::KMEM, 600 * PAGE, WAITOK).expect("it waits until there are pages");
        assert!(guest.counters().lowmem_events.get() > events);
        assert!(guest.counters().v_pdwakeups.get() > 0);
        guest.free(got, 600 * PAGE);
    });
}
