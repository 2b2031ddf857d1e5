//! Sleeps and retries for address space, for pages, and for a map, and how they end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome, WaitMessage};

use super::super::check::check;
use super::super::{Sim, SimMachine};
use super::{MIB, NOWAIT, boot};
use crate::kern::eventhandler::EventPriority;
use crate::kern::sleepq::WaitChannel;
use crate::vm::Vm;
use crate::vm::eventhandler::{UMA_RECLAIM, VM_LOWMEM};

const WAITOK: MallocFlags = MallocFlags::WAITOK;
/// Bytes that execve requests from exec_map.
const ARGUMENTS: u64 = 267_264;

/// Fills kmem_map with single pages and then frees every second one: no hole of two pages.
fn checkerboard(tunables: Tunables) -> (Sim, Vec<GuestVirt>) {
    let sim = Sim::boot(64 * MIB, tunables);
    sim.run();
    let pages: Vec<_> = std::iter::from_fn(|| sim.malloc(PAGE_SIZE, NOWAIT)).collect();
    assert_eq!(pages.len() as u64, 24 * MIB / PAGE_SIZE);
    for addr in pages.iter().skip(1).step_by(2) {
        sim.free(MapId::KMEM, *addr, PAGE_SIZE);
    }
    assert_eq!(sim.malloc(2 * PAGE_SIZE, NOWAIT), None);
    assert_eq!(sim.vm().cnt().lowmem_events.get(), 0);
    (sim, pages)
}

/// Frees the page `arg` of kmem_map, as soon as vm_lowmem has fired as often as `v_swapout` says.
fn rescue(vm: &Vm<SimMachine>, arg: u64, _flags: u64) {
    vm.assert_no_locks("a handler");
    if vm.cnt().lowmem_events.get() == vm.cnt().v_swapout.get() {
        vm.kmem_free(vm.kmem_map(), GuestVirt::new(arg), PAGE_SIZE);
    }
}

fn rescued_at(invocation: u64) -> (Outcome, u64, u64) {
    let (sim, pages) = checkerboard(Tunables::default());
    sim.vm().cnt().v_swapout.set(invocation);
    let hole = pages[100];
    let registered =
        sim.vm().eventhandler_register(VM_LOWMEM, rescue, hole.get(), EventPriority::ANY);
    assert!(registered.is_ok());
    let before = sim.vm().cnt().ticks.get();
    let outcome =
        sim.execute_on(3, Op::KmemMalloc { map: MapId::KMEM, size: 2 * PAGE_SIZE, flags: WAITOK });
    assert_eq!(outcome, Outcome::Value(pages[99].get()));
    check(&sim);
    (outcome, sim.vm().cnt().lowmem_events.get(), sim.vm().cnt().ticks.get() - before)
}

#[test]
fn a_hole_freed_by_the_fourth_lowmem_event_ends_the_nokva_loop_after_1_5_seconds() {
    let (_, events, ticks) = rescued_at(4);
    assert_eq!((events, ticks), (4, 1500));
}

#[test]
fn success_on_retry_k_leaves_k_plus_1_events_and_the_sleeps_before_it() {
    for k in 0..8 {
        let (_, events, ticks) = rescued_at(k + 1);
        assert_eq!((events, ticks), (k + 1, (1..=k).map(|i| 250 * i).sum()), "retry {k}");
    }
}

/// Counts reclaims, each after its event.
fn reclaim(vm: &Vm<SimMachine>, _arg: u64, _flags: u64) {
    vm.cnt().v_swapin.inc();
    assert_eq!(
        vm.cnt().v_swapin.get(),
        vm.cnt().lowmem_events.get(),
        "event and reclaim take turns"
    );
}

/// The traces of a `kmem_malloc` that cannot succeed and panics: its message, events, reclaims, and
/// ticks slept.
fn exhausted(tunables: Tunables) -> (String, u64, u64, u64) {
    let (sim, _) = checkerboard(tunables);
    let registered = sim.vm().eventhandler_register(UMA_RECLAIM, reclaim, 0, EventPriority::ANY);
    assert!(registered.is_ok());
    let before = sim.vm().cnt().ticks.get();
    let end = catch_unwind(AssertUnwindSafe(|| sim.malloc(2 * PAGE_SIZE - 7, WAITOK)));
    let message = end.expect_err("there is no room").downcast::<String>().expect("a message");
    let cnt = sim.vm().cnt();
    (*message, cnt.lowmem_events.get(), cnt.v_swapin.get(), cnt.ticks.get() - before)
}

