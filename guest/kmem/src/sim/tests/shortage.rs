//! Shortages of pages: which requests may take the last pages, and that a failure leaves no trace.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, MapKind, Op, Outcome, WaitMessage};

use super::super::Sim;
use super::super::check::check;
use super::{MIB, NOWAIT};
use crate::sim::SimMachine;
use crate::vm::page::AllocClass;
use crate::vm::{Shortage, Vm, Wait};

/// A machine whose kmem_map is larger than its memory.
fn small() -> Sim {
    Sim::boot(16 * MIB, Tunables { vm_kmem_size: Some(24 * MIB), ..Tunables::default() })
}

/// Leaves exactly `pages` pages free, by allocations that stay.
fn leave(sim: &Sim, pages: u64) {
    // The map's own pages are allocated first.
    assert!(sim.malloc(PAGE_SIZE, NOWAIT).is_some());
    let taken = sim.free_pages() - pages;
    assert!(sim.malloc(taken * PAGE_SIZE, NOWAIT).is_some());
    while sim.free_pages() > pages {
        assert!(sim.malloc(PAGE_SIZE, NOWAIT).is_some());
    }
    assert_eq!(sim.free_pages(), pages);
}

#[test]
fn one_page_too_few_leaves_everything_as_it_was() {
    for pages in [2, 7, 50, 600] {
        let sim = small();
        leave(&sim, pages - 1);
        let before = sim.counters();
        for _ in 0..3 {
            assert_eq!(sim.malloc(pages * PAGE_SIZE, NOWAIT), None);
            assert_eq!(sim.counters(), before);
            check(&sim);
        }
        assert!(
            sim.malloc((pages - 1) * PAGE_SIZE, NOWAIT).is_some(),
            "exactly what there is can be had"
        );
        assert_eq!(sim.free_pages(), 0);
        check(&sim);
    }
}

#[test]
fn nowait_takes_the_last_page_and_use_reserve_leaves_two() {
    let sim = small();
    let reserve = NOWAIT | MallocFlags::USE_RESERVE;
    while sim.malloc(PAGE_SIZE, reserve).is_some() {}
    assert_eq!(sim.free_pages(), 2);
    while sim.malloc(PAGE_SIZE, NOWAIT).is_some() {}
    assert_eq!(sim.free_pages(), 0);
    check(&sim);
}

#[test]
fn everything_can_be_freed_when_no_page_is_left() {
    let sim = small();
    let mut blocks = Vec::new();
    while let Some(addr) = sim.malloc(3 * PAGE_SIZE, NOWAIT) {
        blocks.push(addr);
    }
    while sim.malloc(PAGE_SIZE, NOWAIT).is_some() {}
    assert_eq!(sim.free_pages(), 0);
    for addr in &blocks {
        sim.free(MapId::KMEM, addr.add(PAGE_SIZE), PAGE_SIZE);
    }
    check(&sim);
    for addr in &blocks {
        sim.free(MapId::KMEM, *addr, 3 * PAGE_SIZE);
    }
    check(&sim);
}

#[test]
fn a_range_whose_page_tables_cannot_be_had_fails_before_the_map_changes() {
    let sim = Sim::boot(16 * MIB, Tunables::default());
    sim.take_boot_tables();
    let before = sim.counters();
    let managed = sim.vm().cnt().v_page_count.get();
    for size in [500 << 30, 64 << 30, managed * (2 * MIB), sim.free_pages() * (2 * MIB) + 2 * MIB] {
        assert_eq!(sim.nofault(size), None, "{size} bytes");
        assert_eq!(sim.counters(), before, "{size} bytes");
        check(&sim);
    }
    let most = (sim.free_pages() - 8) * (2 * MIB);
    assert!(sim.nofault(most).is_some());
    check(&sim);
}

