//! Stalls on memory: exact times by thread and cause, and pressure.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome, WaitMessage};
use vmkern_abi::layout::Thread;
use vmkern_abi::pressure::{PERIOD, StallCause, StallLine, Stalls, WHOLE};

use super::super::{Sim, SimMachine};
use super::{MIB, NOWAIT, boot};
use crate::kern::eventhandler::EventPriority;
use crate::kern::sleepq::WaitChannel;
use crate::vm::Vm;
use crate::vm::eventhandler::VM_LOWMEM;

const WAITOK: MallocFlags = MallocFlags::WAITOK;
/// Microseconds of a tick.
const TICK: u64 = 1000;

/// A machine almost without free pages, with threads 1 and 2, and the blocks that take the pages.
fn drained() -> (Sim, Vec<GuestVirt>) {
    let sim = Sim::boot(16 * MIB, Tunables { vm_kmem_size: Some(24 * MIB), ..Tunables::default() });
    for tid in [1, 2] {
        assert_eq!(sim.execute_on(tid, Op::Nop), Outcome::Ok);
    }
    let mut blocks = Vec::new();
    while sim.free_pages() > 20 {
        blocks.push(sim.malloc(PAGE_SIZE, NOWAIT).expect("a page is free"));
    }
    (sim, blocks)
}

/// Makes thread `tid` wait for pages.
fn starve(sim: &Sim, tid: u32) {
    sim.submit(tid, Op::KmemMalloc { map: MapId::KMEM, size: 50 * PAGE_SIZE, flags: WAITOK });
    sim.run();
    assert_eq!(sim.waits_for(tid), Some(WaitMessage::new("vmwait")), "thread {tid}");
}

/// Lets `ticks` ticks pass.
fn pass(sim: &Sim, ticks: u64) {
    sim.machine().set_clock(sim.vm(), sim.vm().cnt().ticks.get() + ticks);
    sim.run();
}

/// Frees enough pages for all.
fn feed(sim: &Sim, blocks: &mut Vec<GuestVirt>) {
    blocks.drain(..400).for_each(|addr| sim.free(MapId::KMEM, addr, PAGE_SIZE));
    sim.run();
}

fn thread(sim: &Sim, tid: u32) -> &Thread {
    sim.vm().get(sim.vm().tfind(tid).expect("it exists"))
}

/// The stalls of thread `tid` that have ended, in microseconds, and those of all threads.
fn stalled(sim: &Sim, tid: u32, cause: StallCause) -> (u64, u64) {
    let all = &sim.vm().state().sched.pressure.micros;
    (thread(sim, tid).stalled[cause.index()].get(), all[cause.index()].get())
}

/// The lines `some` and `full` now, as a reader computes them.
fn lines(sim: &Sim) -> [StallLine; 2] {
    let pressure = &sim.vm().state().sched.pressure;
    pressure.lines(pressure.stalls(), sim.vm().cnt().ticks.get() * TICK)
}

fn totals(sim: &Sim) -> [u64; 2] {
    lines(sim).map(|line| line.total)
}

#[test]
fn a_wait_for_pages_is_a_stall_from_the_sleep_to_the_wakeup() {
    let (sim, mut blocks) = drained();
    pass(&sim, 41);
    let began = sim.vm().cnt().ticks.get() * TICK;
    starve(&sim, 1);
    pass(&sim, 137);
    // 1. While it lasts, its beginning is known, and readers add the time since.
    assert_eq!(thread(&sim, 1).stall_since.get(), began);
    assert_eq!(stalled(&sim, 1, StallCause::Vmwait), (0, 0));
    assert_eq!(totals(&sim), [137 * TICK; 2]);
    // 2. It ends with the wakeup: what comes later does not count.
    feed(&sim, &mut blocks);
    pass(&sim, 1000);
    assert_eq!(stalled(&sim, 1, StallCause::Vmwait), (137 * TICK, 137 * TICK));
    assert_eq!(thread(&sim, 1).stall_since.get(), 0);
    assert_eq!(totals(&sim), [137 * TICK; 2]);
    assert_eq!(sim.vm().state().sched.pressure.stalls(), Stalls::None);
}

#[test]
fn two_stalled_threads_count_twice_by_cause_and_once_in_the_pressure() {
    let (sim, mut blocks) = drained();
    starve(&sim, 1);
    pass(&sim, 100);
    starve(&sim, 2);
    pass(&sim, 50);
    feed(&sim, &mut blocks);
    let (first, second) =
        (stalled(&sim, 1, StallCause::Vmwait), stalled(&sim, 2, StallCause::Vmwait));
    assert_eq!((first, second), ((150 * TICK, 200 * TICK), (50 * TICK, 200 * TICK)));
    assert_eq!(totals(&sim), [150 * TICK; 2]);
}

