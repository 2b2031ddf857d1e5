//! Entries that are being deleted while CPUs flush their translations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{KernReturn, MallocFlags};
use vmkern_abi::layout::{EntryFlags, Protection};

use super::super::Lookup;
use super::Fixture;
use crate::sim::SimMachine;
use crate::vm::Vm;
use crate::vm::fault::FaultType;

const SIZE: u64 = 2 * PAGE_SIZE;

/// A machine that claims two CPUs, with three blocks of two pages of `kmem_malloc` at pages 0, 2
/// and 4, which are all one entry.
fn three_blocks() -> Fixture {
    let f = Fixture::new();
    f.vm().cnt().ncpu.set(2);
    for block in 0..3 {
        assert_eq!(f.vm().kmem_malloc(f.map, SIZE, MallocFlags::NOWAIT), Some(f.at(2 * block)));
    }
    f
}

/// Frees the block at page `block`; while its translations are flushed, another CPU does `work`.
fn free_while(f: &Fixture, block: u64, work: impl FnOnce(&Vm<SimMachine>) + Send + 'static) {
    let done = Arc::new(AtomicBool::new(false));
    let done_there = Arc::clone(&done);
    f.vm().machine().during_next_flush(Box::new(move |vm| {
        work(vm);
        done_there.store(true, Ordering::Relaxed);
    }));
    f.vm().kmem_free(f.map, f.at(block), SIZE);
    assert!(done.load(Ordering::Relaxed), "the free flushes");
}

#[test]
fn the_map_can_be_used_meanwhile_but_not_the_addresses_nor_the_pages() {
    let f = three_blocks();
    let (map, min, free) = (f.map, f.min, f.vm().cnt().v_free_count.get());
    free_while(&f, 2, move |vm| {
        assert_eq!(vm.cnt().v_free_count.get(), free, "the pages are not free yet");
        let other = vm.kmem_malloc(map, SIZE, MallocFlags::NOWAIT);
        assert_eq!(other, Some(min.add(3 * SIZE)), "the hole is none yet");
        vm.kmem_free(map, min.add(3 * SIZE), SIZE);
    });
    assert_eq!(f.ranges(), [(0, 2), (4, 6)]);
    assert_eq!(f.vm().cnt().v_free_count.get(), free + 2);
    assert_eq!(
        f.vm().kmem_malloc(f.map, SIZE, MallocFlags::NOWAIT),
        Some(f.at(2)),
        "it is a hole now"
    );
}

#[test]
fn who_faults_there_finds_nothing() {
    let f = three_blocks();
    let va = f.at(3);
    f.sim.write(va, 1);
    free_while(&f, 2, move |vm| {
        assert_eq!(vm.trap_pfault(va, FaultType::Read), Err(KernReturn::InvalidAddress));
        assert_eq!(vm.pmap_extract(va), None);
    });
    assert_eq!(f.ranges(), [(0, 2), (4, 6)]);
}

#[test]
fn who_frees_it_again_or_more_around_it_passes_it_over() {
    let f = three_blocks();
    let (map, at) = (f.map, [f.at(0), f.at(2), f.at(3)]);
    let pages = |vm: &Vm<SimMachine>| vm.get(vm.kmem_object()).resident_page_count.get();
    let before = pages(f.vm());
    free_while(&f, 2, move |vm| {
        vm.kmem_free(map, at[1], SIZE);
        vm.kmem_free(map, at[2], PAGE_SIZE);
        assert_eq!(pages(vm), before);
        vm.kmem_free(map, at[0], 3 * SIZE);
        assert_eq!(pages(vm), before - 4, "the two others");
    });
    assert_eq!(f.ranges(), []);
    assert_eq!(pages(f.vm()), before - 6);
}

#[test]
fn who_protects_more_around_it_passes_it_over() {
    let f = three_blocks();
    let (map, min) = (f.map, f.min);
    free_while(&f, 2, move |vm| {
        vm.vm_map_protect(map, min, min.add(3 * SIZE), Protection::READ).expect("it is allowed");
    });
    assert_eq!(f.ranges(), [(0, 2), (4, 6)]);
    assert_eq!([f.entry(0), f.entry(4)].map(|e| e.protection.get()), [Protection::READ; 2]);
}

#[test]
fn it_is_found_again_after_another_entry_went_and_it_moved() {
    let f = Fixture::new();
    f.vm().cnt().ncpu.set(2);
    assert_eq!(f.vm().kmem_alloc_nofault(f.map, SIZE), Some(f.at(0)));
    assert_eq!(f.vm().kmem_malloc(f.map, SIZE, MallocFlags::NOWAIT), Some(f.at(2)));
    let (map, low, high) = (f.map, f.at(0), f.at(2));
    free_while(&f, 2, move |vm| {
        let entry = || match vm.vm_map_lookup_entry(map, high) {
            Lookup::Inside(entry) => entry,
            Lookup::After(_) => panic!("no entry at {high}"),
        };
        let before = entry();
        assert_eq!(vm.get(before).eflags.get(), EntryFlags::IN_TRANSITION | EntryFlags::DELETING);
        vm.kmem_free(map, low, SIZE);
        assert_ne!(entry(), before, "the last entry of the pool fills the gap");
    });
    assert_eq!(f.ranges(), []);
}

