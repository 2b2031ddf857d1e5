//! The pools of a map: the pages that hold its entries and index nodes, and the reserve it keeps.

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, PAGE_SHIFT};
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::layout::{KernelRoots, MapHome, MapNode, PoolPage, VmMapEntry};

use super::context::Context;
use super::map_entry::kernel_object;
use super::map_index;
use super::map_index::INDEX_SPARE;
use super::maps::{Map, Pool};
use super::owners::Owner;
use super::rule::Rule;
use super::rule::rules;

rules! {
    Some(check);
    Pools {
        MAP_HOME = "map-home":
            "the map's own address is in it";
        POOL_PAGES = "pool-pages":
            "the pages of a pool are linked both ways, and its first and last are known";
        POOL_CAPACITY = "pool-capacity":
            "`capacity` is what home and pages hold";
        POOL_USED = "pool-used":
            "`used` is the number of entries, or of nodes";
        POOL_TOP = "pool-top":
            "`top` is the page of the last item in use";
        POOL_ITEM = "pool-item":
            "the items in use are the first of the pool, without a hole";
        POOL_RESERVE = "pool-reserve":
            "the pool has the pages that the rules of the reserve require, and no more";
        MAP_PLAIN_PAGES = "map-plain-pages":
            "`plain_pages` is the number of pages in ranges that can be freed without any page \
             being returned";
        MAP_CREDITS = "map-credits":
            "there are no more credits than such pages";
        MAP_PAGES = "map-pages":
            "`map_pages` is the number of pages of all homes and pools, and of homes that are \
             being made";
    }
}

/// The least number of entries that a map keeps in reserve while pages are available.
const FLOOR: u64 = 8;

/// One kind of item: entries or nodes.
#[derive(Clone, Copy)]
struct Kind {
    /// The kind's name in findings.
    what: &'static str,
    size: u64,
    home: u64,
    home_offset: u64,
    per_page: u64,
}

const ENTRIES: Kind = Kind {
    what: "entries",
    size: size_of::<VmMapEntry>() as u64,
    home: MapHome::ENTRIES as u64,
    home_offset: offset_of!(MapHome, entries) as u64,
    per_page: PoolPage::ENTRIES,
};

const NODES: Kind = Kind {
    what: "nodes",
    size: size_of::<MapNode>() as u64,
    home: MapHome::NODES as u64,
    home_offset: offset_of!(MapHome, nodes) as u64,
    per_page: PoolPage::NODES,
};

/// Checks the indexes and pools of all maps, and claims and counts their pages.
fn check(ctx: &Context<'_>) {
    let mut pages = 0;
    for map in &ctx.maps.all {
        ctx.claim_at(map.at, Owner::MapHome);
        let entry_pages = pool_pages(ctx, map, &ENTRIES, &map.entry_pool);
        let node_pages = pool_pages(ctx, map, &NODES, &map.node_pool);
        pages += 1 + entry_pages.len() as u64 + node_pages.len() as u64;
        if map.is_updating() {
            continue;
        }
        let entries = map.entries.iter().map(|entry| entry.at).collect();
        let nodes = map_index::check(ctx, map);
        items(ctx, map, &ENTRIES, &map.entry_pool, &entry_pages, &entries);
        items(ctx, map, &NODES, &map.node_pool, &node_pages, &nodes);
        reserve(ctx, map);
    }
    let counted = ctx.roots.map_pages.get();
    // A map that is being created already has its home, but is on no list yet.
    let most = pages.saturating_add(ctx.rest.awake());
    if !(pages..=most).contains(&counted) && !ctx.is_any_map_updating() {
        ctx.finding(&MAP_PAGES, "map_pages", ctx.root(offset_of!(KernelRoots, map_pages)), || {
            format!("it says {counted}, but the maps have {pages} pages")
        });
    }
}

fn finding(
    ctx: &Context<'_>,
    rule: &'static Rule,
    map: &Map,
    kind: &Kind,
    detail: impl FnOnce() -> String,
) {
    ctx.finding(rule, map.name, map.at, || format!("pool of {}: {}", kind.what, detail()));
}

