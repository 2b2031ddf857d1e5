//! A shortage of pages: what still gets some, what sleeps, and what the pagedaemon does about it.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MallocFlags, MapId, Op};

use super::{KERNEL, KMEM, SECOND, Scene, Shown, Stage, Tour, TourError, free, join, malloc};

/// More memory is not taken for the sake of a tour: the host would have to give it all.
const MOST: u64 = 256 << 20;
/// Pages that are left over for page tables and entries.
const SPARE: u64 = 64;
/// Down to the last pages, without a sleep.
const RESERVE: MallocFlags = MallocFlags::NOWAIT.union(MallocFlags::USE_RESERVE);
/// What the sleeper wants, in pages: more than there are.
const WANTED: u64 = SPARE + 16;

pub(super) fn show(tour: &mut Tour<'_>) -> Shown {
    if tour.guest.environment().memory > MOST {
        tour.say(
            "\nA shortage would take all of this guest's memory, which the host would have to\n\
             give it. This chapter is for guests of up to 256 MiB.\n",
        );
        return Ok(None);
    }
    // 1. Nearly all memory goes: a large block, then the rest.
    tour.guest.call(SECOND, Op::Settle)?;
    let (below, scene) = (tour.first_hole(MapId::KERNEL)?, tour.beginning(MapId::KMEM)?);
    let (big, many) = tour.take_nearly_all(below)?;
    let (block, rest) = tour.take_the_rest(scene)?;
    tour.tell_passes()?;
    // 2. A caller that may sleep, and one that may not.
    // Its addresses are the lowest free ones, behind the block.
    let (wanted, behind) = (WANTED * PAGE_SIZE, Scene(MapId::KMEM, block.add(rest)));
    let sleeper = malloc(
        wanted,
        MallocFlags::WAITOK,
        "A second thread wants more than there is, and may sleep. It takes pages \
         one by one and, at the last two, wakes the pagedaemon and sleeps in \
         \"vmwait\" with what it has.",
    );
    tour.blocked(&sleeper.at(behind).on(SECOND))?;
    tour.tell_passes()?;
    tour.null(
        &malloc(
            4 * PAGE_SIZE,
            RESERVE,
            "With M_NOWAIT the first thread gets null at once, and nothing has \
             changed.",
        )
        .at(scene),
    )?;
    // 3. Pages come back.
    tour.ok(&free(
        KMEM,
        block,
        rest,
        "Pages are freed. From v_free_min on the sleepers are woken, not at the \
         first page: else each freed page would wake them all.",
    )
    .at(scene))?;
    let late = tour.address(
        &join(
            SECOND,
            "The second thread's call has gone on, and has returned. Its sleep counts \
             among its cycles.",
        )
        .at(behind),
    )?;
    tour.ok(&free(KMEM, late, wanted, "Its pages go.").at(behind))?;
    tour.ok(&free(KERNEL, big, many, "And the large block.").at(below))?;
    Ok(None)
}

impl Tour<'_> {
    /// A block of kernel_map that leaves little above the pagedaemon's mark, with its size.
    fn take_nearly_all(&mut self, below: Scene) -> Result<(GuestVirt, u64), TourError> {
        let many = self.free()?.saturating_sub(self.mark()? + 2 * SPARE) * PAGE_SIZE;
        let big = self.address(
            &Stage::new(
                format!("kmem_alloc(kernel_map, {many})"),
                Op::KmemAlloc { map: MapId::KERNEL, size: many },
                "kmem_alloc",
                "Nearly all of the memory, zeroed and wired page by page. What is left is hardly \
                 more than the mark below which the pagedaemon is woken.",
            )
            .at(below),
        )?;
        Ok((big, many))
    }

    /// A block of kmem_map that leaves [`SPARE`] pages, with its size.
    fn take_the_rest(&mut self, scene: Scene) -> Result<(GuestVirt, u64), TourError> {
        let rest = self.free()?.saturating_sub(SPARE) * PAGE_SIZE;
        let block = self.address(
            &malloc(
                rest,
                RESERVE,
                "kmem_alloc has to leave v_free_reserved pages to others. kmem_malloc with \
                 M_USE_RESERVE goes down to two. The pagedaemon wakes, but it has nothing to free.",
            )
            .at(scene),
        )?;
        Ok((block, rest))
    }

    /// Pages that are free.
    fn free(&self) -> Result<u64, TourError> {
        Ok(self.guest.meter()?.v_free_count.get())
    }

    /// The number of free pages below which the pagedaemon is woken.
    fn mark(&self) -> Result<u64, TourError> {
        let meter = self.guest.meter()?;
        Ok(meter.v_free_reserved.get() + meter.v_cache_min.get())
    }

    /// Says what the pagedaemon has done so far.
    fn tell_passes(&mut self) -> Result<(), TourError> {
        let meter = self.guest.meter()?;
        let text = format!(
            "   pagedaemon: below {} it runs; {} passes, {} vm_lowmem events so far\n",
            self.mark()?,
            meter.v_pdwakeups.get(),
            meter.lowmem_events.get()
        );
        self.say(&text);
        Ok(())
    }
}
