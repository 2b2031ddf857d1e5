//! What must hold in a guest at rest, seen from the host: the maps against themselves, the page tables against the maps,
//! the counters against each other.

use std::fmt;

use vmkern::abi::kva::{KERNBASE, VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern::abi::layout::EntryFlags;
use vmkern::abi::pte::PteFlags;
use vmkern::{EntryView, Guest, GuestVirt, InspectError, MapId, ObjectView, PageRun};

/// An invariant that does not hold, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<InspectError> for Broken {
    fn from(error: InspectError) -> Self {
        Self(error.to_string())
    }
}

fn ensure(holds: bool, words: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken(words())) }
}

/// A range that an entry owns, the entries of submaps in place of the submaps.
struct Region {
    start: GuestVirt,
    end: GuestVirt,
    entry: EntryView,
    /// Bytes of it that are mapped.
    mapped: u64,
}

/// Checks everything that the host can see.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check(guest: &Guest) -> Result<(), Broken> {
    let mut regions = Vec::new();
    collect(guest, MapId::KERNEL, &mut regions)?;
    translations(guest, &mut regions)?;
    counters(guest)
}

/// Checks a map by itself, adds its entries to `regions`, and goes on with its submaps.
fn collect(guest: &Guest, map: MapId, regions: &mut Vec<Region>) -> Result<(), Broken> {
    let stats = guest.map_stats(map)?;
    let entries = guest.map_entries(map)?;
    let used: u64 = entries.iter().map(|e| e.end.since(e.start)).sum();
    ensure(used == stats.size, || format!("map {:#x}: size {:#x}, but entries of {used:#x}", map.0, stats.size))?;
    let starts = entries.iter().map(|e| e.start).chain([stats.max]);
    let ends = [stats.min].into_iter().chain(entries.iter().map(|e| e.end));
    let hole = starts.zip(ends).map(|(start, end)| start.since(end)).max().unwrap_or(0);
    ensure(hole == stats.max_free, || {
        format!("map {:#x}: a largest hole of {hole:#x}, but max_free {:#x}", map.0, stats.max_free)
    })?;
    for entry in entries {
        let (start, end) = (entry.start, entry.end);
        let passing = EntryFlags::IN_TRANSITION | EntryFlags::NEEDS_WAKEUP;
        ensure(!entry.eflags.intersects(passing), || format!("the entry at {start} is in transition"))?;
        if let ObjectView::SubMap(submap) = entry.object {
            let sub = guest.map_stats(submap)?;
            ensure((sub.min, sub.max) == (start, end), || {
                format!("the submap of [{start}, {end}) is over [{}, {})", sub.min, sub.max)
            })?;
            collect(guest, submap, regions)?;
        } else {
            regions.push(Region { start, end, entry, mapped: 0 });
        }
    }
    Ok(())
}

/// Every translation belongs to an entry and is as that wants it; wired entries have all of theirs.
fn translations(guest: &Guest, regions: &mut [Region]) -> Result<(), Broken> {
    for run in guest.page_runs(VM_MIN_KERNEL_ADDRESS, VM_MAX_KERNEL_ADDRESS)? {
        let mut at = run.start;
        while at < run.end {
            // Regions ascend, as maps and submaps do.
            let next = regions.partition_point(|region| region.end <= at);
            let home = regions.get_mut(next).filter(|region| region.start <= at);
            let region = home.ok_or_else(|| Broken(format!("{at} is mapped, where nothing is allocated")))?;
            let end = run.end.min(region.end);
            if region.start < KERNBASE {
                translation(&run, &region.entry)?;
            }
            region.mapped += end.since(at);
            at = end;
        }
    }
    for region in regions.iter().filter(|region| is_kernels(&region.entry)) {
        let (start, length) = (region.start, region.end.since(region.start));
        ensure(region.entry.wired > 0, || format!("the entry at {start} on a kernel object is not wired"))?;
        ensure(region.mapped == length, || {
            format!("the entry at {start} has {length:#x} bytes, of which {:#x} are mapped", region.mapped)
        })?;
    }
    Ok(())
}

fn is_kernels(entry: &EntryView) -> bool {
    matches!(entry.object, ObjectView::Kernel | ObjectView::Kmem)
}

/// The translations of `run` are those that `entry` wants.
fn translation(run: &PageRun, entry: &EntryView) -> Result<(), Broken> {
    let words = || format!("{} is mapped {:?} in an entry of {:?}", run.start, run.flags, entry.object);
    let always = PteFlags::V | PteFlags::RW | PteFlags::G | PteFlags::NX;
    ensure(run.span == 4096 && run.flags.contains(always), words)?;
    let kentered = run.flags.contains(PteFlags::KENTER);
    match entry.object {
        ObjectView::None => ensure(kentered, words),
        ObjectView::Kernel | ObjectView::Kmem => {
            ensure(!kentered && run.flags.contains(PteFlags::W | PteFlags::A | PteFlags::M), words)
        }
        ObjectView::Other(_) => ensure(!kentered && run.flags.contains(PteFlags::W) == (entry.wired > 0), words),
        ObjectView::SubMap(_) => Err(Broken(words())),
    }
}

/// Every page is free, wired or on a queue.
fn counters(guest: &Guest) -> Result<(), Broken> {
    let meter = guest.meter()?;
    let queued = meter.v_active_count.get() + meter.v_inactive_count.get() + meter.v_cache_count.get();
    let (free, wired, all) = (meter.v_free_count.get(), meter.v_wire_count.get(), meter.v_page_count.get());
    ensure(free + wired + queued == all, || {
        format!("{free} free pages, {wired} wired and {queued} queued ones are not {all}")
    })
}