/// Checks the links of a pool's pages and the pool's own fields; returns the pages in order.
fn pool_pages(ctx: &Context<'_>, map: &Map, kind: &Kind, pool: &Pool) -> Vec<GuestVirt> {
    // 1. The pages, each once, in the order of the list.
    let (mut pages, mut seen) = (Vec::new(), HashSet::new());
    let mut at = pool.first;
    let mut before = GuestVirt::new(0);
    while let Some(pointer) = at.non_null() {
        if !pointer.addr().is_page_aligned() || !seen.insert(pointer.addr()) {
            finding(ctx, &POOL_PAGES, map, kind, || {
                format!(
                    "its list of pages leads to {}, which is not a page or came before",
                    pointer.addr()
                )
            });
            break;
        }
        let page = match ctx.memory.get::<PoolPage>("pool page", pointer) {
            Ok(page) => page,
            Err(error) => {
                ctx.unreadable(&error);
                break;
            }
        };
        // 2. The pool owns the page. During an update, its links may be inconsistent.
        ctx.claim_at(pointer.addr(), Owner::MapPool);
        if page.prev.get().addr() != before && !map.is_updating() {
            ctx.finding(&POOL_PAGES, "pool page", pointer.addr(), || {
                format!(
                    "its prev is {}, but the pages of {} come from {before}",
                    page.prev.get().addr(),
                    map.name
                )
            });
        }
        pages.push(pointer.addr());
        (before, at) = (pointer.addr(), page.next.get());
    }
    // 3. The pool's own fields.
    if map.is_updating() {
        return pages;
    }
    check_counts(ctx, map, kind, pool, &pages);
    pages
}

/// Checks the fields of a pool that is not being updated against its pages, in the order of the
/// list.
fn check_counts(ctx: &Context<'_>, map: &Map, kind: &Kind, pool: &Pool, pages: &[GuestVirt]) {
    // 1. The end of the list, and room for the used items.
    let before = pages.last().copied().unwrap_or_default();
    if pool.last.addr() != before {
        finding(ctx, &POOL_PAGES, map, kind, || {
            format!("last is {}, but the last page is {before}", pool.last.addr())
        });
    }
    let capacity = kind.home + kind.per_page * pages.len() as u64;
    if pool.capacity != capacity {
        finding(ctx, &POOL_CAPACITY, map, kind, || {
            format!(
                "capacity says {}, but the home and {} pages hold {capacity}",
                pool.capacity,
                pages.len()
            )
        });
    }
    if pool.used > capacity {
        finding(ctx, &POOL_USED, map, kind, || {
            format!("used says {}, but there is room for {capacity}", pool.used)
        });
    }
    // 2. The top page is the one with the last used item.
    let used_pages = pool.used.saturating_sub(kind.home).div_ceil(kind.per_page);
    let top =
        usize::try_from(used_pages).ok().and_then(|n| n.checked_sub(1)).and_then(|n| pages.get(n));
    let top = top.copied().unwrap_or_default();
    if pool.top.addr() != top && pool.used <= capacity {
        finding(ctx, &POOL_TOP, map, kind, || {
            format!(
                "top is {}, but item {} of those in use, the last, lies in {top}",
                pool.top.addr(),
                pool.used
            )
        });
    }
}