#[test]
fn the_pagedaemon_sets_freebsds_thresholds_when_it_starts() {
    let sim = Sim::boot(64 * MIB, Tunables::default());
    sim.run();
    let cnt = sim.vm().cnt();
    let (p, f) = (cnt.v_page_count.get(), cnt.v_free_count.get());
    assert!(p > 15_000 && f > 6144);
    let reserved = 16 + 34 + p / 768;
    let min = 4 + (p - 1024) / 200 + reserved;
    assert_eq!(cnt.v_interrupt_free_min.get(), 2);
    assert_eq!(cnt.v_free_reserved.get(), reserved);
    assert_eq!(cnt.v_free_severe.get(), (4 + (p - 1024) / 200) / 2 + reserved);
    assert_eq!(cnt.v_free_min.get(), min);
    assert_eq!(cnt.v_free_target.get(), 4 * min + reserved);
    assert_eq!(cnt.v_cache_min.get(), cnt.v_free_target.get());
}

#[test]
fn qenter_without_enough_pages_maps_nothing() {
    let sim = small();
    let addr = sim.nofault(64 * PAGE_SIZE).expect("there is room");
    leave(&sim, 10);
    let before = sim.counters();
    let error =
        vmkern_abi::control::Outcome::Error(vmkern_abi::control::KernReturn::ResourceShortage);
    for count in [9, 11, 64, u64::MAX >> 12] {
        let outcome = sim.execute(&Op::PmapQenter { addr, count });
        assert!(outcome == error || count > 64, "{count} pages gave {outcome:?}");
        assert_eq!(sim.counters(), before);
    }
    sim.ok(&Op::PmapQenter { addr, count: 8 });
    check(&sim);
}

/// The outcome of an operation whose thread sleeps for pages.
fn vmwait() -> Outcome {
    Outcome::Blocked { waits_for: WaitMessage::new("vmwait") }
}

/// A machine of 64 MiB whose kmem_map is larger, with a thread 1, no addresses left for which the
/// boot made page tables, and `free` pages free. Also returns the address and size of the block
/// that takes the other pages.
fn short(free: u64) -> (Sim, vmkern_abi::addr::GuestVirt, u64) {
    let sim =
        Sim::boot(64 * MIB, Tunables { vm_kmem_size: Some(100 * MIB), ..Tunables::default() });
    assert_eq!(sim.execute_on(1, Op::Nop), Outcome::Ok);
    sim.take_boot_tables();
    let bytes = (sim.free_pages() - free) * PAGE_SIZE;
    let rest = sim.malloc(bytes, NOWAIT).expect("there is memory");
    assert_eq!(sim.free_pages(), free);
    (sim, rest, bytes)
}

/// Counts of events, wakeups and requests for pages, which must not have changed.
fn signs(sim: &Sim) -> impl PartialEq + std::fmt::Debug + use<> {
    let (state, cnt) = (sim.vm().state(), sim.vm().cnt());
    (
        (cnt.lowmem_events.get(), cnt.v_pdwakeups.get(), cnt.ticks.get()),
        (state.vm_pages_needed.get(), state.vm_pageout_deficit.get(), state.vm_pages_wanted.get()),
    )
}

#[test]
fn kmem_suballoc_waits_for_page_tables_that_can_come_however_many_pages_are_free() {
    // Below v_free_min, above it, and where the pagedaemon also has nothing to do.
    for free in [100, 180, 400, 1500] {
        let (sim, rest, bytes) = short(free);
        let (min, target) = (sim.vm().cnt().v_free_min.get(), sim.vm().cnt().v_free_target.get());
        assert!((100..180).contains(&min) && (400..1000).contains(&target), "{min} {target}");
        let before = sim.counters();
        let size = (free + 20) * (2 * MIB);
        let op = Op::KmemSuballoc { parent: MapId::KERNEL, size, kind: MapKind::User };
        assert_eq!(sim.execute_on(1, op), vmwait(), "with {free} pages free");
        assert_eq!(sim.counters(), before, "a waiting caller holds nothing");
        // One freed page is not enough; all of them are.
        sim.free(MapId::KMEM, rest, PAGE_SIZE);
        assert_eq!(sim.finish(1), vmwait());
        sim.free(MapId::KMEM, rest.add(PAGE_SIZE), bytes - PAGE_SIZE);
        let Outcome::Value(map) = sim.finish(1) else { panic!("it goes on") };
        let map = sim.map(MapId(map));
        assert_eq!(map.max_offset().since(map.min_offset()), size);
        check(&sim);
    }
}