#[test]
fn without_a_hole_kmem_malloc_asks_8_times_sleeps_9_seconds_and_panics_with_freebsds_text() {
    let (message, events, reclaims, ticks) = exhausted(Tunables::default());
    assert_eq!(
        message,
        format!("kmem_malloc(8192): kmem_map too small: {} total allocated", 12 * MIB)
    );
    assert_eq!((events, reclaims, ticks), (8, 8, 36 * 250));
}

/// The result of `kmem_malloc` when a hole for it is freed after this many ticks.
fn freed_after(ticks: u64) -> Result<Outcome, String> {
    let (sim, pages) = checkerboard(Tunables::default());
    let hole = pages[100];
    sim.spawn(3, move |vm| {
        let _ = vm.tsleep(WaitChannel::of(vm.current_thread()), 0, "test", ticks);
        vm.kmem_free(vm.kmem_map(), hole, PAGE_SIZE);
    });
    let op = Op::KmemMalloc { map: MapId::KMEM, size: 2 * PAGE_SIZE, flags: WAITOK };
    let end = catch_unwind(AssertUnwindSafe(|| sim.execute(&op)));
    end.map_err(|message| *message.downcast::<String>().expect("a message"))
}

#[test]
fn the_last_sleep_is_followed_by_the_panic_without_another_try() {
    // The eighth event comes after 0.25 + 0.5 + ... + 1.75 seconds, which is 7000 ticks.
    assert!(matches!(freed_after(6900), Ok(Outcome::Value(_))));
    let message = freed_after(7100).expect_err("it comes too late");
    assert!(message.contains("kmem_map too small"), "{message}");
}

#[test]
fn while_the_system_is_cold_all_eight_tries_come_at_once() {
    let (sim, _) = checkerboard(Tunables::default());
    let before = sim.vm().cnt().ticks.get();
    sim.vm().state().sched.cold.raise();
    let end = catch_unwind(AssertUnwindSafe(|| sim.malloc(2 * PAGE_SIZE, WAITOK)));
    assert!(end.is_err(), "there is no room");
    assert_eq!((sim.vm().cnt().lowmem_events.get(), sim.vm().cnt().ticks.get()), (8, before));
}

#[test]
fn the_sleeps_follow_hz_and_are_never_shorter_than_a_tick() {
    for (hz, ticks) in [(1000, 36 * 250), (10, 36 * 2), (7, 36), (3, 8), (1, 8)] {
        let (_, events, _, slept) =
            exhausted(Tunables { kern_hz: Some(hz), ..Tunables::default() });
        assert_eq!((events, slept), (8, ticks), "kern.hz {hz}");
    }
}

/// A small machine whose kmem_map is larger than its memory, with the pagedaemon at rest, and
/// blocks of one page that take all memory but `left` pages.
fn drained(left: u64) -> (Sim, Vec<GuestVirt>) {
    let sim = Sim::boot(16 * MIB, Tunables { vm_kmem_size: Some(24 * MIB), ..Tunables::default() });
    // The threads first, because they need stacks.
    for tid in [1, 2] {
        assert_eq!(sim.execute_on(tid, Op::Nop), Outcome::Ok);
    }
    let mut blocks = Vec::new();
    while sim.free_pages() > left {
        blocks.push(sim.malloc(PAGE_SIZE, NOWAIT).expect("a page is free"));
    }
    assert_eq!(sim.free_pages(), left);
    (sim, blocks)
}

fn waits(sim: &Sim, tid: u32, wmesg: &str) {
    sim.run();
    assert_eq!(sim.waits_for(tid), Some(WaitMessage::new(wmesg)), "thread {tid}");
}

#[test]
fn waitok_sleeps_in_vmwait_at_two_pages_until_v_free_min_are_free() {
    let (sim, mut blocks) = drained(4);
    sim.submit(1, Op::KmemMalloc { map: MapId::KMEM, size: 5 * PAGE_SIZE, flags: WAITOK });
    waits(&sim, 1, "vmwait");
    assert_eq!(sim.free_pages(), 2);
    let min = sim.vm().cnt().v_free_min.get();
    while sim.free_pages() + 1 < min {
        sim.free(MapId::KMEM, blocks.pop().expect("enough blocks"), PAGE_SIZE);
        waits(&sim, 1, "vmwait");
    }
    assert_eq!(sim.answer(1), None);
    sim.free(MapId::KMEM, blocks.pop().expect("enough blocks"), PAGE_SIZE);
    sim.run();
    assert!(matches!(sim.answer(1), Some(Outcome::Value(_))));
    check(&sim);
}