/// Checks that the used items are the first of the pool, without a hole. `live` are the items on
/// the list or in the tree.
fn items(
    ctx: &Context<'_>,
    map: &Map,
    kind: &Kind,
    pool: &Pool,
    pages: &[GuestVirt],
    live: &HashSet<GuestVirt>,
) {
    // 1. The number of used items.
    if pool.used != live.len() as u64 {
        finding(ctx, &POOL_USED, map, kind, || {
            format!("used says {}, but {} are in use", pool.used, live.len())
        });
    }
    // 2. Number the places: the home first, then the pages in order.
    let numbers: HashMap<GuestVirt, u64> = pages.iter().copied().zip(0..).collect();
    let number_of = |item: GuestVirt| {
        let (base, first) = match numbers.get(&item.page()) {
            Some(page) => {
                (item.page().add(size_of::<PoolPage>() as u64), kind.home + page * kind.per_page)
            }
            None => (map.at.checked_add(kind.home_offset)?, 0),
        };
        let bytes =
            item.get().checked_sub(base.get()).filter(|bytes| bytes.is_multiple_of(kind.size))?;
        let (slot, slots) = (bytes / kind.size, if first == 0 { kind.home } else { kind.per_page });
        (slot < slots).then_some(first + slot)
    };
    // 3. Each used item is among the first.
    for &item in live {
        match number_of(item) {
            None => finding(ctx, &POOL_ITEM, map, kind, || {
                format!("{item} is in use, but lies in no page of it")
            }),
            Some(number) if number >= pool.used => finding(ctx, &POOL_ITEM, map, kind, || {
                format!(
                    "{item} is in use, but is number {number}, and only {} are in use",
                    pool.used
                )
            }),
            Some(_) => {}
        }
    }
}

/// Checks the map's reserve, which follows from its use.
fn reserve(ctx: &Context<'_>, map: &Map) {
    // 1. The home, and no unlinked node left to be taken back.
    let state = |rule, detail: String| ctx.finding(rule, map.name, map.at, || detail);
    if map.home != map.at {
        state(&MAP_HOME, format!("home is {}, but it begins with the map itself", map.home));
    }
    if !map.unlinked.is_null() {
        state(
            &INDEX_SPARE,
            format!("node {} has left the tree, but not the pool", map.unlinked.addr()),
        );
    }
    // 2. The pages of plain ranges, which can lack pages: not submaps, the kernel's objects, or the
    //    image.
    let image = KERNBASE.get()..ctx.roots.virtual_avail.get().get();
    let plain = map.entries.iter().filter(|entry| {
        !entry.is_submap()
            && entry.object().is_none_or(|object| kernel_object(ctx, object).is_none())
    });
    let pages: u64 = plain
        .map(|entry| {
            let in_image =
                entry.end.get().min(image.end).saturating_sub(entry.start.get().max(image.start));
            entry.len().saturating_sub(in_image) >> PAGE_SHIFT
        })
        .sum();
    // 3. The counts of such pages, and of the credits for them.
    if map.plain_pages != pages {
        state(
            &MAP_PLAIN_PAGES,
            format!(
                "plain_pages says {}, its ranges that can lack pages have {pages}",
                map.plain_pages
            ),
        );
    }
    if map.credits > map.plain_pages {
        state(
            &MAP_CREDITS,
            format!("{} credits, but only {} pages could use them", map.credits, map.plain_pages),
        );
    }
    // 4. The pools hold enough for them.
    check_capacities(ctx, map);
}

/// Checks that the pools hold enough for the next change, and no page too many.
fn check_capacities(ctx: &Context<'_>, map: &Map) {
    let state = |rule, detail: String| ctx.finding(rule, map.name, map.at, || detail);
    let (entries, nodes) = (&map.entry_pool, &map.node_pool);
    let needed =
        entries.used.saturating_add(FLOOR).saturating_add(map.credits.min(map.plain_pages / 2));
    if entries.capacity >= needed.max(ENTRIES.home).saturating_add(ENTRIES.per_page) {
        let capacity = entries.capacity;
        state(
            &POOL_RESERVE,
            format!("{capacity} entries, but {needed} are enough: a page should have gone back"),
        );
    }
    let needed = max_nodes(entries.capacity.saturating_add(1));
    if nodes.capacity < needed
        || nodes.capacity >= needed.max(NODES.home).saturating_add(NODES.per_page)
    {
        let (capacity, entries) = (nodes.capacity, entries.capacity);
        state(
            &POOL_RESERVE,
            format!("{capacity} nodes, but {entries} entries can make a tree of {needed}"),
        );
    }
}

/// The most nodes of a tree of `items` items.
fn max_nodes(items: u64) -> u64 {
    let (mut nodes, mut level) = (1, items / MapNode::MIN_FILL as u64);
    while level >= 2 {
        nodes += level;
        level /= MapNode::MIN_FILL as u64;
    }
    nodes
}
