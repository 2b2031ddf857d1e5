//! kernel_map: memory that may be waited for, and a stack with its guard page.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MapId, Op};

use super::{KERNEL, Shown, Stage, Tour, free};

pub(super) fn show(tour: &mut Tour<'_>) -> Shown {
    // 1. A block at the first hole of kernel_map, and addresses without pages behind it.
    let map = MapId::KERNEL;
    let scene = tour.first_hole(map)?;
    let size = 4 * PAGE_SIZE;
    let block = tour.address(
        &Stage::new(
            format!("kmem_alloc(kernel_map, {size})"),
            Op::KmemAlloc { map, size },
            "kmem_alloc",
            "kernel_map begins with its submap kmem_map. Behind it: four zeroed pages \
             of kernel_object, wired by vm_map_wire through vm_fault.",
        )
        .at(scene),
    )?;
    let stack_size = 5 * PAGE_SIZE;
    let stack = tour.address(
        &Stage::new(
            format!("kmem_alloc_nofault(kernel_map, {stack_size})"),
            Op::KmemAllocNofault { map, size: stack_size },
            "kmem_alloc_nofault",
            "Addresses alone, as for a kernel stack: no page, and a fault here is a \
             panic.",
        )
        .at(scene),
    )?;
    // 2. Pages behind some of them, as for a stack with a guard page; then none.
    let base = stack.add(PAGE_SIZE);
    tour.ok(&Stage::new(
        format!("pmap_qenter({base}, 4)"),
        Op::PmapQenter { addr: base, count: 4 },
        "pmap_qenter",
        "Four pages are mapped above the first one, which stays empty: the guard \
         page.",
    )
    .at(scene))?;
    tour.ok(
        &free(KERNEL, block, size, "The first block goes; the stack above it stays.").at(scene)
    )?;
    tour.ok(&Stage::new(
        format!("pmap_qremove({base}, 4)"),
        Op::PmapQremove { addr: base, count: 4 },
        "pmap_qremove",
        "The stack's pages go. Its addresses stay taken, and nothing is behind \
         them.",
    )
    .at(scene))?;
    tour.ok(&free(KERNEL, stack, stack_size, "And its addresses.").at(scene))?;
    Ok(None)
}