#[test]
fn kmem_alloc_waits_at_v_free_reserved_and_goes_on_when_the_pagedaemon_finds_memory() {
    let (sim, mut blocks) = drained(300);
    let cnt = sim.vm().cnt();
    sim.submit(1, Op::KmemAlloc { map: MapId::KERNEL, size: 400 * PAGE_SIZE });
    waits(&sim, 1, "vmwait");
    assert_eq!(sim.free_pages(), cnt.v_free_reserved.get());
    assert!(cnt.v_pdwakeups.get() > 0 && cnt.lowmem_events.get() > 0);
    let events = cnt.lowmem_events.get();
    let before = cnt.ticks.get();
    assert!(sim.advance().is_some(), "the pagedaemon tries again");
    assert_eq!(
        (cnt.ticks.get() - before, cnt.lowmem_events.get() - events),
        (500, 1),
        "every half second"
    );
    for _ in 0..400 {
        sim.free(MapId::KMEM, blocks.pop().expect("enough blocks"), PAGE_SIZE);
    }
    let Outcome::Value(addr) = sim.finish(1) else { panic!("no memory") };
    sim.ok(&Op::VerifyZero { addr: GuestVirt::new(addr), size: 400 * PAGE_SIZE });
    check(&sim);
}

#[test]
fn neighbours_may_come_and_go_while_an_allocation_waits_for_its_other_half() {
    let (sim, mut blocks) = drained(20);
    let low = *blocks.last().expect("a block");
    sim.submit(1, Op::KmemMalloc { map: MapId::KMEM, size: 30 * PAGE_SIZE, flags: WAITOK });
    waits(&sim, 1, "vmwait");
    let above = sim.malloc(PAGE_SIZE, NOWAIT).expect("the last pages are for NOWAIT");
    assert_eq!(above, low.add(31 * PAGE_SIZE));
    sim.free(MapId::KMEM, low, PAGE_SIZE);
    blocks.pop();
    assert_eq!(sim.malloc(PAGE_SIZE, NOWAIT), Some(low));
    sim.free(MapId::KMEM, above, PAGE_SIZE);
    blocks.drain(..200).for_each(|addr| sim.free(MapId::KMEM, addr, PAGE_SIZE));
    assert_eq!(sim.finish(1), Outcome::Value(low.add(PAGE_SIZE).get()));
    check(&sim);
    assert_eq!(sim.map(MapId::KMEM).nentries.get(), 1, "all of it is one entry in the end");
}

#[test]
fn a_fault_waits_in_pfault_while_pages_are_severely_short() {
    let (sim, mut blocks) = drained(20);
    let addr = sim
        .address(&Op::KmemAllocWait { map: MapId::EXEC, size: PAGE_SIZE })
        .expect("there is room");
    sim.submit(1, Op::Write { addr, value: 5 });
    waits(&sim, 1, "pfault");
    blocks.drain(..200).for_each(|addr| sim.free(MapId::KMEM, addr, PAGE_SIZE));
    assert_eq!(sim.finish(1), Outcome::Ok);
    assert_eq!(sim.read(addr), 5);
    check(&sim);
}

#[test]
fn who_deletes_a_range_in_transition_waits_in_vmmaps_until_it_is_wired() {
    let (sim, mut blocks) = drained(20);
    let size = 8 * PAGE_SIZE;
    let addr = sim.address(&Op::KmemAllocWait { map: MapId::EXEC, size }).expect("there is room");
    let map = sim.vm().map_by_id(MapId::EXEC).expect("it exists");
    sim.spawn(3, move |vm| assert_eq!(vm.vm_map_wire(map, addr, addr.add(size)), Ok(())));
    waits(&sim, 3, "pfault");
    sim.spawn(4, move |vm| vm.kmem_free(map, addr.add(PAGE_SIZE), PAGE_SIZE));
    waits(&sim, 4, "vmmaps");
    blocks.drain(..200).for_each(|addr| sim.free(MapId::KMEM, addr, PAGE_SIZE));
    while sim.waits_for(4).is_some() && sim.advance().is_some() {}
    sim.run();
    assert_eq!((sim.waits_for(3), sim.waits_for(4)), (None, None));
    assert_eq!(sim.map(MapId::EXEC).size.get(), 7 * PAGE_SIZE);
    check(&sim);
}

fn exec(tid: u32, sim: &Sim) {
    sim.submit(tid, Op::KmemAllocWait { map: MapId::EXEC, size: ARGUMENTS });
}

