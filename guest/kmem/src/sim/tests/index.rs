//! The index of an object's pages: its results, its shape, and that it needs no memory.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MapId, Op};
use vmkern_abi::layout::VmObject;

use super::super::check::{check, resident};
use super::super::{Sim, SimMachine};
use super::{MIB, NOWAIT, boot};
use crate::vm::object::LockedObject;
use crate::vm::page::{AllocClass, AllocFlags};

/// A page index: one of few, consecutive, equally spaced, or far away.
fn pindex() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..40,
        (0u64..40).prop_map(|n| n * 512 + 7),
        (0u64..40).prop_map(|n| n * 987),
        any::<u32>().prop_map(u64::from)
    ]
}

/// Inserts or removes the page at `pindex`.
fn toggle(sim: &Sim, object: &LockedObject<'_, SimMachine>, pindex: u64) {
    match sim.vm().vm_page_lookup(object, pindex) {
        Some(m) => sim.vm().vm_page_free(&sim.vm().page_queues(), m),
        None => enter(sim, object, pindex),
    }
}

fn enter(sim: &Sim, object: &LockedObject<'_, SimMachine>, pindex: u64) {
    let flags = AllocFlags::NOBUSY;
    sim.vm().vm_page_alloc(object, pindex, AllocClass::Interrupt, flags).expect("there are pages");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_index_agrees_with_a_sorted_map_whatever_comes_goes_and_is_asked_for(
        steps in prop::collection::vec((pindex(), pindex()), 1..200),
        range in (pindex(), pindex()),
    ) {
        let sim = Sim::boot(16 * MIB, Tunables::default());
        let object = sim.vm().kernel_object();
        let mut naive = resident(&sim, sim.vm().get(object));
        let mut locked = sim.vm().vm_object_lock(object);
        for (change, look) in steps {
            toggle(&sim, &locked, change);
            let now = sim.vm().vm_page_lookup(&locked, change);
            if naive.remove(&change).is_none() {
                naive.insert(change, sim.vm().vm_page_number(now.expect("it has just come")));
            } else {
                prop_assert_eq!(now, None);
            }
            for pindex in [look, change + 1, change.saturating_sub(1)] {
                let found = sim.vm().vm_page_lookup(&locked, pindex);
                let found = found.map(|m| sim.vm().vm_page_number(m));
                prop_assert_eq!(found, naive.get(&pindex).copied());
            }
            prop_assert_eq!(&resident(&sim, sim.vm().get(object)), &naive);
        }
        let (first, end) = (range.0.min(range.1), range.0.max(range.1));
        sim.vm().vm_object_page_remove(&mut locked, first, end);
        naive.retain(|pindex, &mut pfn| {
            !(first..end).contains(pindex) || sim.vm().page_by_number(pfn).wire_count.get() != 0
        });
        prop_assert_eq!(&resident(&sim, sim.vm().get(object)), &naive);
    }
}

/// The most pages from the root of the index down to a page.
fn depth(sim: &Sim, object: KPtr<VmObject>) -> u32 {
    let mut deepest = 0;
    let mut below = vec![(sim.vm().get(object).root.get(), 1)];
    while let Some((pfn, depth)) = below.pop().filter(|(pfn, _)| *pfn != 0) {
        deepest = deepest.max(depth);
        let page = sim.vm().page_by_number(pfn);
        below.extend(
            [page.left.get(), page.right.get()]
                .into_iter()
                .filter(|&pfn| pfn != 0)
                .map(|pfn| (pfn, depth + 1)),
        );
    }
    deepest
}

#[test]
fn pages_in_a_row_or_at_even_distances_are_balanced_to_one_level_in_whatever_order_they_come() {
    for distance in [1, 2, 7, 512, 987] {
        for order in [1, 3, 1021, 4095] {
            let sim = boot();
            let object = sim.vm().kernel_object();
            let pages = 4096;
            let locked = sim.vm().vm_object_lock(object);
            (0..pages).for_each(|n| enter(&sim, &locked, (1 << 24) + n * order % pages * distance));
            drop(locked);
            let depth = depth(&sim, object);
            assert!(depth <= 14, "4096 pages at distance {distance}, by {order}: {depth} levels");
        }
    }
}

#[test]
fn the_shape_of_an_index_does_not_depend_on_its_history() {
    let pages = |order: &dyn Fn(u64) -> u64| {
        let sim = boot();
        let object = sim.vm().kernel_object();
        let locked = sim.vm().vm_object_lock(object);
        for n in 0..1000 {
            enter(&sim, &locked, 5000 + order(n));
        }
        for n in (0..1000).filter(|n| n % 3 == 0) {
            toggle(&sim, &locked, 5000 + order(n));
            toggle(&sim, &locked, 5000 + order(n));
        }
        drop(locked);
        let pages: BTreeMap<u64, u32> = resident(&sim, sim.vm().get(object));
        let index = |pfn: u32| (pfn != 0).then(|| sim.vm().page_by_number(pfn).pindex.get());
        let parents = pages
            .iter()
            .map(|(&pindex, &pfn)| (pindex, index(sim.vm().page_by_number(pfn).parent.get())));
        parents.collect::<Vec<_>>()
    };
    let forwards = pages(&|n| n);
    assert_eq!(pages(&|n| 999 - n), forwards);
    assert_eq!(pages(&|n| n * 377 % 1000), forwards);
}

#[test]
fn a_page_costs_one_page_wherever_it_is_allocated() {
    let sim = boot();
    let far = sim
        .address(&Op::KmemAllocNofault { map: MapId::KERNEL, size: 300 * MIB })
        .expect("there is room");
    let _ = far;
    for (name, allocate) in [
        ("kmem_alloc", &(|| sim.alloc(PAGE_SIZE)) as &dyn Fn() -> _),
        ("kmem_malloc", &|| sim.malloc(PAGE_SIZE, NOWAIT)),
        ("kmem_malloc in kernel_map", &|| {
            sim.address(&Op::KmemMalloc { map: MapId::KERNEL, size: PAGE_SIZE, flags: NOWAIT })
        }),
    ] {
        let before = (sim.free_pages(), sim.vm().cnt().v_wire_count.get());
        allocate().expect("there is memory");
        assert_eq!((sim.free_pages() + 1, sim.vm().cnt().v_wire_count.get() - 1), before, "{name}");
    }
    check(&sim);
}
