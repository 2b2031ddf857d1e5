//! Rules of `map_state`.

use std::mem::offset_of;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::field::Flag;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::KernelRoots;

use super::lab::{Lab, expect_finding};

#[test]
fn what_a_map_says_of_itself_is_held_against_the_kernel() {
    let lab = Lab::new();
    lab.each(
        lab.map(2),
        "exec_map",
        &[
            ("map-pmap", |map| map.pmap.set(GuestPhys::new(0x5000))),
            ("map-system", |map| map.system_map.set(Flag::from_raw(2))),
            ("map-system", |map| map.system_map.raise()),
            ("map-wakeup", |map| map.needs_wakeup.raise()),
        ],
    );
    let kernel_map = lab.map(0);
    lab.each(
        kernel_map,
        "kernel_map",
        &[("map-bounds", |map| map.header.start.update_locked(|at| at.add(1 << 30)))],
    );
}

#[test]
fn maps_that_are_not_where_they_should_be_are_found() {
    let lab = Lab::new();
    let (roots_at, roots) = lab.roots();
    let report = lab.damaged(roots_at, |roots| roots.map_list.set(KPtr::NULL));
    expect_finding(&report, "map-registry", "kmem_map", lab.map(1).addr());
    let report = lab.damaged(roots_at, |roots| roots.maps[3].set(KPtr::NULL));
    let maps = roots_at.addr().add(offset_of!(KernelRoots, maps) as u64);
    expect_finding(&report, "map-registry", "pipe_map", maps);
    let report = lab.damaged(roots_at, |roots| roots.maps[3].set(roots.maps[2].get()));
    expect_finding(&report, "map-registry", "pipe_map", lab.map(2).addr());
    let youngest = roots.map_list.get();
    lab.each(
        youngest,
        "vm_map",
        &[("map-registry", |map| map.next_map.set(KPtr::new(map.reserve.home.get().addr())))],
    );
}

#[test]
fn a_submap_and_its_entry_cover_the_same_range_once() {
    let lab = Lab::new();
    let entry = lab.entry(0, 0);
    assert_eq!(lab.get(entry).object.get().addr(), lab.map(1).addr());
    lab.each(
        entry,
        "vm_map_entry",
        &[("submap-range", |e| e.end.update_locked(|at| GuestVirt::new(at.get() - 4096)))],
    );
    let other = lab.map(2).addr();
    let report = lab.damaged(entry, |e| e.object.set(KPtr::new(other)));
    expect_finding(&report, "submap-parent", "exec_map", other);
    expect_finding(&report, "submap-parent", "kmem_map", lab.map(1).addr());
}

#[test]
fn page_tables_that_end_too_early_are_found() {
    let lab = Lab::new();
    let (roots_at, _) = lab.roots();
    let at = roots_at.addr().add(offset_of!(KernelRoots, kernel_vm_end) as u64);
    let report = lab.damaged(roots_at, |roots| roots.kernel_vm_end.set(VM_MIN_KERNEL_ADDRESS));
    expect_finding(&report, "kernel-vm-end", "kernel_vm_end", at);
    let report =
        lab.damaged(roots_at, |roots| roots.kernel_vm_end.update_locked(|end| end.add(4096)));
    expect_finding(&report, "kernel-vm-end", "kernel_vm_end", at);
    let report =
        lab.damaged(roots_at, |roots| roots.virtual_avail.update_locked(|end| end.add(4096)));
    expect_finding(&report, "map-image", "kernel_map", lab.map(0).addr());
}
