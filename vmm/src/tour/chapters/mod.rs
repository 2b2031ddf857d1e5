//! The chapters, in their order.

mod boot;
mod faults;
mod freeing;
mod kmem_alloc;
mod kmem_malloc;
mod shortage;
mod sleeping;

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MallocFlags, MapId, Op};

use super::stage::{Scene, Stage};
use super::{Tour, TourError};
use crate::{Crash, ThreadId};

/// Pages shown to the left of a place in kernel_map.
const MARGIN: u64 = 8 * PAGE_SIZE;

/// What came of a chapter: the crash, where the guest died of it as planned.
type Shown = Result<Option<Box<Crash>>, TourError>;

/// A chapter of the tour.
#[derive(Debug)]
pub struct Chapter {
    /// Its name on a command line.
    pub name: &'static str,
    /// What it is about.
    pub title: &'static str,
    pub(super) show: fn(&mut Tour<'_>) -> Shown,
}

/// All chapters, in the order in which a whole tour takes them. Only the last one ends with the
/// guest's death.
pub static CHAPTERS: [Chapter; 7] = [
    Chapter { name: "boot", title: "What a boot has made", show: boot::show },
    Chapter {
        name: "kmem_alloc",
        title: "kmem_alloc, and the page tables below it",
        show: kmem_alloc::show,
    },
    Chapter { name: "kmem_malloc", title: "kmem_malloc, and its map", show: kmem_malloc::show },
    Chapter {
        name: "sleeping",
        title: "A submap, and a thread that sleeps for room in it",
        show: sleeping::show,
    },
    Chapter { name: "faults", title: "Memory that comes when it is touched", show: faults::show },
    Chapter {
        name: "shortage",
        title: "A shortage of pages, and the pagedaemon",
        show: shortage::show,
    },
    Chapter {
        name: "freeing",
        title: "Freeing, checking, and a use after free",
        show: freeing::show,
    },
];

impl Chapter {
    /// The chapter called `name`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        CHAPTERS.iter().find(|chapter| chapter.name == name)
    }
}

/// Flags as C would write them.
fn c_flags(flags: MallocFlags) -> String {
    flags.iter_names().map(|(name, _)| format!("M_{name}")).collect::<Vec<_>>().join(" | ")
}

/// `kmem_malloc(kmem_map, size, flags)`.
fn malloc(size: u64, flags: MallocFlags, story: &'static str) -> Stage {
    let call = format!("kmem_malloc(kmem_map, {size}, {})", c_flags(flags));
    Stage::new(call, Op::KmemMalloc { map: MapId::KMEM, size, flags }, "kmem_malloc", story)
}

/// `kmem_free(map, addr, size)`, where `map` is called `name`.
fn free((name, map): (&str, MapId), addr: GuestVirt, size: u64, story: &'static str) -> Stage {
    let call = format!("kmem_free({name}, {addr}, {size})");
    Stage::new(call, Op::KmemFree { map, addr, size }, "kmem_free", story)
}

/// `kmem_alloc_wait(map, size)`, where `map` is called `name`.
fn alloc_wait((name, map): (&str, MapId), size: u64, story: &'static str) -> Stage {
    let call = format!("kmem_alloc_wait({name}, {size})");
    Stage::new(call, Op::KmemAllocWait { map, size }, "kmem_alloc_wait", story)
}

/// `kmem_free_wakeup(map, addr, size)` likewise.
fn free_wakeup(
    (name, map): (&str, MapId),
    addr: GuestVirt,
    size: u64,
    story: &'static str,
) -> Stage {
    let call = format!("kmem_free_wakeup({name}, {addr}, {size})");
    Stage::new(call, Op::KmemFreeWakeup { map, addr, size }, "kmem_free_wakeup", story)
}

/// `fill(addr, size, seed)`.
fn fill(addr: GuestVirt, size: u64, seed: u64, story: &'static str) -> Stage {
    let call = format!("fill({addr}, {size}, {seed})");
    Stage::new(call, Op::Fill { addr, size, seed }, "fill", story)
}

/// A read of 8 bytes.
fn read(addr: GuestVirt, story: &'static str) -> Stage {
    Stage::new(format!("*(long *){addr}"), Op::Read { addr }, "read", story)
}

/// The thread beside the first.
const SECOND: ThreadId = ThreadId::nth::<1>();

/// The answer of thread `thread`, which slept.
fn join(thread: ThreadId, story: &'static str) -> Stage {
    let op = Op::Join { thread: thread.number() };
    Stage::new(format!("join {thread}"), op, "join", story)
}

const KERNEL: (&str, MapId) = ("kernel_map", MapId::KERNEL);
const KMEM: (&str, MapId) = ("kmem_map", MapId::KMEM);

impl Tour<'_> {
    /// The beginning of `map`.
    fn beginning(&self, map: MapId) -> Result<Scene, TourError> {
        Ok(Scene(map, self.guest.map_stats(map)?.min))
    }

    /// A little before the first hole of `map`, for the picture.
    fn first_hole(&self, map: MapId) -> Result<Scene, TourError> {
        let bottom = self.guest.map_entries(map)?;
        let start = self.guest.map_stats(map)?.min;
        let mut hole = start;
        for entry in &bottom {
            if entry.start != hole {
                break;
            }
            hole = entry.end;
        }
        let from = GuestVirt::new(hole.get().saturating_sub(MARGIN).max(start.get()));
        Ok(Scene(map, from))
    }
}
