//! A map's list of entries: order, links, and the map's counts.

use vmkern_abi::addr::GuestVirt;

use super::context::Context;
use super::maps::{Entry, Map};
use super::rule::rules;

rules! {
    Some(check);
    Maps {
        MAP_LIST = "map-list":
            "an entry's `prev` is the previous entry in the list; the list ends at the header and \
             reaches no entry twice";
        MAP_ORDER = "map-order":
            "entries ascend, do not overlap, and lie inside the map";
        MAP_BOUNDS = "map-bounds":
            "the map is a range of whole pages; kernel_map is the kernel's address space";
        MAP_NENTRIES = "map-nentries":
            "`nentries` is the length of the list";
        MAP_SIZE = "map-size":
            "`size` is the sum of the entries";
    }
    Entries {
        ENTRY_RANGE = "entry-range":
            "it is a range of whole pages and not empty";
    }
}

/// Checks the lists of all maps.
fn check(ctx: &Context<'_>) {
    ctx.maps.all.iter().filter(|map| !map.is_updating()).for_each(|map| check_map(ctx, map));
}

fn check_map(ctx: &Context<'_>, map: &Map) {
    // 1. The map's own range.
    if map.min > map.max || !map.min.is_page_aligned() || !map.max.is_page_aligned() {
        ctx.finding(&MAP_BOUNDS, map.name, map.at, || {
            format!("[{}, {}) is not a range of whole pages", map.min, map.max)
        });
    }
    // 2. The entries, from the header around to the header.
    let (mut before, mut below, mut size) = (map.at, map.min, 0u64);
    for entry in &map.entries {
        check_entry(ctx, map, entry, before, below);
        size = size.wrapping_add(entry.len());
        (before, below) = (entry.at, below.max(entry.end));
    }
    // 3. The map's own fields: the last entry, the number, the bytes.
    if map.header.prev != before {
        ctx.finding(&MAP_LIST, map.name, map.at, || {
            format!("its last entry is {before}, but its header's prev is {}", map.header.prev)
        });
    }
    let count = map.entries.len() as u64;
    if map.nentries != count {
        ctx.finding(&MAP_NENTRIES, map.name, map.at, || {
            format!("nentries says {}, but its list has {count}", map.nentries)
        });
    }
    if map.size != size {
        ctx.finding(&MAP_SIZE, map.name, map.at, || {
            format!("size says {}, but its entries sum to {size}", map.size)
        });
    }
}

/// Checks an entry against `before`, the previous one on the list, and `below`, the end of that.
fn check_entry(ctx: &Context<'_>, map: &Map, entry: &Entry, before: GuestVirt, below: GuestVirt) {
    // 1. Linked to the previous entry, and not below its end.
    if entry.prev != before {
        ctx.finding(&MAP_LIST, "vm_map_entry", entry.at, || {
            format!(
                "its prev is {}, but the list of {} at {} comes from {before}",
                entry.prev, map.name, map.at
            )
        });
    }
    if entry.start < below {
        ctx.finding(&MAP_ORDER, "vm_map_entry", entry.at, || {
            let side = if before == map.at {
                "its map's first address is"
            } else {
                "the entry before it ends at"
            };
            format!("it starts at {}, but {side} {below}", entry.start)
        });
    }
    // 2. A range of whole pages, within the map.
    if entry.end <= entry.start {
        ctx.finding(&ENTRY_RANGE, "vm_map_entry", entry.at, || {
            format!("it ends at {}, but starts at {}", entry.end, entry.start)
        });
    }
    if !entry.start.is_page_aligned() || !entry.end.is_page_aligned() {
        ctx.finding(&ENTRY_RANGE, "vm_map_entry", entry.at, || {
            format!("[{}, {}) is not a range of whole pages", entry.start, entry.end)
        });
    }
    if entry.end > map.max {
        ctx.finding(&MAP_ORDER, "vm_map_entry", entry.at, || {
            format!("it ends at {}, but {} at {} ends at {}", entry.end, map.name, map.at, map.max)
        });
    }
}
