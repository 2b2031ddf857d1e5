//! Freeing, the host's check, and a use after free, of which the kernel dies.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MallocFlags, MapId};

use super::{KMEM, Shown, Tour, TourError, free, malloc, read};
use crate::tour::window::count;

pub(super) fn show(tour: &mut Tour<'_>) -> Shown {
    // 1. Two neighbours, of which one goes, twice.
    let scene = tour.beginning(MapId::KMEM)?;
    let two = 2 * PAGE_SIZE;
    let block = tour.address(
        &malloc(
            two,
            MallocFlags::NOWAIT,
            "Two pages, without M_ZERO: they hold whatever their last owner left in \
             them.",
        )
        .at(scene),
    )?;
    let gone = block.add(PAGE_SIZE);
    tour.ok(&free(KMEM, gone, PAGE_SIZE, "The second page goes.").at(scene))?;
    tour.ok(&free(
        KMEM,
        gone,
        PAGE_SIZE,
        "The same page once more. FreeBSD of 2008 did not look whether anything \
         was there: a free removes what it finds in a range, and here it finds \
         nothing.",
    )
    .at(scene))?;
    // 2. What the host thinks of it all.
    tour.check()?;
    // 3. The end.
    let crash = tour.fatal(&read(
        gone,
        "This page was freed, and no entry of a map covers it any more: the \
         kernel's own access faults, and it dies with the reason and a backtrace.",
    ))?;
    Ok(Some(crash))
}

impl Tour<'_> {
    /// The stop at which the host checks all structures in the guest's memory.
    fn check(&mut self) -> Result<(), TourError> {
        self.announce(
            "vmkern check",
            "The host reads the guest's memory and compares each structure with all \
             others: maps, entries, objects, pages, lists and page tables. The kernel \
             has no part in it.",
        )?;
        let report = self.guest.check()?;
        if !report.is_clean() {
            let (call, got) = ("check".to_owned(), report.to_string());
            return Err(TourError::Unexpected { call, expected: "no finding", got });
        }
        let stats = &report.stats;
        let text = format!(
            "   nothing found in {} maps, {} entries, {} objects, {} of \
             objects,\n   {} page tables and {} translations\n",
            stats.maps,
            stats.entries,
            stats.objects,
            count(stats.resident, "page"),
            stats.tables,
            stats.translations
        );
        self.say(&text);
        Ok(())
    }
}
