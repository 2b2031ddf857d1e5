//! Points in loops over pages at which interrupts are handled while mutexes are owned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MapId, MapKind, Op, Outcome};
use vmkern_abi::layout::ThreadState;

use super::{MIB, NOWAIT, ZEROED, boot};
use crate::kern::point::PAGES_MAX;
use crate::sim::Sim;

/// The most pages that the simulated CPU has worked on between two points.
fn longest(sim: &Sim) -> u64 {
    sim.vm().boot_pcpu().longest_pages.get()
}

#[test]
fn no_function_works_on_more_than_64_pages_between_two_points() {
    let sim = boot();
    let all = 20 * MIB;
    let a = sim.malloc(all, ZEROED).expect("there is room");
    assert_eq!(sim.malloc(all, NOWAIT), None, "no room");
    sim.free(MapId::KMEM, a, all);
    let b = sim.alloc(all).expect("there is room");
    sim.free(MapId::KERNEL, b, all);
    // Pages run out, and all allocated pages are freed again.
    let (size, kind) = (256 * MIB, MapKind::System);
    let map = MapId(
        sim.address(&Op::KmemSuballoc { parent: MapId::KERNEL, size, kind }).expect("room").get(),
    );
    assert_eq!(sim.execute(&Op::KmemMalloc { map, size: 128 * MIB, flags: NOWAIT }), Outcome::Null);
    // Many entries, with pages and without.
    let block = sim.malloc(4 * MIB, NOWAIT).expect("there is room");
    for page in 0..512 {
        sim.free(MapId::KMEM, block.add(2 * page * PAGE_SIZE), PAGE_SIZE);
    }
    sim.free(MapId::KMEM, block, 4 * MIB);
    let window = sim.nofault(16 * MIB).expect("there is room");
    for page in 0..1024 {
        sim.free(MapId::KERNEL, window.add(2 * page * PAGE_SIZE), PAGE_SIZE);
    }
    sim.free(MapId::KERNEL, window, 16 * MIB);
    let longest = longest(&sim);
    assert!((2..=PAGES_MAX).contains(&longest), "{longest} pages");
}

#[test]
fn a_thread_whose_time_is_up_is_woken_by_the_clock_though_mutexes_are_owned() {
    let sim = boot();
    sim.submit(1, Op::Sleep { micros: 5_000 });
    sim.run();
    let woken = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&woken);
    sim.vm().machine().at_next_point(Box::new(move |vm| {
        assert_ne!(vm.held_locks().bits(), 0, "the map's and the object's");
        let sleeper = vm.tfind(1).expect("it sleeps");
        assert_eq!(vm.get(sleeper).state(), Some(ThreadState::Sleeping));
        vm.hardclock(vm.cnt().ticks.get() + 10);
        assert_eq!(
            vm.get(sleeper).state(),
            Some(ThreadState::Runnable),
            "it does not run before the locks are free"
        );
        note.store(true, Ordering::Relaxed);
    }));
    assert!(sim.malloc(MIB, NOWAIT).is_some());
    assert!(woken.load(Ordering::Relaxed), "a megabyte has points");
}

#[test]
fn a_short_operation_has_no_point() {
    let sim = boot();
    let reached = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&reached);
    sim.vm().machine().at_next_point(Box::new(move |_| note.store(true, Ordering::Relaxed)));
    let a = sim.malloc(4 * PAGE_SIZE, NOWAIT).expect("there is room");
    sim.free(MapId::KMEM, a, 4 * PAGE_SIZE);
    assert!(!reached.load(Ordering::Relaxed));
}
