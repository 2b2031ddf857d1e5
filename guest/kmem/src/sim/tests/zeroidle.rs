//! Clearing free pages while nothing else runs.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId};

use super::{MIB, NOWAIT};
use crate::sim::Sim;
use crate::sim::check::{check, check_zeros};
use crate::vm::Zeroed;

/// A machine of 16 MiB of which nearly all has been used, dirtied and freed again, with nobody having run since.
fn dirtied(enable: u64) -> Sim {
    let tunables = Tunables { vm_kmem_size: Some(24 * MIB), vm_idlezero_enable: Some(enable), ..Tunables::default() };
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
    // Ever more zeroed pages go, and come back dirty.
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