#[test]
fn neighbours_that_come_meanwhile_do_not_merge_with_it() {
    let f = three_blocks();
    f.vm().kmem_free(f.map, f.at(0), SIZE);
    let (map, min) = (f.map, f.min);
    free_while(&f, 2, move |vm| {
        assert_eq!(vm.kmem_malloc(map, SIZE, MallocFlags::NOWAIT), Some(min));
    });
    assert_eq!(f.ranges(), [(0, 2), (4, 6)]);
}

#[test]
fn one_cpu_keeps_the_map_locked() {
    let f = three_blocks();
    f.vm().cnt().ncpu.set(1);
    let map = f.map;
    free_while(&f, 2, move |vm| assert_ne!(vm.get(map).lock.owner.get(), 0));
    assert_eq!(f.ranges(), [(0, 2), (4, 6)]);
}

/// Blocks of two pages at pages 0, 4, 8, ... 28, each an entry, on a machine that claims `cpus`
/// CPUs.
fn eight_blocks(cpus: u64) -> Fixture {
    let f = Fixture::new();
    f.vm().cnt().ncpu.set(cpus);
    assert_eq!(f.vm().kmem_malloc(f.map, 15 * SIZE, MallocFlags::NOWAIT), Some(f.min));
    for block in 0..7 {
        f.vm().kmem_free(f.map, f.at(4 * block + 2), SIZE);
    }
    assert_eq!(f.ranges().len(), 8);
    f
}

#[test]
fn a_free_over_many_entries_is_one_flush() {
    for cpus in [1, 2] {
        let f = eight_blocks(cpus);
        let (flushes, free) = (f.vm().machine().flushes(), f.vm().cnt().v_free_count.get());
        // A page of the first and of the last stays.
        f.vm().kmem_free(f.map, f.at(1), 28 * PAGE_SIZE);
        assert_eq!(f.vm().machine().flushes() - flushes, 1, "{cpus} CPUs");
        assert_eq!(f.ranges(), [(0, 1), (29, 30)]);
        assert_eq!(f.vm().cnt().v_free_count.get(), free + 14);
        // Nothing in the range has a translation: there is nothing to flush.
        f.vm().kmem_free(f.map, f.at(1), 28 * PAGE_SIZE);
        assert_eq!(f.vm().machine().flushes() - flushes, 1);
    }
}

#[test]
fn no_entry_of_a_range_is_in_reach_and_no_page_free_when_the_one_flush_begins() {
    let f = eight_blocks(2);
    let (map, free) = (f.map, f.vm().cnt().v_free_count.get());
    let pages: Vec<_> = (0..8).map(|block| f.at(4 * block)).collect();
    f.vm().machine().during_next_flush(Box::new(move |vm| {
        assert_eq!(vm.cnt().v_free_count.get(), free);
        for &va in &pages {
            assert_eq!(vm.pmap_extract(va), None);
            assert_eq!(vm.trap_pfault(va, FaultType::Read), Err(KernReturn::InvalidAddress));
            assert!(
                matches!(vm.vm_map_lookup_entry(map, va), Lookup::Inside(_)),
                "its addresses are taken"
            );
        }
    }));
    f.vm().kmem_free(f.map, f.min, 15 * SIZE);
    assert_eq!(f.ranges(), []);
    assert_eq!(f.vm().get(f.vm().kmem_object()).resident_page_count.get(), 0);
}

#[test]
fn what_others_enter_into_the_holes_of_a_range_meanwhile_stays() {
    let f = eight_blocks(2);
    let (map, hole, high) = (f.map, f.at(2), f.at(30));
    f.vm().machine().during_next_flush(Box::new(move |vm| {
        assert_eq!(vm.kmem_malloc(map, SIZE, MallocFlags::NOWAIT), Some(hole));
        // The deletion has not freed the room yet.
        assert_eq!(vm.kmem_malloc(map, 2 * SIZE, MallocFlags::NOWAIT), Some(high));
    }));
    f.vm().kmem_free(f.map, f.min, 15 * SIZE);
    assert_eq!(f.ranges(), [(2, 4), (30, 34)]);
    f.sim.write(f.at(3), 5);
    assert_eq!(f.sim.read(f.at(3)), 5);
}

#[test]
fn two_who_delete_crossing_ranges_take_each_entry_once() {
    let f = eight_blocks(2);
    let (map, from) = (f.map, f.at(16));
    let free = f.vm().cnt().v_free_count.get();
    f.vm().machine().during_next_flush(Box::new(move |vm| {
        vm.kmem_free(map, from, 14 * PAGE_SIZE);
        assert_eq!(vm.cnt().v_free_count.get(), free + 4, "those that the other has not marked");
    }));
    f.vm().kmem_free(f.map, f.min, 24 * PAGE_SIZE);
    assert_eq!(f.ranges(), []);
    assert_eq!(f.vm().get(f.vm().kmem_object()).resident_page_count.get(), 0);
}
