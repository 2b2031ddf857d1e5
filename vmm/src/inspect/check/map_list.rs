//! A map's list of entries: order, links, and the counts that the map keeps of it.

use super::context::Context;
use super::maps::Map;

/// Checks the lists of all maps.
pub(super) fn check(ctx: &Context<'_>) {
    ctx.maps.all.iter().filter(|map| !map.is_updating()).for_each(|map| check_map(ctx, map));
}

fn check_map(ctx: &Context<'_>, map: &Map) {
    if map.min > map.max || !map.min.is_page_aligned() || !map.max.is_page_aligned() {
        ctx.finding("map-bounds", map.name, map.at, || {
            format!("[{}, {}) is not a range of whole pages", map.min, map.max)
        });
    }
    let (mut before, mut below, mut size) = (map.at, map.min, 0u64);
    for entry in &map.entries {
        if entry.prev != before {
            ctx.finding("map-list", "vm_map_entry", entry.at, || {
                format!("its prev is {}, but the list of {} at {} comes from {before}", entry.prev, map.name, map.at)
            });
        }
        if entry.start < below {
            ctx.finding("map-order", "vm_map_entry", entry.at, || {
                let side = if before == map.at { "its map's first address is" } else { "the entry before it ends at" };
                format!("it starts at {}, but {side} {below}", entry.start)
            });
        }
        if entry.end <= entry.start {
            ctx.finding("entry-range", "vm_map_entry", entry.at, || {
                format!("it ends at {}, but starts at {}", entry.end, entry.start)
            });
        }
        if !entry.start.is_page_aligned() || !entry.end.is_page_aligned() {
            ctx.finding("entry-range", "vm_map_entry", entry.at, || {
                format!("[{}, {}) is not a range of whole pages", entry.start, entry.end)
            });
        }
        if entry.end > map.max {
            ctx.finding("map-order", "vm_map_entry", entry.at, || {
                format!("it ends at {}, but {} at {} at {}", entry.end, map.name, map.at, map.max)
            });
        }
        size = size.wrapping_add(entry.len());
        (before, below) = (entry.at, below.max(entry.end));
    }
    if map.header.prev != before {
        ctx.finding("map-list", map.name, map.at, || {
            format!("its last entry is {before}, but its header's prev is {}", map.header.prev)
        });
    }
    let count = map.entries.len() as u64;
    if map.nentries != count {
        ctx.finding("map-nentries", map.name, map.at, || {
            format!("nentries says {}, its list has {count}", map.nentries)
        });
    }
    if map.size != size {
        ctx.finding("map-size", map.name, map.at, || format!("size says {}, its entries sum to {size}", map.size));
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::{GuestVirt, KPtr};
    use vmkern_abi::layout::{VmMap, VmMapEntry};

    use super::super::tests::lab::{Lab, expect_finding};

    /// kmem_map, and the second of its entries.
    fn kmem_map(lab: &Lab) -> (KPtr<VmMap>, KPtr<VmMapEntry>) {
        let map = lab.roots().1.maps[1].get();
        let first = lab.get(map).header.next.get();
        (map, lab.get(first).next.get())
    }

    #[test]
    fn wrong_counts_of_a_map_are_found() {
        let lab = Lab::new();
        let (map, _) = kmem_map(&lab);
        let report = lab.damaged(map, |map| map.size.update(|size| size + 4096));
        let finding = expect_finding(&report, "map-size", "kmem_map", map.addr());
        assert_eq!(finding.detail, format!("size says {}, its entries sum to {}", 73 * 4096, 72 * 4096));
        let report = lab.damaged(map, |map| map.nentries.set(3));
        expect_finding(&report, "map-nentries", "kmem_map", map.addr());
        let report = lab.damaged(map, |map| map.header.end.set(GuestVirt::new(5)));
        expect_finding(&report, "map-bounds", "kmem_map", map.addr());
        assert!(lab.check().is_clean());
    }

    #[test]
    fn wrong_links_and_ranges_of_entries_are_found() {
        let lab = Lab::new();
        let (map, entry) = kmem_map(&lab);
        type Damage = fn(&VmMapEntry);
        let damages: [(&str, Damage); 6] = [
            ("map-list", |e| e.prev.set(KPtr::NULL)),
            ("map-order", |e| e.start.update(|at| GuestVirt::new(at.get() - (1 << 20)))),
            ("map-order", |e| e.end.update(|at| at.add(1 << 32))),
            ("entry-range", |e| e.end.set(e.start.get())),
            ("entry-range", |e| e.start.update(|at| at.add(8))),
            ("entry-range", |e| e.end.update(|at| at.add(8))),
        ];
        for (rule, damage) in damages {
            expect_finding(&lab.damaged(entry, damage), rule, "vm_map_entry", entry.addr());
        }
        let report = lab.damaged(entry, |e| e.next.set(e.prev.get()));
        let previous = lab.get(entry).prev.get();
        expect_finding(&report, "map-list", "vm_map_entry", previous.addr());
        let report = lab.damaged(entry, |e| e.next.set(KPtr::new(GuestVirt::new(0xdead_0000_0000_0000))));
        expect_finding(&report, "unreadable", "vm_map_entry", GuestVirt::new(0xdead_0000_0000_0000));
        let report = lab.damaged(map, |map| map.header.prev.set(entry));
        expect_finding(&report, "map-list", "kmem_map", map.addr());
    }

    #[test]
    fn a_map_whose_lock_is_held_is_left_out() {
        let lab = Lab::new();
        let (map, _) = kmem_map(&lab);
        let report = lab.damaged(map, |map| {
            map.size.set(1);
            map.lock.owner.set(3);
        });
        assert!(report.findings.iter().all(|finding| finding.rule != "map-size"), "{report}");
        assert_eq!((report.updating[0].at, report.updating[0].owner), (map.addr(), 2));
    }
}
