//! Fail points: what failing at each site does to its callers, and that it leaves nothing behind.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, MapKind, Op, Outcome};
use vmkern_abi::fail::{FailSite, FailSpec};

use super::super::Sim;
use super::super::check::check;
use super::{MIB, NOWAIT, boot};
use crate::vm::Zeroed;

fn spec(site: FailSite, text: &str) -> FailSpec {
    FailSpec::parse(site, text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn arm(sim: &Sim, site: FailSite, text: &str) {
    sim.fail(site, &spec(site, text));
}

fn fires(sim: &Sim, site: FailSite) -> u64 {
    sim.fail_point(site).fires.get()
}

/// The message of the panic in which `op` ends.
fn panic_of(sim: &Sim, op: &Op) -> String {
    let end = catch_unwind(AssertUnwindSafe(|| sim.execute(op)));
    let Err(message) = end else { panic!("{op:?} returned {end:?}") };
    message.downcast_ref::<String>().cloned().unwrap_or_default()
}

fn malloc(flags: MallocFlags) -> Op {
    Op::KmemMalloc { map: MapId::KMEM, size: 3 * PAGE_SIZE, flags }
}

#[test]
fn a_page_refused_to_nowait_makes_kmem_malloc_return_null_and_changes_nothing() {
    for (site, flags) in [
        (FailSite::VmPageAllocInterrupt, NOWAIT),
        (FailSite::VmPageAllocSystem, NOWAIT | MallocFlags::USE_RESERVE),
        (FailSite::VmPageAlloc, NOWAIT),
    ] {
        let sim = boot();
        assert!(sim.malloc(PAGE_SIZE, NOWAIT).is_some());
        let before = sim.counters();
        // Each of the three pages fails in turn.
        for nth in 1..=3 {
            sim.fail_nth(site, nth);
            assert_eq!(sim.execute(&malloc(flags)), Outcome::Null, "{site:?} {nth}");
            assert_eq!(sim.counters(), before);
            check(&sim);
        }
        assert_eq!(fires(&sim, site), 3);
        assert!(matches!(sim.execute(&malloc(flags)), Outcome::Value(_)), "the count is used up");
    }
}

#[test]
fn a_page_refused_to_a_caller_that_may_sleep_makes_it_wait_and_then_succeed() {
    for (site, op) in [
        (FailSite::VmPageAllocSystem, malloc(MallocFlags::WAITOK)),
        (FailSite::VmPageAllocNormal, Op::KmemAlloc { map: MapId::KERNEL, size: 3 * PAGE_SIZE }),
    ] {
        let sim = boot();
        let wakeups = sim.vm().cnt().v_pdwakeups.get();
        arm(&sim, site, "1*off->2*return");
        assert!(matches!(sim.execute(&op), Outcome::Value(_)), "{site:?}");
        assert_eq!(fires(&sim, site), 2);
        assert!(sim.vm().cnt().v_pdwakeups.get() > wakeups, "nobody looked for pages");
        check(&sim);
    }
}

#[test]
fn a_map_without_room_is_null_and_for_kmem_malloc_a_wait_in_nokva_or_its_panic() {
    let sim = boot();
    let site = FailSite::VmMapFindspace;
    arm(&sim, site, "3*return");
    assert_eq!(sim.alloc(PAGE_SIZE), None);
    assert_eq!(sim.nofault(PAGE_SIZE), None);
    assert_eq!(sim.malloc(PAGE_SIZE, NOWAIT), None);
    check(&sim);
    // The first search and three after it fail; each is followed by a longer sleep.
    arm(&sim, site, "4*return");
    let (lowmem, ticks) = (sim.vm().cnt().lowmem_events.get(), sim.vm().cnt().ticks.get());
    assert!(matches!(sim.execute(&malloc(MallocFlags::WAITOK)), Outcome::Value(_)));
    assert_eq!(sim.vm().cnt().lowmem_events.get() - lowmem, 4);
    let quarter = sim.vm().cnt().hz.get() / 4;
    assert_eq!(sim.vm().cnt().ticks.get() - ticks, quarter * (1 + 2 + 3));
    check(&sim);
    arm(&sim, site, "return");
    let message = panic_of(&sim, &malloc(MallocFlags::WAITOK));
    assert!(message.starts_with("kmem_malloc(12288): kmem_map too small"), "{message}");
}

#[test]
fn a_table_or_an_entry_that_is_refused_leaves_the_map_as_it_was() {
    for site in [FailSite::PmapPtAlloc, FailSite::VmMapEntryAlloc] {
        let sim = boot();
        sim.take_boot_tables();
        // As many entries as lie in the map's home; the next ones need pages.
        let mut blocks: Vec<GuestVirt> = Vec::new();
        arm(&sim, site, "return");
        loop {
            let before = sim.counters();
            let op = if blocks.len().is_multiple_of(2) {
                Op::KmemAlloc { map: MapId::KERNEL, size: 600 * PAGE_SIZE }
            } else {
                Op::KmemAllocNofault { map: MapId::KERNEL, size: 600 * PAGE_SIZE }
            };
            if let Op::KmemAlloc { .. } = op {
                // It would wait for ever.
                arm(&sim, site, "1*return");
            } else {
                arm(&sim, site, "return");
            }
            match sim.execute(&op) {
                Outcome::Value(addr) => blocks.push(GuestVirt::new(addr)),
                Outcome::Null => {
                    assert_eq!(sim.counters(), before, "{site:?}");
                    break;
                }
                other => panic!("{op:?} gave {other:?}"),
            }
            assert!(blocks.len() < 100, "{site:?} never fires");
        }
        assert!(fires(&sim, site) > 0);
        check(&sim);
    }
}

#[test]
fn a_fault_without_an_object_or_a_page_waits_and_starts_over() {
    for site in [FailSite::VmObjectReserve, FailSite::VmFaultAlloc, FailSite::SlabZalloc] {
        let sim = boot();
        let size = 2 * PAGE_SIZE;
        let wait = Op::KmemAllocWait { map: MapId::EXEC, size };
        let addr = sim.address(&wait).expect("there is room");
        arm(&sim, site, "2*return");
        sim.ok(&Op::Touch { addr, size });
        assert_eq!(fires(&sim, site), 2, "{site:?}");
        check(&sim);
    }
}

#[test]
fn a_wiring_that_is_short_of_pages_is_repeated_and_any_other_failure_is_a_panic() {
    let sim = boot();
    let site = FailSite::VmMapWire;
    arm(&sim, site, "2*return");
    assert!(sim.alloc(3 * PAGE_SIZE).is_some());
    assert_eq!(fires(&sim, site), 2);
    check(&sim);
    arm(&sim, site, "return(1)");
    let message = panic_of(&sim, &Op::KmemAlloc { map: MapId::KERNEL, size: PAGE_SIZE });
    assert!(message.contains("KERN_INVALID_ADDRESS"), "{message}");
}

#[test]
fn a_submap_that_cannot_be_made_waits_for_pages() {
    let sim = boot();
    let site = FailSite::KmemSuballocMap;
    arm(&sim, site, "2*return");
    let op = Op::KmemSuballoc { parent: MapId::KERNEL, size: MIB, kind: MapKind::System };
    assert!(matches!(sim.execute(&op), Outcome::Value(_)));
    assert_eq!(fires(&sim, site), 2);
    check(&sim);
}

#[test]
fn a_sleep_that_ends_early_ends_at_the_next_tick_and_as_if_by_a_wakeup() {
    let sim = boot();
    let site = FailSite::Tsleep;
    arm(&sim, FailSite::VmMapFindspace, "2*return");
    arm(&sim, site, "return");
    let before = sim.vm().cnt().ticks.get();
    assert!(matches!(sim.execute(&malloc(MallocFlags::WAITOK)), Outcome::Value(_)));
    assert_eq!(sim.vm().cnt().ticks.get() - before, 1, "the sleep in nokva");
    assert!(sim.disarm(site));
    check(&sim);
}

#[test]
fn the_boot_meets_sites_that_are_armed_before_it() {
    let site = FailSite::VmPageAllocInterrupt;
    let armed = [(site, spec(site, "panic"))];
    let boot = || Sim::boot_failing(16 * MIB, Tunables::default(), Zeroed::Yes, &armed);
    let message = catch_unwind(boot).expect_err("it panics");
    let message = message.downcast_ref::<String>().cloned().unwrap_or_default();
    assert_eq!(message, "fail point vm_page_alloc.interrupt panicking");
}

#[test]
fn nothing_that_frees_can_fail() {
    for site in FailSite::ALL {
        let Ok(fail) = FailSpec::parse(site, "return") else { continue };
        let sim = boot();
        let size = 5 * PAGE_SIZE;
        let addr = sim.malloc(size, NOWAIT).expect("there is memory");
        let other = sim.alloc(size).expect("there is memory");
        sim.fail(site, &fail);
        sim.free(MapId::KMEM, addr.add(PAGE_SIZE), PAGE_SIZE);
        sim.free(MapId::KMEM, addr, size);
        sim.free(MapId::KERNEL, other.add(2 * PAGE_SIZE), PAGE_SIZE);
        sim.free(MapId::KERNEL, other, size);
        sim.disarm(site);
        check(&sim);
    }
}

#[test]
fn a_refused_thread_is_a_shortage_of_the_operation_that_needs_it() {
    use crate::vm::thread::ThreadSpec;
    use crate::vm::{Shortage, Vm};

    let sim = boot();
    let before = sim.counters();
    arm(&sim, FailSite::KthreadCreate, "1*return");
    let start = |_: &Vm<crate::sim::SimMachine>, _| {};
    let thread = ThreadSpec { tid: 40, name: "t40", priority: 100, start, arg: 0 };
    assert_eq!(sim.vm().kthread_create(&thread), Err(Shortage));
    assert_eq!(sim.counters(), before);
    check(&sim);
}
