//! Maps apart from their entries: which maps exist, how they are nested, and their other fields.

use std::collections::HashMap;
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, NBPDR};
use vmkern_abi::kva::{KERNBASE, VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::KernelRoots;

use super::context::Context;
use super::map_entry::map_channel;
use super::map_list::MAP_BOUNDS;
use super::maps::{Map, UNNAMED};
use super::rule::rules;

rules! {
    Some(check);
    Maps {
        MAP_PMAP = "map-pmap":
            "the map is the kernel pmap's";
        MAP_SYSTEM = "map-system":
            "`system_map` is 0 or 1, and for the maps that the boot makes it has the value that \
             the boot gives it";
        MAP_WAKEUP = "map-wakeup":
            "`needs_wakeup` is set only if a thread sleeps on the map, or runs and may be about \
             to sleep";
        MAP_REGISTRY = "map-registry":
            "the list of maps has every map that a root or an entry names exactly once; each root \
             names a different map";
        MAP_IMAGE = "map-image":
            "an entry of kernel_map holds the kernel's image";
        KERNEL_VM_END = "kernel-vm-end":
            "page tables reach as far as the entries of kernel_map, by whole tables";
        SUBMAP_RANGE = "submap-range":
            "a submap's entry covers the submap's range";
        SUBMAP_PARENT = "submap-parent":
            "a map has at most one entry, and is not inside itself; the boot's maps are inside \
             kernel_map";
    }
}

/// Checks all maps.
fn check(ctx: &Context<'_>) {
    for map in &ctx.maps.all {
        state(ctx, map);
    }
    registry(ctx);
    submaps(ctx);
    kernel_map(ctx);
}

fn state(ctx: &Context<'_>, map: &Map) {
    // 1. The fields that never change.
    if map.pmap != ctx.pml4() {
        ctx.finding(&MAP_PMAP, map.name, map.at, || {
            format!("its pmap is {}, but the kernel's is {}", map.pmap, ctx.pml4())
        });
    }
    if map.system_map > 1 {
        ctx.finding(&MAP_SYSTEM, map.name, map.at, || {
            format!("system_map is {}, expected 0 or 1", map.system_map)
        });
    }
    let is_system = match map.name {
        "kernel_map" | "kmem_map" | "buffer_map" | "pager_map" => Some(1),
        "clean_map" | "exec_map" | "pipe_map" => Some(0),
        _ => None,
    };
    if let Some(expected) =
        is_system.filter(|&expected| map.system_map != expected && map.system_map <= 1)
    {
        ctx.finding(&MAP_SYSTEM, map.name, map.at, || {
            format!("system_map is {}, but its kind of lock is that of {expected}", map.system_map)
        });
    }
    // 2. The wakeup that it owes.
    let channel = map_channel(map.at);
    // A thread may be about to sleep there, or may just have been woken for another reason.
    let is_settled = !map.is_updating() && ctx.rest.awake() == 0;
    if is_settled && map.needs_wakeup != 0 && !ctx.rest.has_sleeper(channel) {
        ctx.finding(&MAP_WAKEUP, map.name, map.at, || {
            format!("needs_wakeup is {}, but no thread sleeps on {channel}", map.needs_wakeup)
        });
    }
}

/// Checks that the list of maps has every map that a root or an entry names.
fn registry(ctx: &Context<'_>) {
    // An entry that is being created may name anything.
    let unlisted = if ctx.is_any_map_updating() { &[] } else { &ctx.maps.all[ctx.maps.listed..] };
    for map in unlisted {
        ctx.finding(
            &MAP_REGISTRY,
            map.name,
            map.at,
            || "a root or an entry names it, but it is not on the list of maps",
        );
    }
    let roots = &ctx.roots;
    let mut seen: HashMap<GuestVirt, &str> = HashMap::new();
    for (name, at) in roots.named_maps().map(|(name, _, slot)| (name, slot.get().addr())) {
        if at == GuestVirt::new(0) {
            ctx.finding(
                &MAP_REGISTRY,
                name,
                ctx.root(offset_of!(KernelRoots, maps)),
                || "the boot makes it, but its root is null",
            );
        } else if let Some(first) = seen.insert(at, name) {
            ctx.finding(&MAP_REGISTRY, name, at, || format!("it is also {first}"));
        }
    }
}

/// Checks that a submap has at most one entry, over exactly its range, and that no map lies inside
/// itself. The boot's submaps lie inside kernel_map. A submap made by `kmem_suballoc` may have been
/// freed through its parent, after which it has no entry.
fn submaps(ctx: &Context<'_>) {
    // 1. Each submap has one parent, whose entry covers exactly its range.
    let mut parents: HashMap<GuestVirt, &Map> = HashMap::new();
    for parent in ctx.maps.all.iter().filter(|map| !map.is_updating()) {
        for entry in parent.entries.iter().filter(|entry| entry.is_submap()) {
            let Some(map) = ctx.maps.at(entry.object) else {
                // The map could not be read, which is a finding already.
                continue;
            };
            if (map.min, map.max) != (entry.start, entry.end) {
                ctx.finding(&SUBMAP_RANGE, "vm_map_entry", entry.at, || {
                    format!(
                        "it stands for [{}, {}), but {} at {} covers [{}, {})",
                        entry.start, entry.end, map.name, map.at, map.min, map.max
                    )
                });
            }
            if let Some(first) = parents.insert(map.at, parent) {
                ctx.finding(&SUBMAP_PARENT, map.name, map.at, || {
                    format!(
                        "entries of {} at {} and of {} at {} name it",
                        first.name, first.at, parent.name, parent.at
                    )
                });
            }
        }
    }
    // 2. An entry of a map that is being changed may be missing at this moment.
    if ctx.is_any_map_updating() {
        return;
    }
    for map in &ctx.maps.all {
        // 3. Go up from each map, at most as many steps as there are maps, so a cycle ends, too.
        check_parents(ctx, map, &parents);
    }
}

/// Checks that the parents of `map` lead to kernel_map.
fn check_parents(ctx: &Context<'_>, map: &Map, parents: &HashMap<GuestVirt, &Map>) {
    let kernel_map = ctx.roots.maps[0].get().addr();
    let mut at = map;
    for _ in 0..ctx.maps.all.len() {
        match parents.get(&at.at) {
            Some(parent) => at = parent,
            None => break,
        }
    }
    let is_circle = parents.contains_key(&at.at) && at.at != kernel_map;
    if at.at != kernel_map && (is_circle || map.name != UNNAMED) {
        ctx.finding(&SUBMAP_PARENT, map.name, map.at, || {
            format!("its parents lead to {} at {}, not to kernel_map", at.name, at.at)
        });
    } else if map.at == kernel_map && parents.contains_key(&map.at) {
        ctx.finding(&SUBMAP_PARENT, map.name, map.at, || "an entry makes it a submap");
    }
}

/// Checks that kernel_map covers the kernel's address space, and that its page tables reach as far
/// as its entries.
fn kernel_map(ctx: &Context<'_>) {
    // 1. It covers the kernel's address space.
    let roots = &ctx.roots;
    let Some(map) = ctx.maps.at(roots.maps[0].get().addr()) else { return };
    if (map.min, map.max) != (VM_MIN_KERNEL_ADDRESS, VM_MAX_KERNEL_ADDRESS) {
        ctx.finding(&MAP_BOUNDS, map.name, map.at, || {
            let (min, max) = (VM_MIN_KERNEL_ADDRESS, VM_MAX_KERNEL_ADDRESS);
            format!(
                "it covers [{}, {}), but the kernel's address space is [{min}, {max})",
                map.min, map.max
            )
        });
    }
    // 2. kernel_vm_end is the end of a page table's range, and not below the end of any entry.
    let at = ctx.root(offset_of!(KernelRoots, kernel_vm_end));
    let (end, image_end) = (roots.kernel_vm_end.get(), roots.virtual_avail.get());
    let is_whole = end.get().is_multiple_of(NBPDR) || end == VM_MAX_KERNEL_ADDRESS;
    if end < VM_MIN_KERNEL_ADDRESS || end > VM_MAX_KERNEL_ADDRESS || !is_whole {
        ctx.finding(&KERNEL_VM_END, "kernel_vm_end", at, || {
            format!("{end} is not the end of a page table")
        });
    }
    // The image's own range uses the boot's tables.
    let grown = map.entries.iter().filter(|entry| entry.start != KERNBASE || entry.end > image_end);
    if let Some(entry) =
        grown.max_by_key(|entry| entry.end).filter(|entry| entry.end > end && !map.is_updating())
    {
        ctx.finding(&KERNEL_VM_END, "kernel_vm_end", at, || {
            format!("page tables end at {end}, but the entry at {} ends at {}", entry.at, entry.end)
        });
    }
    // 3. One entry holds the image.
    let image = map.entries.iter().find(|entry| entry.start <= KERNBASE && entry.end >= image_end);
    if image.is_none() && !map.is_updating() {
        ctx.finding(&MAP_IMAGE, map.name, map.at, || {
            format!("no entry holds the kernel's image, [{KERNBASE}, {image_end})")
        });
    }
}