#[test]
fn while_another_thread_works_the_pressure_is_some_and_not_full() {
    let (sim, mut blocks) = drained();
    starve(&sim, 1);
    sim.submit_to(2, Op::Nop, |vm, _| {
        (0..30).for_each(|_| vm.machine().tick(vm));
        Outcome::Ok
    });
    sim.run();
    assert_eq!(totals(&sim), [30 * TICK, 0]);
    pass(&sim, 12);
    assert_eq!(totals(&sim), [42 * TICK, 12 * TICK]);
    feed(&sim, &mut blocks);
    assert_eq!(totals(&sim), [42 * TICK, 12 * TICK]);
}

#[test]
fn the_pagedaemon_that_works_for_a_stalled_thread_does_not_end_the_full_stall() {
    let (sim, _) = drained();
    fn slow(vm: &Vm<SimMachine>, _arg: u64, _flags: u64) {
        (0..7).for_each(|_| vm.machine().tick(vm));
    }
    assert!(sim.vm().eventhandler_register(VM_LOWMEM, slow, 0, EventPriority::ANY).is_ok());
    starve(&sim, 1);
    let events = sim.vm().cnt().lowmem_events.get();
    assert!(sim.advance().is_some(), "the pagedaemon tries again");
    assert_eq!(sim.vm().cnt().lowmem_events.get(), events + 1);
    let [some, full] = totals(&sim);
    assert_eq!(some, full);
    assert!(some >= 500 * TICK, "{some}");
}

#[test]
fn retries_for_address_space_are_stalls_of_1_5_seconds_in_three_sleeps() {
    fn rescue(vm: &Vm<SimMachine>, arg: u64, _flags: u64) {
        if vm.cnt().lowmem_events.get() == 4 {
            vm.kmem_free(vm.kmem_map(), GuestVirt::new(arg), PAGE_SIZE);
        }
    }
    let sim = boot();
    let pages: Vec<_> = std::iter::from_fn(|| sim.malloc(PAGE_SIZE, NOWAIT)).collect();
    let registered =
        sim.vm().eventhandler_register(VM_LOWMEM, rescue, pages[9].get(), EventPriority::ANY);
    assert!(registered.is_ok());
    let op = Op::KmemMalloc { map: MapId::KMEM, size: PAGE_SIZE, flags: WAITOK };
    assert_eq!(sim.execute_on(3, op), Outcome::Value(pages[9].get()));
    let slept = (250 + 500 + 750) * TICK;
    assert_eq!(stalled(&sim, 3, StallCause::Nokva), (slept, slept));
    assert_eq!(totals(&sim), [slept; 2]);
}

#[test]
fn waits_for_room_in_a_map_and_in_page_faults_have_causes_of_their_own() {
    // 1. Room in exec_map.
    let sim = boot();
    let map = MapId::EXEC;
    let whole = sim.map(map).max_offset().since(sim.map(map).min_offset());
    let held = sim.address(&Op::KmemAllocWait { map, size: PAGE_SIZE }).expect("there is room");
    sim.submit(1, Op::KmemAllocWait { map, size: whole });
    sim.run();
    pass(&sim, 8);
    sim.ok(&Op::KmemFreeWakeup { map, addr: held, size: PAGE_SIZE });
    assert_eq!(stalled(&sim, 1, StallCause::Vmmaps), (8 * TICK, 8 * TICK));
    // 2. A page for a fault.
    let (sim, mut blocks) = drained();
    let addr = sim.address(&Op::KmemAllocWait { map, size: PAGE_SIZE }).expect("there is room");
    sim.submit(1, Op::Write { addr, value: 5 });
    sim.run();
    pass(&sim, 3);
    feed(&sim, &mut blocks);
    assert_eq!(stalled(&sim, 1, StallCause::Pfault), (3 * TICK, 3 * TICK));
    assert_eq!(stalled(&sim, 1, StallCause::Vmwait).0, 0);
}

#[test]
fn sleeps_for_other_reasons_are_not_stalls() {
    let sim = boot();
    for tid in 1..5 {
        sim.spawn(tid, |vm| {
            let _ = vm.tsleep(WaitChannel::of(vm.current_thread()), 0, "test", 700);
        });
    }
    sim.run();
    while sim.advance().is_some() {}
    let pressure = &sim.vm().state().sched.pressure;
    assert_eq!(totals(&sim), [0; 2]);
    assert_eq!((pressure.stalled.get(), pressure.working.get()), (0, 0), "all have exited");
}

#[test]
fn a_stall_of_ten_seconds_is_63_percent_of_the_average_over_ten_seconds() {
    let (sim, mut blocks) = drained();
    let ticks = sim.vm().cnt().ticks.get();
    pass(&sim, (2 * PERIOD / TICK) - ticks);
    starve(&sim, 1);
    pass(&sim, 10_000);
    let percent = |avg: u64| avg * 10_000 / WHOLE;
    let averages = |sim: &Sim| lines(sim).map(|line| (percent(line.avg10), percent(line.avg60)));
    // 1 - 1/e, and 1 - exp(-1/6); 10 seconds later, 1/e of the one and exp(-1/6) of the other.
    assert_eq!(averages(&sim), [(6321, 1535); 2]);
    feed(&sim, &mut blocks);
    pass(&sim, 10_000);
    assert_eq!(averages(&sim), [(2325, 1299); 2]);
}
