//! Size must not matter: large memories boot as fast as small ones, and a map takes a million entries.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::MapId;
use vmkern_abi::kva::KERNBASE;

use super::super::Sim;
use super::super::check::check;
use super::{MIB, NOWAIT};

#[test]
fn booting_64_gib_touches_as_few_pages_as_booting_64_mib() {
    let touched = |bytes| {
        let sim = Sim::boot(bytes, Tunables::default());
        assert!(sim.malloc(PAGE_SIZE, NOWAIT).is_some());
        sim.machine().touched_pages()
    };
    let (small, large) = (touched(64 * MIB), touched(64 << 30));
    assert!(small < 40, "{small} pages touched in 64 MiB");
    // kmem_map is larger there: 200 page tables are linked, and described in the page array.
    assert!(large < 60, "{large} pages touched in 64 GiB");
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
    // Something else between the stacks of kernel threads and the range, which would be one entry otherwise.
    assert!(sim.alloc(PAGE_SIZE).is_some());
    let before = sim.map(MapId::KERNEL).nentries.get();
    let size = 2 * ENTRIES * PAGE_SIZE;
    let base = sim.nofault(size).expect("there is room");
    for entry in 0..ENTRIES {
        sim.vm().kmem_free(map, base.add((2 * entry + 1) * PAGE_SIZE), PAGE_SIZE);
    }
    assert_eq!(sim.map(MapId::KERNEL).nentries.get(), before + ENTRIES);
    assert_eq!(sim.nofault(PAGE_SIZE), Some(base.add(PAGE_SIZE)), "the lowest hole is found");
    assert_eq!(sim.nofault(2 * PAGE_SIZE), Some(base.add(size - PAGE_SIZE)), "the lowest that is large enough");
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
