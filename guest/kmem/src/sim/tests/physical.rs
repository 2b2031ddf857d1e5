//! The allocators of pages and of small items, each alone.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vmkern_abi::addr::GuestPhys;
use vmkern_abi::boot::Tunables;
use vmkern_abi::layout::ISADMA_END;

use super::super::Sim;
use super::super::check::check;
use super::{MIB, boot};

/// Free pages, counted from the lists and the fresh parts.
fn free_pages(sim: &Sim) -> u64 {
    let listed =
        sim.vm().state().vm_phys_free_queues.iter().flat_map(|queues| queues.iter().enumerate());
    let listed: u64 = listed.map(|(order, list)| list.count.get() << order).sum();
    let fresh = sim.vm().vm_phys_segments().map(|seg| u64::from(seg.end.get() - seg.fresh.get()));
    listed + fresh.sum::<u64>()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_aligned_disjoint_and_come_back_whole(
        steps in prop::collection::vec(
            (0usize..13, any::<prop::sample::Index>(), any::<bool>()),
            1..120,
        ),
    ) {
        let sim = Sim::boot(96 * MIB, Tunables::default());
        let before = free_pages(&sim);
        let mut held = Vec::new();
        let mut taken = BTreeMap::new();
        for (order, which, alloc) in steps {
            if alloc {
                let m = sim.vm().vm_phys_alloc_pages(&sim.vm().free_queue(), order);
                let Some(m) = m else { continue };
                let pfn = sim.vm().vm_page_to_phys(m).pfn();
                prop_assert!(pfn.is_multiple_of(1 << order));
                let end = pfn + (1 << order);
                let below = taken.range(..end).next_back().map(|(_, &end)| end);
                prop_assert!(below.is_none_or(|below| below <= pfn), "two blocks overlap");
                taken.insert(pfn, end);
                held.push((m, order));
            } else if !held.is_empty() {
                let (m, order) = held.swap_remove(which.index(held.len()));
                taken.remove(&sim.vm().vm_page_to_phys(m).pfn());
                sim.vm().vm_phys_free_pages(&sim.vm().free_queue(), m, order);
            }
            let out: u64 = held.iter().map(|(_, order)| 1u64 << order).sum();
            prop_assert_eq!(free_pages(&sim) + out, before);
        }
        for (m, order) in held {
            sim.vm().vm_phys_free_pages(&sim.vm().free_queue(), m, order);
        }
        check(&sim);
        // After coalescing, each unused aligned 16 MiB can be allocated as one block: 32 to 80 MiB.
        for _ in 0..3 {
            prop_assert!(sim.vm().vm_phys_alloc_pages(&sim.vm().free_queue(), 12).is_some());
        }
    }
}

#[test]
fn memory_below_16_mib_is_taken_last() {
    let sim = boot();
    let mut below = false;
    let mut seen = BTreeSet::new();
    while let Some(m) = sim.vm().vm_phys_alloc_pages(&sim.vm().free_queue(), 0) {
        let pa: GuestPhys = sim.vm().vm_page_to_phys(m);
        assert!(seen.insert(pa), "{pa} was handed out twice");
        assert!(!below || pa < ISADMA_END, "{pa} came after memory below 16 MiB");
        below |= pa < ISADMA_END;
    }
    assert!(below);
    assert_eq!(seen.len() as u64, sim.free_pages());
}

#[test]
fn a_freed_page_is_reused_before_memory_that_was_never_touched() {
    let sim = boot();
    let take = || sim.vm().vm_phys_alloc_pages(&sim.vm().free_queue(), 0).expect("there is memory");
    let pages: Vec<_> = (0..200).map(|_| take()).collect();
    for &m in &pages {
        sim.vm().vm_phys_free_pages(&sim.vm().free_queue(), m, 0);
    }
    let again: BTreeSet<_> = (0..200).map(|_| sim.vm().vm_page_to_phys(take())).collect();
    let first: BTreeSet<_> = pages.iter().map(|&m| sim.vm().vm_page_to_phys(m)).collect();
    // Whole blocks of 64 pages are cut, so a few more pages were ready.
    assert!(again.intersection(&first).count() >= 136);
}
