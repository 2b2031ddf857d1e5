//! What happens when pages run out: who may take the last ones, and that a failure leaves no trace.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op};

use super::super::Sim;
use super::super::check::check;
use super::{MIB, NOWAIT};

/// A machine whose kmem_map is larger than its memory.
fn small() -> Sim {
    Sim::boot(16 * MIB, Tunables { vm_kmem_size: Some(24 * MIB), ..Tunables::default() })
}

/// Leaves exactly `pages` pages free, by allocations that stay.
fn leave(sim: &Sim, pages: u64) {
    // What the map itself needs comes first.
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
        assert!(sim.malloc((pages - 1) * PAGE_SIZE, NOWAIT).is_some(), "exactly what there is can be had");
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
    assert!(sim.nofault(PAGE_SIZE).is_some());
    let before = sim.counters();
    for size in [500 << 30, 64 << 30, sim.free_pages() * (2 * MIB) + 2 * MIB] {
        assert_eq!(sim.nofault(size), None, "{size} bytes");
        assert_eq!(sim.alloc(size), None, "{size} bytes");
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
    let error = vmkern_abi::control::Outcome::Error(vmkern_abi::control::KernReturn::ResourceShortage);
    for count in [9, 11, 64, u64::MAX >> 12] {
        let outcome = sim.execute(&Op::PmapQenter { addr, count });
        assert!(outcome == error || count > 64, "{count} pages gave {outcome:?}");
        assert_eq!(sim.counters(), before);
    }
    sim.ok(&Op::PmapQenter { addr, count: 8 });
    check(&sim);
}
