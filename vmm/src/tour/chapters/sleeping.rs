//! A submap that is full, and a thread that sleeps until another one makes room.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MapId, MapKind, Op};

use super::{SECOND, Shown, Stage, Tour, alloc_wait, free_wakeup, join};

pub(super) fn show(tour: &mut Tour<'_>) -> Shown {
    // 1. The second thread is there before it is needed: its stack takes pages, which would show.
    tour.guest.call(SECOND, Op::Settle)?;
    // 2. A map of three pages, and two threads that want two each.
    let size = 3 * PAGE_SIZE;
    let around = tour.first_hole(MapId::KERNEL)?;
    let map = MapId(
        tour.value(
            &Stage::new(
                format!("kmem_suballoc(kernel_map, {size})"),
                Op::KmemSuballoc { parent: MapId::KERNEL, size, kind: MapKind::User },
                "kmem_suballoc",
                "A map of three pages inside kernel_map, for callers that may sleep: it \
                 has a lock of its own, and one entry in its parent. It is named by its \
                 address.",
            )
            .at(around),
        )?,
    );
    let scene = tour.beginning(map)?;
    let (inner, want) = (("map", map), 2 * PAGE_SIZE);
    let wait = |story| alloc_wait(inner, want, story).at(scene);
    let give = |addr, story| free_wakeup(inner, addr, want, story).at(scene);
    let first =
        tour.address(&wait("Two of the three pages, as addresses. Memory comes with a touch."))?;
    tour.blocked(
        &wait(
            "A second thread wants two as well, and there is one. It sets \
             needs_wakeup in the map, unlocks it, and sleeps in the wait channel \
             \"vmmaps\", for as long as it takes.",
        )
        .on(SECOND),
    )?;
    // 3. The first thread makes room.
    tour.ok(&give(
        first,
        "The first thread gives its addresses back and wakes all that sleep for \
         this map. The woken thread locks the map, looks again, and finds room.",
    ))?;
    let second = tour.address(
        &join(
            SECOND,
            "What the second thread's call has returned: the addresses that were \
             freed. Its sleep counts among its cycles.",
        )
        .at(scene),
    )?;
    tour.ok(&give(second, "Its block goes too. The submap stays, as FreeBSD's submaps do."))?;
    Ok(None)
}
