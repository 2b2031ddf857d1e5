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
                format!(
                    "its prev is {}, but the list of {} at {} comes from {before}",
                    entry.prev, map.name, map.at
                )
            });
        }
        if entry.start < below {
            ctx.finding("map-order", "vm_map_entry", entry.at, || {
                let side = if before == map.at {
                    "its map's first address is"
                } else {
                    "the entry before it ends at"
                };
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
                format!(
                    "it ends at {}, but {} at {} ends at {}",
                    entry.end, map.name, map.at, map.max
                )
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
            format!("nentries says {}, but its list has {count}", map.nentries)
        });
    }
    if map.size != size {
        ctx.finding("map-size", map.name, map.at, || {
            format!("size says {}, but its entries sum to {size}", map.size)
        });
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::{GuestVirt, KPtr};

    use super::super::tests::lab::{Lab, expect_finding};

    const KMEM: usize = 1;

    #[test]
    fn wrong_counts_of_a_map_are_found() {
        let lab = Lab::new();
        let map = lab.map(KMEM);
        let report = lab.damaged(map, |map| map.size.update_locked(|size| size + 4096));
        let finding = expect_finding(&report, "map-size", "kmem_map", map.addr());
        assert_eq!(
            finding.detail,
            format!("size says {}, but its entries sum to {}", 181 * 4096, 180 * 4096)
        );
        lab.each(
            map,
            "kmem_map",
            &[
                ("map-nentries", |map| map.nentries.set(3)),
                ("map-bounds", |map| map.header.end.set(GuestVirt::new(5))),
                ("map-list", |map| map.header.prev.set(map.header.next.get())),
            ],
        );
        assert!(lab.check().is_clean());
    }

    #[test]
    fn wrong_links_and_ranges_of_entries_are_found() {
        let lab = Lab::new();
        let entry = lab.entry(KMEM, 1);
        lab.each(
            entry,
            "vm_map_entry",
            &[
                ("map-list", |e| e.prev.set(KPtr::NULL)),
                ("map-order", |e| e.start.update_locked(|at| GuestVirt::new(at.get() - (1 << 20)))),
                ("map-order", |e| e.end.update_locked(|at| at.add(1 << 32))),
                ("entry-range", |e| e.end.set(e.start.get())),
                ("entry-range", |e| e.start.update_locked(|at| at.add(8))),
                ("entry-range", |e| e.end.update_locked(|at| at.add(8))),
            ],
        );
        let report = lab.damaged(entry, |e| e.next.set(e.prev.get()));
        let previous = lab.get(entry).prev.get();
        expect_finding(&report, "map-list", "vm_map_entry", previous.addr());
        let nowhere = GuestVirt::new(0xdead_0000_0000_0000);
        let report =
            lab.damaged(entry, |e| e.next.set(KPtr::new(GuestVirt::new(0xdead_0000_0000_0000))));
        expect_finding(&report, "unreadable", "vm_map_entry", nowhere);
    }

    #[test]
    fn a_map_whose_lock_is_held_is_left_out() {
        let lab = Lab::new();
        let map = lab.map(KMEM);
        let report = lab.damaged(map, |map| {
            map.size.set(1);
            map.lock.owner.set(3);
        });
        assert!(report.findings.iter().all(|finding| finding.rule != "map-size"), "{report}");
        assert_eq!((report.updating[0].at, report.updating[0].owner), (map.addr(), 2));
    }
}