#[test]
fn exec_map_holds_16_argument_buffers_and_one_free_wakes_the_17th() {
    let sim = boot();
    for tid in 0..17 {
        exec(tid, &sim);
    }
    waits(&sim, 16, "vmmaps");
    let held: Vec<_> = (0..16).map(|tid| sim.answer(tid)).collect();
    assert_eq!(held.iter().flatten().count(), 16);
    assert_eq!(sim.map(MapId::EXEC).needs_wakeup.get().raw(), 1);
    let Some(Outcome::Value(third)) = held[2] else { panic!("no address") };
    sim.ok(&Op::KmemFree { map: MapId::EXEC, addr: GuestVirt::new(0), size: 0 });
    waits(&sim, 16, "vmmaps");
    sim.ok(&Op::KmemFreeWakeup { map: MapId::EXEC, addr: GuestVirt::new(third), size: ARGUMENTS });
    assert_eq!(sim.finish(16), Outcome::Value(third));
    assert_eq!(sim.map(MapId::EXEC).needs_wakeup.get().raw(), 0);
    check(&sim);
}

#[test]
fn an_exec_storm_of_64_threads_all_get_their_buffer_and_no_wakeup_is_lost() {
    let sim = boot();
    (0..64).for_each(|tid| exec(tid, &sim));
    let (mut done, mut most) = (0, 0);
    let mut held = std::collections::VecDeque::new();
    while done < 64 {
        sim.run();
        held.extend((0..64).filter_map(|tid| sim.answer(tid)));
        most = most.max(held.len());
        let Some(Outcome::Value(addr)) = held.pop_front() else {
            panic!("nobody got on after {done}")
        };
        let addr = GuestVirt::new(addr);
        sim.fill(addr, ARGUMENTS, done);
        sim.verify(addr, ARGUMENTS, done);
        sim.ok(&Op::KmemFreeWakeup { map: MapId::EXEC, addr, size: ARGUMENTS });
        check(&sim);
        done += 1;
    }
    assert_eq!(most, 16);
    assert_eq!(sim.map(MapId::EXEC).size.get(), 0);
}

#[test]
fn a_request_for_the_whole_map_starves_behind_small_ones_until_the_map_is_empty() {
    let sim = boot();
    let map = MapId::EXEC;
    let whole = sim.map(map).max_offset().since(sim.map(map).min_offset());
    let mut small =
        sim.address(&Op::KmemAllocWait { map, size: PAGE_SIZE }).expect("there is room");
    sim.submit(1, Op::KmemAllocWait { map, size: whole });
    waits(&sim, 1, "vmmaps");
    for _ in 0..10 {
        let next = sim.address(&Op::KmemAllocWait { map, size: PAGE_SIZE }).expect("there is room");
        sim.ok(&Op::KmemFreeWakeup { map, addr: small, size: PAGE_SIZE });
        waits(&sim, 1, "vmmaps");
        small = next;
    }
    sim.ok(&Op::KmemFreeWakeup { map, addr: small, size: PAGE_SIZE });
    assert_eq!(sim.finish(1), Outcome::Value(sim.map(map).min_offset().get()));
    check(&sim);
}

#[test]
fn nowait_in_an_interrupt_takes_the_last_page_without_a_sleep() {
    let (sim, _) = drained(1);
    let take = Op::KmemMalloc { map: MapId::KMEM, size: PAGE_SIZE, flags: NOWAIT };
    let Outcome::Value(addr) = sim.execute_in_interrupt(&take) else { panic!("there was a page") };
    assert_eq!(sim.execute_in_interrupt(&take), Outcome::Null);
    sim.run();
    check(&sim);
    sim.free(MapId::KMEM, GuestVirt::new(addr), PAGE_SIZE);
    check(&sim);
}

#[test]
#[should_panic(expected = "vm_page_alloc(NORMAL|SYSTEM) in interrupt context")]
fn waitok_in_an_interrupt_is_a_panic() {
    let sim = boot();
    let _ = sim.execute_in_interrupt(&Op::KmemMalloc {
        map: MapId::KMEM,
        size: PAGE_SIZE,
        flags: WAITOK,
    });
}

#[test]
fn an_operation_stored_for_a_shortage_of_pages_ends_the_wait_of_another_thread() {
    let (sim, blocks) = drained(10);
    // The pagedaemon has made a pass, and sleeps for half a second.
    sim.run();
    let free = Op::KmemFree { map: MapId::KMEM, addr: blocks[0], size: 200 * PAGE_SIZE };
    let run = |vm: &Vm<SimMachine>, op: &Op| {
        assert_eq!(super::super::threads::perform(vm, op), Outcome::Ok)
    };
    assert_eq!(crate::ops::register_lowmem(sim.vm(), &free, run), Outcome::Ok);
    sim.submit(1, Op::KmemMalloc { map: MapId::KMEM, size: 50 * PAGE_SIZE, flags: WAITOK });
    waits(&sim, 1, "vmwait");
    assert!(sim.advance().is_some());
    let above = blocks.last().expect("a block").add(PAGE_SIZE);
    assert_eq!(sim.answer(1), Some(Outcome::Value(above.get())), "its room it had before it slept");
    check(&sim);
}
