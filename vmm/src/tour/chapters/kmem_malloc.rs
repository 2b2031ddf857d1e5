//! kmem_map: malloc's memory.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MallocFlags, MapId, Op};

use super::{KMEM, Scene, Shown, Stage, Tour, TourError, fill, free, malloc};

const NOWAIT: MallocFlags = MallocFlags::NOWAIT;

pub(super) fn show(tour: &mut Tour<'_>) -> Shown {
    // 1. Three pages with a pattern.
    let scene = tour.beginning(MapId::KMEM)?;
    let three = 3 * PAGE_SIZE;
    let first = tour.address(
        &malloc(
            three,
            NOWAIT | MallocFlags::ZERO,
            "The lowest hole of kmem_map that is large enough, three pages from the \
             buddy lists, zeroed, wired, entered into the page tables: there is no \
             later fault.",
        )
        .at(scene),
    )?;
    tour.ok(&fill(
        first,
        three,
        7,
        "Real memory: a pattern is written to every byte. Nothing else changes.",
    )
    .at(scene))?;
    // 2. A second block, next to it.
    let two = 2 * PAGE_SIZE;
    let second = tour.address(
        &malloc(
            two,
            NOWAIT,
            "First fit puts it right behind: two neighbours that are alike are one \
             entry.",
        )
        .at(scene),
    )?;
    // 3. A hole between them, and both go, but for the first one's rest.
    tour.punch(scene, first)?;
    tour.ok(&free(KMEM, second, two, "The second block goes as well.").at(scene))?;
    // 4. More than the map has.
    let stats = tour.guest.map_stats(MapId::KMEM)?;
    tour.null(
        &malloc(
            stats.max.since(stats.min),
            NOWAIT,
            "As much as the whole map, of which some is in use: null, and no trace.",
        )
        .at(scene),
    )?;
    tour.ok(&free(KMEM, first, two, "The rest of the first block goes last.").at(scene))?;
    Ok(None)
}

impl Tour<'_> {
    /// Frees the last page of the three at `first`, fills the hole, and frees it again.
    fn punch(&mut self, scene: Scene, first: GuestVirt) -> Result<(), TourError> {
        let two = 2 * PAGE_SIZE;
        let middle = first.add(two);
        self.ok(&free(
            KMEM,
            middle,
            PAGE_SIZE,
            "The last page of the first block goes. The map entry is clipped in two, \
             the page-table entry vanishes, and the page is free again.",
        )
        .at(scene))?;
        self.ok(&Stage::new(
            format!("verify({first}, {two}, 7)"),
            Op::Verify { addr: first, size: two, seed: 7 },
            "verify",
            "The rest of the block has kept its bytes.",
        )
        .at(scene))?;
        let again = self.address(
            &malloc(
                PAGE_SIZE,
                NOWAIT,
                "The hole is the lowest place that fits: it is taken, and all is one \
                 entry.",
            )
            .at(scene),
        )?;
        self.ok(&free(KMEM, again, PAGE_SIZE, "And back.").at(scene))?;
        Ok(())
    }
}
