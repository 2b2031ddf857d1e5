//! The stops, in their order.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use super::{Stage, Tour, TourError, unexpected};
use crate::Crash;
use crate::script::StepResult;

/// Pages shown to the left of a place in kernel_map.
const MARGIN: u64 = 8 * PAGE_SIZE;

impl Tour<'_> {
    /// All stops; the last one kills the guest.
    pub(super) fn stops(&mut self) -> Result<Box<Crash>, TourError> {
        let gone = self.kmem()?;
        let from = self.guest.map_stats(MapId::KMEM)?.min;
        self.kernel()?;
        self.too_much()?;
        let crash = self.fatal(&Stage {
            call: format!("*(long *){gone}"),
            op: Op::Read { addr: gone },
            verb: "read",
            story: &[
                "This page was freed at stop 7, and no entry of a map covers it any more: the",
                "kernel's own access faults, and it dies with the reason and a backtrace.",
            ],
            map: MapId::KMEM,
            from,
        })?;
        self.say(
            "\nThat is all. Write your own and run it with `vmkern run FILE.kmem`: the scripts\n\
             in tests/scripts show the language, `vmkern run --help` the options.\n",
        );
        Ok(crash)
    }

    /// kmem_map: malloc's memory. Returns an address that has been freed.
    fn kmem(&mut self) -> Result<GuestVirt, TourError> {
        // 1. Three pages with a pattern.
        let map = MapId::KMEM;
        let from = self.guest.map_stats(map)?.min;
        let malloc =
            |size: u64, flags: MallocFlags, call: &str, story: &'static [&'static str]| Stage {
                call: call.to_owned(),
                op: Op::KmemMalloc { map, size, flags },
                verb: "kmem_malloc",
                story,
                map,
                from,
            };
        let (nowait, zero) = (MallocFlags::NOWAIT, MallocFlags::ZERO);
        let first = self.address(&malloc(
            3 * PAGE_SIZE,
            nowait | zero,
            "kmem_malloc(kmem_map, 12288, M_NOWAIT | M_ZERO)",
            &[
                "The lowest hole of kmem_map that is large enough, three pages from the buddy",
                "lists, zeroed, wired, entered into the page tables: there is no later fault.",
            ],
        ))?;
        self.ok(&Stage {
            call: format!("fill({first}, 12288, 7)"),
            op: Op::Fill { addr: first, size: 3 * PAGE_SIZE, seed: 7 },
            verb: "fill",
            story: &["Real memory: a pattern is written to every byte. Nothing else changes."],
            map,
            from,
        })?;
        // 2. A second block, next to it.
        let second = self.address(&malloc(
            2 * PAGE_SIZE,
            nowait,
            "kmem_malloc(kmem_map, 8192, M_NOWAIT)",
            &["First fit puts it right behind: two neighbours that are alike are one entry."],
        ))?;
        // 3. A hole, and what it leaves.
        let middle = first.add(2 * PAGE_SIZE);
        let free = |addr: GuestVirt, size: u64, story: &'static [&'static str]| Stage {
            call: format!("kmem_free(kmem_map, {addr}, {size})"),
            op: Op::KmemFree { map, addr, size },
            verb: "kmem_free",
            story,
            map,
            from,
        };
        self.ok(&free(
            middle,
            PAGE_SIZE,
            &[
                "The last page of the first block goes. The map entry is clipped in two, the",
                "page-table entry vanishes, and the page is free again.",
            ],
        ))?;
        self.ok(&Stage {
            call: format!("verify({first}, 8192, 7)"),
            op: Op::Verify { addr: first, size: 2 * PAGE_SIZE, seed: 7 },
            verb: "verify",
            story: &["The rest of the block has kept its bytes."],
            map,
            from,
        })?;
        // 4. The hole is filled again, and all is given back.
        let again = self.address(&malloc(
            PAGE_SIZE,
            nowait,
            "kmem_malloc(kmem_map, 4096, M_NOWAIT)",
            &["The hole is the lowest place that fits: it is taken, and all is one entry."],
        ))?;
        self.ok(&free(again, PAGE_SIZE, &["And back."]))?;
        self.ok(&free(second, 2 * PAGE_SIZE, &["The second block goes as well."]))?;
        Ok(again)
    }

    /// kernel_map: memory that may be waited for, and a stack with its guard page.
    fn kernel(&mut self) -> Result<(), TourError> {
        // 1. The first hole of kernel_map.
        let map = MapId::KERNEL;
        let from = self.before_first_hole(map)?;
        // 2. A block there, and addresses without pages.
        let block = self.address(&Stage {
            call: "kmem_alloc(kernel_map, 16384)".to_owned(),
            op: Op::KmemAlloc { map, size: 4 * PAGE_SIZE },
            verb: "kmem_alloc",
            story: &[
                "kernel_map begins with its submap kmem_map. Behind it: four zeroed pages of",
                "kernel_object, wired by vm_map_wire through vm_fault.",
            ],
            map,
            from,
        })?;
        let stack = self.address(&Stage {
            call: "kmem_alloc_nofault(kernel_map, 20480)".to_owned(),
            op: Op::KmemAllocNofault { map, size: 5 * PAGE_SIZE },
            verb: "kmem_alloc_nofault",
            story: &[
                "Addresses alone, as for a kernel stack: no page, and a fault here is a panic.",
            ],
            map,
            from,
        })?;
        // 3. Pages behind some of them, as for a stack with a guard page.
        let base = stack.add(PAGE_SIZE);
        // 4. The block goes.
        self.ok(&Stage {
            call: format!("pmap_qenter({base}, 4)"),
            op: Op::PmapQenter { addr: base, count: 4 },
            verb: "pmap_qenter",
            story: &[
                "Four pages are mapped above the first one, which stays empty: the guard page.",
            ],
            map,
            from,
        })?;
        self.ok(&Stage {
            call: format!("kmem_free(kernel_map, {block}, 16384)"),
            op: Op::KmemFree { map, addr: block, size: 4 * PAGE_SIZE },
            verb: "kmem_free",
            story: &["The first block goes; the stack above it stays."],
            map,
            from,
        })
    }

    /// A little before the first hole of `map`, for the picture.
    fn before_first_hole(&self, map: MapId) -> Result<GuestVirt, TourError> {
        let bottom = self.guest.map_entries(map)?;
        let start = self.guest.map_stats(map)?.min;
        let mut hole = start;
        for entry in &bottom {
            if entry.start != hole {
                break;
            }
            hole = entry.end;
        }
        Ok(GuestVirt::new(hole.get().saturating_sub(MARGIN).max(start.get())))
    }

    /// More than the map has.
    fn too_much(&mut self) -> Result<(), TourError> {
        let map = MapId::KMEM;
        let stats = self.guest.map_stats(map)?;
        let size = stats.max.since(stats.min);
        let stage = Stage {
            call: format!("kmem_malloc(kmem_map, {size}, M_NOWAIT)"),
            op: Op::KmemMalloc { map, size, flags: MallocFlags::NOWAIT },
            verb: "kmem_malloc",
            story: &["As much as the whole map, of which some is in use: null, and no trace."],
            map,
            from: stats.min,
        };
        match self.stage(&stage)? {
            Outcome::Null => Ok(()),
            other => Err(unexpected(&stage, "null", &StepResult::Given(other))),
        }
    }
}
