//! Clearing free pages while nothing else runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId};

use super::{MIB, NOWAIT};
use crate::sim::check::{check, check_zeros};
use crate::sim::{Sim, SimMachine};
use crate::vm::{Vm, Zeroed};

/// A machine of 16 MiB of which nearly all has been used, dirtied and freed again, and on which no
/// thread has run since.
fn dirtied(enable: u64) -> Sim {
    let tunables = Tunables {
        vm_kmem_size: Some(24 * MIB),
        vm_idlezero_enable: Some(enable),
        ..Tunables::default()
    };
    let sim = Sim::boot(16 * MIB, tunables);
    let pages = sim.free_pages() - 100;
    let addr = sim.malloc(pages * PAGE_SIZE, NOWAIT).expect("there is memory");
    for page in 0..pages {
        sim.write(addr.add(page * PAGE_SIZE), !0);
    }
    sim.free(MapId::KMEM, addr, pages * PAGE_SIZE);
    sim
}

fn zero_and_free(sim: &Sim) -> (u64, u64) {
    (sim.vm().state().vm_page_zero_count.get(), sim.free_pages())
}

#[test]
fn pagezero_clears_free_pages_up_to_four_fifths_when_nothing_else_runs() {
    let sim = dirtied(1);
    let ((zero, free), zeroings) = (zero_and_free(&sim), sim.machine().zeroings());
    assert!(zero < free / 10, "{zero} of {free} pages are zero before it has run");
    sim.run();
    let (zero, after) = zero_and_free(&sim);
    assert_eq!((zero, after), (free * 4 / 5, free));
    assert_eq!(sim.vm().state().cnt_prezero.get(), sim.machine().zeroings() - zeroings);
    check(&sim);
    check_zeros(&sim);
}

#[test]
fn pagezero_rests_until_fewer_than_two_thirds_are_zero() {
    let sim = dirtied(1);
    sim.run();
    let cleared = sim.machine().zeroings();
    let (zero, free) = zero_and_free(&sim);
    // More and more zeroed pages are allocated, and freed dirty.
    let mut rested = 0;
    for pages in (50..free).step_by(50) {
        let addr = sim.malloc(pages * PAGE_SIZE, NOWAIT).expect("there is memory");
        sim.free(MapId::KMEM, addr, pages * PAGE_SIZE);
        let (zero, free) = zero_and_free(&sim);
        sim.run();
        let works = sim.machine().zeroings() > cleared;
        assert_eq!(works, zero < free * 2 / 3, "with {zero} of {free} pages zero");
        if works {
            break;
        }
        rested += 1;
    }
    assert!(
        rested > 0 && sim.machine().zeroings() > cleared,
        "{zero} of {free} pages were zero, it rested {rested} times"
    );
    check(&sim);
}

#[test]
fn zeroed_memory_need_not_be_cleared_again_after_pagezero() {
    let sim = dirtied(1);
    sim.run();
    let cleared = sim.machine().zeroings();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT | MallocFlags::ZERO).expect("there is memory");
    assert_eq!(sim.read(addr), 0);
    assert!(sim.machine().zeroings() - cleared <= 1);
    check_zeros(&sim);
}

#[test]
fn at_any_moment_of_its_work_an_interrupt_can_have_every_page_that_is_counted_as_free() {
    let mut cleared = BTreeSet::new();
    for points in (0..400).step_by(3) {
        let sim = dirtied(1);
        let free = sim.free_pages();
        let zeroed = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&zeroed);
        sim.raise_after(points, move |vm: &Vm<SimMachine>| {
            assert_eq!(vm.cnt().v_free_count.get(), free, "a page that is being cleared is free");
            let addr = vm
                .kmem_malloc(vm.kmem_map(), free * PAGE_SIZE, NOWAIT)
                .expect("every page can be had");
            assert_eq!(vm.cnt().v_free_count.get(), 0);
            vm.kmem_free(vm.kmem_map(), addr, free * PAGE_SIZE);
            seen.store(vm.state().cnt_prezero.get(), Ordering::Relaxed);
        });
        sim.run();
        cleared.insert(zeroed.load(Ordering::Relaxed));
        check(&sim);
        check_zeros(&sim);
    }
    assert!(cleared.len() > 20, "it has worked meanwhile: {cleared:?}");
}

#[test]
fn without_the_tunable_nothing_is_cleared_and_there_is_no_such_thread() {
    let sim = dirtied(0);
    let zeroings = sim.machine().zeroings();
    sim.run();
    assert_eq!(sim.machine().zeroings(), zeroings);
    assert!(sim.vm().tfind(crate::kern::thread::PAGEZERO_TID).is_none());
}

#[test]
fn memory_full_of_garbage_is_cleared_as_well() {
    let tunables = Tunables { vm_idlezero_enable: Some(1), ..Tunables::default() };
    let sim = Sim::boot_with(8 * MIB, tunables, Zeroed::No);
    let (zero, free) = zero_and_free(&sim);
    assert_eq!(zero, free * 4 / 5);
    check(&sim);
    check_zeros(&sim);
}