#[test]
fn kmem_alloc_waits_for_page_tables_without_an_entry_and_then_for_pages_with_one() {
    for free in [90, 300, 1500] {
        let (sim, rest, bytes) = short(free);
        let size = (free + 20) * (2 * MIB);
        let before = sim.counters();
        assert_eq!(sim.execute_on(1, Op::KmemAlloc { map: MapId::KERNEL, size }), vmwait());
        assert_eq!(sim.counters(), before);
        sim.free(MapId::KMEM, rest, bytes);
        let kernel_size = sim.map(MapId::KERNEL).size.get();
        assert_eq!(sim.finish(1), vmwait());
        assert_eq!(sim.map(MapId::KERNEL).size.get(), kernel_size + size);
        assert_eq!(
            sim.free_pages(),
            sim.vm().cnt().v_free_reserved.get(),
            "it has taken what it may"
        );
    }
}

#[test]
fn a_free_at_any_moment_of_a_suballoc_that_is_short_of_page_tables_is_another_try_and_never_a_panic()
 {
    for points in 0..60 {
        let (sim, rest, bytes) = short(180);
        sim.submit(
            1,
            Op::KmemSuballoc { parent: MapId::KERNEL, size: 400 * MIB, kind: MapKind::User },
        );
        sim.raise_after(points, move |vm: &Vm<SimMachine>| {
            vm.kmem_free(vm.kmem_map(), rest, bytes)
        });
        // At the last moments the thread already sleeps.
        while sim.free_pages() <= 180 {
            sim.run();
        }
        let outcome = sim.finish(1);
        assert!(
            matches!(outcome, Outcome::Value(_)),
            "{outcome:?} with a free after {points} points"
        );
        check(&sim);
    }
}

#[test]
fn what_more_pages_than_are_managed_would_describe_fails_at_once_and_leaves_no_trace() {
    for free in [0, 100, 5000] {
        let (sim, ..) = short(free);
        sim.run();
        let (before, quiet) = (sim.counters(), signs(&sim));
        for tables in [sim.vm().cnt().v_page_count.get() + 1, 100_000] {
            let (map, size) = (MapId::KERNEL, tables * (2 * MIB));
            for op in [
                Op::KmemAllocNofault { map, size },
                Op::KmemAlloc { map, size },
                Op::KmemMalloc { map, size, flags: NOWAIT },
                Op::KmemMalloc { map, size, flags: MallocFlags::WAITOK },
            ] {
                assert_eq!(sim.execute_on(1, op), Outcome::Null, "{op:?}");
                assert_eq!(sim.counters(), before, "{op:?}");
                assert_eq!(signs(&sim), quiet, "{op:?}");
            }
        }
    }
}

#[test]
fn kmem_suballoc_of_what_more_pages_than_are_managed_would_describe_panics_bad_status_return_of_6()
{
    for (free, size) in [(0, 64 << 30), (100, 100 << 30), (5000, 500 << 30)] {
        let (sim, ..) = short(free);
        let suballoc = || sim.vm().kmem_suballoc(sim.vm().kernel_map(), size);
        let payload = catch_unwind(AssertUnwindSafe(suballoc)).expect_err("it panics");
        let message = payload.downcast::<String>().expect("a message");
        assert_eq!(*message, "kmem_suballoc: bad status return of 6", "{size} bytes");
    }
}

#[test]
fn what_the_managed_pages_could_describe_is_asked_for_and_given_back_by_a_caller_that_may_not_wait()
{
    let (sim, ..) = short(700);
    sim.run();
    let (before, quiet) = (sim.counters(), signs(&sim));
    let size = 1000 * (2 * MIB);
    assert_eq!(sim.nofault(size), None);
    assert_eq!(sim.counters(), before);
    assert_ne!(signs(&sim), quiet, "the pagedaemon is told that pages are short");
}

