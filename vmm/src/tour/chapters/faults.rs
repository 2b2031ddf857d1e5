//! Pageable memory: each page comes by a fault, when it is touched.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MapId, Op};

use super::{Shown, Stage, Tour, alloc_wait, fill, free_wakeup, read};

const EXEC: (&str, MapId) = ("exec_map", MapId::EXEC);

pub(super) fn show(tour: &mut Tour<'_>) -> Shown {
    // 1. Addresses.
    let scene = tour.beginning(MapId::EXEC)?;
    let size = 4 * PAGE_SIZE;
    let block = tour.address(
        &alloc_wait(
            EXEC,
            size,
            "exec_map holds the arguments of exec. A block there is an entry of the \
             map and no more: it has no page, and no object that could hold one.",
        )
        .at(scene),
    )?;
    // 2. Pages, one fault each.
    let second = block.add(PAGE_SIZE);
    tour.ok(&Stage::new(
        format!("touch({block}, {PAGE_SIZE})"),
        Op::Touch { addr: block, size: PAGE_SIZE },
        "touch",
        "A write to the first page. The processor faults, vm_fault finds the \
         entry, makes it an object, takes a free page, zeroes it, enters it, and \
         the write is done again.",
    )
    .at(scene))?;
    tour.value(
        &read(
            second,
            "A read of the second page: it is zero, and a page of its own all the \
             same.",
        )
        .at(scene),
    )?;
    tour.ok(&fill(
        block,
        size,
        9,
        "All four are written: two more faults, and none for the pages that are \
         there.",
    )
    .at(scene))?;
    // 3. All goes.
    tour.ok(&free_wakeup(
        EXEC,
        block,
        size,
        "The entry goes, its object with it, and with that the pages.",
    )
    .at(scene))?;
    Ok(None)
}
