//! `pmap_qenter` and `pmap_qremove` on ranges without an object.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MapId, Op, Outcome};
use vmkern_abi::kva::KERNBASE;

use super::super::check::check;
use super::{NOWAIT, boot};

#[test]
fn a_window_is_mapped_used_and_taken_down() {
    let sim = boot();
    let addr = sim.nofault(8 * PAGE_SIZE).expect("there is room");
    let free = sim.free_pages();
    sim.ok(&Op::PmapQenter { addr, count: 8 });
    assert_eq!(sim.free_pages(), free - 8);
    sim.fill(addr, 8 * PAGE_SIZE, 4);
    sim.verify(addr, 8 * PAGE_SIZE, 4);
    check(&sim);
    let flushes = sim.machine().flushes();
    sim.ok(&Op::PmapQremove { addr, count: 8 });
    assert_eq!(sim.machine().flushes(), flushes + 1);
    assert_eq!(sim.free_pages(), free);
    sim.ok(&Op::PmapQremove { addr, count: 8 });
    sim.free(MapId::KERNEL, addr, 8 * PAGE_SIZE);
    check(&sim);
}

#[test]
fn a_second_window_replaces_the_first_and_frees_its_pages() {
    let sim = boot();
    let addr = sim.nofault(8 * PAGE_SIZE).expect("there is room");
    sim.ok(&Op::PmapQenter { addr, count: 4 });
    sim.ok(&Op::Touch { addr, size: 4 * PAGE_SIZE });
    let free = sim.free_pages();
    sim.ok(&Op::PmapQenter { addr: addr.add(2 * PAGE_SIZE), count: 4 });
    assert_eq!(sim.free_pages(), free - 2);
    sim.ok(&Op::Touch { addr, size: 6 * PAGE_SIZE });
    check(&sim);
}

#[test]
fn windows_over_other_mappings_or_without_tables_are_refused() {
    let sim = boot();
    let addr = sim.malloc(2 * PAGE_SIZE, NOWAIT).expect("there is memory");
    let before = sim.counters();
    let refused = |addr, count, code| {
        assert_eq!(sim.execute(&Op::PmapQenter { addr, count }), Outcome::Error(code));
        assert_eq!(sim.counters(), before);
    };
    refused(addr, 2, KernReturn::InvalidArgument);
    refused(addr.add(1), 1, KernReturn::InvalidArgument);
    refused(KERNBASE.add(1 << 20), 1, KernReturn::InvalidArgument);
    refused(addr.add(1 << 38), 1, KernReturn::InvalidAddress);
    refused(GuestVirt::new(0x1000), 1, KernReturn::InvalidAddress);
    let error = Outcome::Error(KernReturn::InvalidArgument);
    assert_eq!(sim.execute(&Op::PmapQremove { addr, count: 2 }), error);
    sim.ok(&Op::Touch { addr, size: 2 * PAGE_SIZE });
    check(&sim);
}

#[test]
fn freeing_a_range_under_a_window_takes_the_mappings_with_it() {
    let sim = boot();
    let addr = sim.nofault(4 * PAGE_SIZE).expect("there is room");
    let resident = sim.vm().state().kernel_pmap.resident_count.get();
    sim.ok(&Op::PmapQenter { addr, count: 4 });
    sim.free(MapId::KERNEL, addr, 4 * PAGE_SIZE);
    assert_eq!(sim.vm().state().kernel_pmap.resident_count.get(), resident);
    assert_eq!(sim.execute(&Op::Vtop { addr }), Outcome::Null);
}

#[test]
fn a_range_that_wraps_or_leaves_the_kernels_maps_is_an_invalid_address() {
    let sim = boot();
    let before = sim.counters();
    let last = GuestVirt::new(!(PAGE_SIZE - 1));
    let invalid = Outcome::Error(KernReturn::InvalidAddress);
    let end = sim.map(MapId::KERNEL).max_offset();
    for (addr, count) in
        [(end, 1), (last, 1), (last, 2), (end, u64::MAX), (end, 1 << 51), (GuestVirt::new(0), 1)]
    {
        assert_eq!(sim.execute(&Op::PmapQenter { addr, count }), invalid, "{addr}, {count}");
        assert_eq!(sim.execute(&Op::PmapQremove { addr, count }), invalid, "{addr}, {count}");
    }
    for (addr, size) in [
        (last, PAGE_SIZE),
        (end, u64::MAX),
        (GuestVirt::new(u64::MAX), 1),
        (end, end.get().wrapping_neg()),
    ] {
        assert_eq!(sim.execute(&Op::Touch { addr, size }), invalid, "{addr}, {size:#x}");
        assert_eq!(sim.execute(&Op::Fill { addr, size, seed: 1 }), invalid, "{addr}, {size:#x}");
        assert_eq!(sim.execute(&Op::Verify { addr, size, seed: 1 }), invalid, "{addr}, {size:#x}");
        assert_eq!(sim.execute(&Op::VerifyZero { addr, size }), invalid, "{addr}, {size:#x}");
    }
    assert_eq!(sim.counters(), before);
}