#[test]
fn kmem_malloc_that_may_sleep_waits_in_vmwait_for_more_than_there_is_memory_if_there_is_a_hole() {
    for (memory, hole, size) in
        [(64 * MIB, 28 << 30, 8 << 30), (16 * MIB, 2 << 30, 1 << 30), (64 * MIB, MIB, MIB)]
    {
        let sim = Sim::boot(memory, Tunables::default());
        assert_eq!(sim.execute_on(1, Op::Nop), Outcome::Ok);
        let suballoc =
            Op::KmemSuballoc { parent: MapId::KERNEL, size: hole, kind: MapKind::System };
        let Outcome::Value(map) = sim.execute(&suballoc) else {
            panic!("there are pages for its tables")
        };
        let map = MapId(map);
        if size == MIB {
            while sim.malloc(PAGE_SIZE, NOWAIT).is_some() {}
            while sim
                .address(&Op::KmemMalloc { map: MapId::KERNEL, size: PAGE_SIZE, flags: NOWAIT })
                .is_some()
            {}
        }
        let before = sim.counters();
        assert_eq!(sim.address(&Op::KmemMalloc { map, size, flags: NOWAIT }), None);
        assert_eq!(sim.counters(), before);
        let ticks = sim.vm().cnt().ticks.get();
        assert_eq!(
            sim.execute_on(1, Op::KmemMalloc { map, size, flags: MallocFlags::WAITOK }),
            vmwait()
        );
        assert_eq!(sim.vm().cnt().ticks.get(), ticks, "it has not slept in nokva");
    }
}

#[test]
fn a_thread_is_made_in_vmwait_while_pages_are_short_by_a_maker_that_may_sleep() {
    for free in [3, 30, 70] {
        let sim =
            Sim::boot(64 * MIB, Tunables { vm_kmem_size: Some(100 * MIB), ..Tunables::default() });
        let made = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&made);
        sim.spawn(1, move |vm| {
            let stack = vm.vm_thread_new(AllocClass::Normal, Wait::Yes).expect("it comes");
            seen.store(stack.0.get(), Ordering::Relaxed);
        });
        let bytes = (sim.free_pages() - free) * PAGE_SIZE;
        let rest = sim.malloc(bytes, NOWAIT).expect("there is memory");
        let before = sim.counters();
        assert_eq!(
            sim.vm().vm_thread_new(AllocClass::Normal, Wait::No),
            Err(Shortage),
            "four pages above v_free_reserved are needed"
        );
        assert_eq!(sim.counters(), before);
        sim.run();
        assert_eq!(sim.waits_for(1), Some(WaitMessage::new("vmwait")), "with {free} pages free");
        assert!(sim.free_pages() <= sim.vm().cnt().v_free_reserved.get());
        sim.free(MapId::KMEM, rest, bytes);
        sim.run();
        assert_ne!(made.load(Ordering::Relaxed), 0);
        check(&sim);
    }
}

#[test]
fn whoever_frees_a_range_that_kmem_alloc_still_makes_brings_a_panic_that_says_which_wiring_failed_and_why()
 {
    // All of it, its first page, one in the middle, and the last one.
    for (first, pages) in [(0, 4), (0, 1), (2, 1), (3, 1)] {
        let sim =
            Sim::boot(64 * MIB, Tunables { vm_kmem_size: Some(100 * MIB), ..Tunables::default() });
        assert_eq!(sim.execute_on(1, Op::Nop), Outcome::Ok);
        let place = sim.alloc(4 * PAGE_SIZE).expect("there is memory");
        sim.free(MapId::KERNEL, place, 4 * PAGE_SIZE);
        let pinned = sim.alloc(PAGE_SIZE).expect("there is memory");
        let bytes = (sim.free_pages() - sim.vm().cnt().v_free_reserved.get() - 2) * PAGE_SIZE;
        let rest = sim.malloc(bytes, NOWAIT).expect("there is memory");
        assert_eq!(
            sim.execute_on(1, Op::KmemAlloc { map: MapId::KERNEL, size: 4 * PAGE_SIZE }),
            vmwait()
        );
        let made = pinned.add(PAGE_SIZE);
        sim.free(MapId::KERNEL, made.add(first * PAGE_SIZE), pages * PAGE_SIZE);
        sim.free(MapId::KMEM, rest, bytes);
        let end = catch_unwind(AssertUnwindSafe(|| sim.finish(1)));
        let message = end.expect_err("it panics").downcast::<String>().expect("a message");
        assert_eq!(*message, format!("kmem_alloc: wiring {made} failed: KERN_INVALID_ADDRESS"));
    }
}
