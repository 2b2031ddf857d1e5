//! Preemption, priorities, critical sections, interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[test]
fn two_endless_threads_both_progress_under_preemption() {
    let sim = boot();
    let work: [Arc<AtomicU64>; 2] = Default::default();
    for (tid, work) in (0..).zip(work.clone()) {
        sim.spawn(tid, move |vm| {
            loop {
                work.fetch_add(1, Ordering::Relaxed);
                vm.machine().tick(vm);
            }
        });
    }
    sim.run_for(1000);
    let [a, b] = work.map(|work| work.load(Ordering::Relaxed));
    assert_eq!(a + b, 1000, "a tick each");
    assert!(a.abs_diff(b) <= 20, "{a} and {b} ticks: the turns are equal");
}

#[test]
fn a_better_priority_runs_first_and_equal_ones_in_order() {
    let (sim, notes) = (boot(), Notes::default());
    for (tid, priority) in [(1, 160), (2, 68), (3, 160), (4, 64), (5, 68)] {
        let notes = notes.clone();
        sim.spawn_with_priority(tid, priority, move |_| notes.note(tid, 0));
    }
    sim.run();
    assert_eq!(notes.tids(), [4, 2, 5, 1, 3]);
}

#[test]
fn a_critical_section_puts_preemption_off_until_its_end() {
    let (sim, notes) = (boot(), Notes::default());
    let (first, second) = (notes.clone(), notes.clone());
    sim.spawn(1, move |vm| {
        vm.critical_enter();
        vm.critical_enter();
        // Five time slices.
        for _ in 0..vm.cnt().hz.get() / 2 {
            vm.machine().tick(vm);
        }
        vm.critical_exit();
        first.note(1, 0);
        vm.critical_exit();
        first.note(1, 1);
    });
    sim.spawn(2, move |_| second.note(2, 0));
    sim.run();
    assert_eq!(notes.take(), [(1, 0), (2, 0), (1, 1)]);
}

#[test]
fn an_interrupt_waits_until_the_last_mutex_is_released() {
    let (sim, notes) = (boot(), Notes::default());
    let (thread, handler) = (notes.clone(), notes.clone());
    sim.spawn(1, move |vm| {
        let (outer, inner) = (&vm.state().driver_mtx, &vm.state().vm_page_queue_free_mtx);
        vm.mtx_lock(LockClass::Driver, &outer.owner);
        vm.mtx_lock(LockClass::FreeQueue, &inner.owner);
        vm.machine().interrupts.raise(
            0,
            Box::new(move |vm| {
                assert_eq!(vm.held_locks().bits(), 0);
                assert!(vm.in_interrupt());
                handler.note(9, 0);
            }),
        );
        vm.mtx_unlock(LockClass::FreeQueue, &inner.owner);
        thread.note(1, 0);
        vm.mtx_unlock(LockClass::Driver, &outer.owner);
        thread.note(1, 1);
    });
    sim.run();
    assert_eq!(notes.take(), [(1, 0), (9, 0), (1, 1)]);
}

#[test]
fn an_interrupt_handler_allocates_without_sleeping_in_the_middle_of_a_thread() {
    let sim = boot();
    let op = Op::KmemMalloc { map: MapId::KMEM, size: PAGE_SIZE, flags: MallocFlags::NOWAIT };
    assert!(matches!(sim.execute_in_interrupt(&op), Outcome::Value(_)));
    assert!(!sim.vm().in_interrupt());
}

#[test]
fn the_same_seed_gives_the_same_interleaving() {
    let history = |seed| {
        let (sim, notes) = (boot(), Notes::default());
        sim.interrupt_at_random(seed, 4);
        for tid in 0..3 {
            let notes = notes.clone();
            sim.spawn(tid, move |vm| {
                for step in 0..20 {
                    notes.note(tid, step);
                    vm.wakeup(channel(0));
                }
            });
        }
        sim.run();
        notes.take()
    };
    assert_eq!(history(1), history(1));
    assert!((2..10).any(|seed| history(seed) != history(1)), "no seed makes a difference");
}

#[test]
fn dropping_a_simulation_ends_its_threads() {
    let alive = Arc::new(());
    let sim = boot();
    for tid in 0..4 {
        let alive = alive.clone();
        sim.spawn(tid, move |vm| {
            let _alive = alive;
            sleep(vm, channel(0), 0);
        });
    }
    sim.run();
    let never_ran = alive.clone();
    sim.spawn(5, move |_| drop(never_ran));
    drop(sim);
    assert_eq!(Arc::strong_count(&alive), 1, "a thread is left");
}
