//! Size must not matter: large memories boot as fast as small ones, and a map takes a million
//! entries.

use std::collections::BTreeSet;
use std::ops::Range;

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MapId, Op, Outcome};
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::layout::BootRegion;
use vmkern_abi::pte::Level;
use vmkern_abi::walk::find_entry;

use super::super::check::check;
use super::super::{Sim, managed};
use super::{MIB, NOWAIT};
use crate::vm::PhysRange;

#[test]
fn booting_64_gib_touches_as_few_pages_as_booting_64_mib() {
    let touched = |bytes| {
        let sim = Sim::boot(bytes, Tunables::default());
        assert!(sim.malloc(PAGE_SIZE, NOWAIT).is_some());
        sim.machine().touched_pages().count()
    };
    let (small, large) = (touched(64 * MIB), touched(64 << 30));
    assert!(small <= 20, "{small} pages touched in 64 MiB");
    // The maps are larger with this memory: the page array describes page tables past those of the
    // boot.
    assert!(large <= 30, "{large} pages touched in 64 GiB");
}

/// The pages behind the image that `sim`, with `bytes` of memory, has touched, and those that the
/// plan of a boot predicts.
fn touched_and_foreseen(sim: &Sim, bytes: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let ranges: Vec<(u64, u64)> = managed(bytes).into_iter().map(PhysRange::pages).collect();
    let region = BootRegion::plan(ranges.iter().copied()).expect("there is room for it");
    let is_managed = |pfn: &u64| ranges.iter().any(|(first, end)| (first..end).contains(&pfn));
    let touched = sim.machine().touched_pages().filter(is_managed).collect();
    let foreseen = region.touched_by_boot(ranges.iter().copied());
    let pages = |range: Range<GuestPhys>| range.start.pfn()..range.end.pfn();
    (touched, foreseen.into_iter().flat_map(pages).collect())
}

/// Number of the page table for `va`.
fn table_of(sim: &Sim, va: GuestVirt) -> u64 {
    let root = sim.vm().state().kernel_pmap.pml4.get();
    let Ok(found) = find_entry(&sim.machine(), root, va, Level::Pt);
    found.expect("there is one").0.pfn()
}

#[test]
fn a_boot_touches_what_is_foreseen_and_the_page_table_of_the_first_stacks() {
    for mib in [8, 12, 16, 17, 32, 64, 256, 512] {
        let sim = Sim::boot(mib * MIB, Tunables::default());
        let malloc = Op::KmemMalloc { map: MapId::KMEM, size: PAGE_SIZE, flags: NOWAIT };
        assert!(matches!(sim.execute_on(0, malloc), Outcome::Value(_)));
        let stack = sim.vm().get(sim.vm().state().pageproc.get()).kstack.get();
        let stacks = table_of(&sim, stack);
        let (touched, foreseen) = touched_and_foreseen(&sim, mib * MIB);
        let beyond: Vec<u64> = touched.difference(&foreseen).copied().collect();
        assert_eq!(beyond, [stacks], "{mib} MiB");
        let idle = foreseen.difference(&touched).count();
        assert!(idle <= 12, "{idle} pages of {} are foreseen in vain in {mib} MiB", foreseen.len());
    }
}

#[test]
fn addresses_with_page_tables_of_the_boot_touch_one_page_of_these_each_when_they_are_used() {
    let bytes = 64 * MIB;
    let sim = Sim::boot(bytes, Tunables::default());
    assert!(sim.malloc(PAGE_SIZE, NOWAIT).is_some());
    let before = sim.machine().touched_pages().count();
    let base = sim.nofault(64 * MIB).expect("there is room");
    assert!(sim.machine().touched_pages().count() <= before + 1, "addresses alone touch no table");
    sim.ok(&Op::PmapQenter { addr: base.add(32 * MIB), count: 1 });
    let after: BTreeSet<u64> = sim.machine().touched_pages().collect();
    let table = table_of(&sim, base.add(32 * MIB));
    assert!(after.contains(&table) && !after.contains(&(table + 1)), "the next table is as it was");
    check(&sim);
}

#[test]
fn small_memories_boot() {
    for mib in [4, 8, 15, 16, 17, 32] {
        let sim = Sim::boot(mib * MIB, Tunables::default());
        assert!(sim.malloc(PAGE_SIZE, NOWAIT).is_some(), "{mib} MiB");
        check(&sim);
    }
}

#[test]
fn a_million_map_entries_come_and_go() {
    const ENTRIES: u64 = 1_000_000;
    let sim = Sim::boot(1 << 30, Tunables::default());
    let map = sim.vm().kernel_map();
    // Another entry between the stacks of kernel threads and the range, which would otherwise be
    // one entry.
    assert!(sim.alloc(PAGE_SIZE).is_some());
    let before = sim.map(MapId::KERNEL).nentries.get();
    let size = 2 * ENTRIES * PAGE_SIZE;
    let base = sim.nofault(size).expect("there is room");
    for entry in 0..ENTRIES {
        sim.vm().kmem_free(map, base.add((2 * entry + 1) * PAGE_SIZE), PAGE_SIZE);
    }
    assert_eq!(sim.map(MapId::KERNEL).nentries.get(), before + ENTRIES);
    assert_eq!(sim.nofault(PAGE_SIZE), Some(base.add(PAGE_SIZE)), "the lowest hole is found");
    assert_eq!(
        sim.nofault(2 * PAGE_SIZE),
        Some(base.add(size - PAGE_SIZE)),
        "the lowest that is large enough"
    );
    sim.vm().vm_map_check(map).expect("the map is sound");
    sim.free(MapId::KERNEL, base, size + PAGE_SIZE);
    assert_eq!(sim.map(MapId::KERNEL).nentries.get(), before);
    check(&sim);
}

#[test]
fn address_space_past_the_kernel_image_is_used_when_the_rest_is_taken() {
    let sim = Sim::boot(4 << 30, Tunables::default());
    let first = sim.nofault(PAGE_SIZE).expect("there is room");
    sim.free(MapId::KERNEL, first, PAGE_SIZE);
    let below = KERNBASE.since(first);
    let low = sim.nofault(below - PAGE_SIZE).expect("there are pages for the page tables");
    let last = sim.alloc(PAGE_SIZE).expect("there is memory");
    assert_eq!(last.add(PAGE_SIZE), KERNBASE);
    let image_end = sim.vm().state().virtual_avail.get();
    let past = sim.alloc(3 * MIB).expect("there is memory");
    assert_eq!(past, image_end);
    sim.fill(past, 3 * MIB, 1);
    sim.verify(past, 3 * MIB, 1);
    sim.free(MapId::KERNEL, past, 3 * MIB);
    sim.free(MapId::KERNEL, low, below);
    check(&sim);
}
