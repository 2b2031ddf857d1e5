//! Which request may take which page: the flags of `kmem_malloc` determine the class, and the class
//! determines the floor.

use vmkern::abi::control::{Allocator, Workload};
use vmkern::inspect::What;
use vmkern::inspect::report::{Body, PageCacheReport};
use vmkern::{Guest, MallocFlags, MapId, Op, Outcome, TimeMode};
use vmkern_tests::harness::{in_guest_of, in_small_guest, in_small_guest_of, with_kmem_map};
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};
use vmkern_tests::{Run, t};

use crate::{NOWAIT, WAITOK};

const RESERVE: MallocFlags = MallocFlags::USE_RESERVE;

/// Allocates page after page with `flags` until null. Returns the number of pages that are left.
fn floor(guest: &mut KernGuest, flags: MallocFlags) -> u64 {
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
fn floors_are_the_same_with_caches_on_several_cpus() {
    for vcpus in [2, 4] {
        in_small_guest_of(vcpus, |guest| {
            let free = guest.free_pages();
            assert_eq!(
                (floor(guest, NOWAIT), floor(guest, NOWAIT | RESERVE)),
                (0, 2),
                "{vcpus} CPUs"
            );
            assert_eq!(guest.free_pages(), free);
        });
    }
}

/// The CPUs' caches of pages.
fn page_caches(guest: &Guest) -> Vec<PageCacheReport> {
    match guest.inspect("guest", &What::Pages).expect("it can be read").body {
        Body::Pages(report) => report.page_caches,
        other => panic!("{other:?}"),
    }
}

/// The number of interrupts by which CPUs made others flush.
fn interrupts(guest: &Guest) -> u64 {
    match guest.inspect("guest", &What::Locks).expect("it can be read").body {
        Body::Locks(report) => report.tlb.iter().map(|cpu| cpu.interrupts).sum(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_pages_are_had_though_they_lie_in_another_cpus_cache() {
    let builder = with_kmem_map(24 << 20).memory(16 << 20).vcpus(2).time(TimeMode::Real);
    in_guest_of(builder, |guest| {
        (0..2).for_each(|thread| guest.make_thread(thread));
        let pairs = Op::Work(Workload::Pairs {
            map: MapId::KMEM,
            size: 16 * PAGE,
            count: 500,
            allocator: Allocator::Malloc,
        });
        for _ in 0..200 {
            for thread in 0..2 {
                guest.submit(t(thread), pairs).expect("the guest lives");
            }
            for _ in 0..2 {
                assert_eq!(guest.next_response().expect("the guest lives").outcome, Outcome::Ok);
            }
            if page_caches(guest).iter().all(|cache| cache.pages > 8) {
                break;
            }
        }
        let (free, before, sent) = (guest.free_pages(), page_caches(guest), interrupts(guest));
        assert!(
            before.len() == 2 && before.iter().all(|cache| cache.pages > 8),
            "both CPUs keep pages: {before:?}"
        );
        let (addr, size) = guest.drain(0);
        let after = page_caches(guest);
        assert_eq!(
            (guest.free_pages(), after.iter().map(|cache| cache.pages).sum::<u64>()),
            (0, 0)
        );
        // The CPU that did not run gave up its whole cache at once, without being asked.
        let gave_all = |(old, new): (&PageCacheReport, &PageCacheReport)| {
            new.drained == old.drained + old.pages
                && (new.allocs, new.frees) == (old.allocs, old.frees)
        };
        assert!(before.iter().zip(&after).any(gave_all), "before {before:?}, after {after:?}");
        assert_eq!(interrupts(guest), sent);
        guest.free(addr, size);
        assert_eq!(guest.free_pages(), free);
    });
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
        let got = guest
            .kmem_malloc(MapId::KMEM, 600 * PAGE, WAITOK)
            .expect("it waits until there are pages");
        assert!(guest.counters().lowmem_events.get() > events);
        assert!(guest.counters().v_pdwakeups.get() > 0);
        guest.free(got, 600 * PAGE);
    });
}

#[test]
fn a_handler_that_waits_for_pages_on_the_pagedaemon_sleeps_in_its_own_vmwait() {
    in_small_guest(|guest| {
        guest.make_thread(1);
        let waits = |guest: &Guest| {
            let threads = guest.threads().expect("the list is sound");
            let daemon = threads
                .into_iter()
                .find(|thread| thread.label() == "pagedaemon")
                .expect("there is one");
            daemon.waits_for.expect("it sleeps").to_string()
        };
        // More than the memory of the handler itself, which is free by the time it runs.
        let asked = Op::KmemMalloc { map: MapId::KMEM, size: 20 * PAGE, flags: WAITOK };
        // So few that the pagedaemon has fired the event, and looks again only after half a second.
        let (first, first_size) = guest.drain(100);
        guest.on_lowmem(asked);
        let (addr, size) = guest.drain(2);
        guest.blocks(1, asked, "vmwait");
        guest.ok(Op::Sleep { micros: 1_000_000 });
        assert_eq!((guest.free_pages(), waits(guest)), (2, "VMWait".to_owned()));
        assert_eq!(waits(guest), "VMWait");
        let enough = guest.counters().v_pageout_free_min.get();
        guest.free(addr, (enough - 3) * PAGE);
        assert_eq!(waits(guest), "VMWait");
        guest.free(addr.add((enough - 3) * PAGE), PAGE);
        assert_ne!(waits(guest), "VMWait");
        guest.free(addr, size);
        guest.free(first, first_size);
        let got = guest.joined(1);
        guest.free(got, 20 * PAGE);
    });
}
