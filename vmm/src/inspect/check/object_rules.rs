//! Objects: counts, references, indexes, and the way back from each page.

use std::collections::HashMap;
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, PAGE_SHIFT};
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{INDEX_LEVELS, INDEX_SHIFT, KernelRoots, ObjectFlags, ObjectType, SlabZone};

use super::context::Context;
use super::objects::{Node, Object};
use super::owners::Owner;

/// Number of the zone of objects.
const OBJECT_ZONE: usize = 0;

/// Checks all objects, and claims their pages and nodes.
pub(super) fn check(ctx: &Context<'_>) {
    let entries = entries(ctx);
    let maps_are_still = ctx.maps.all.iter().all(|map| !map.is_updating());
    for object in ctx.objects.all.values() {
        claim(ctx, object);
        if object.is_updating() {
            continue;
        }
        constants(ctx, object);
        counts(ctx, object);
        index(ctx, object);
        if maps_are_still {
            references(ctx, object, entries.get(&object.at).copied().unwrap_or_default());
        }
    }
    if maps_are_still {
        unreachable(ctx);
    }
    strangers(ctx);
}

/// What the entries of all maps say of an object.
#[derive(Clone, Copy, Debug, Default)]
struct Entries {
    count: u64,
    /// Pages up to the end of the last one.
    pages: u64,
}

fn entries(ctx: &Context<'_>) -> HashMap<GuestVirt, Entries> {
    let mut by_object: HashMap<GuestVirt, Entries> = HashMap::new();
    for entry in ctx.maps.all.iter().flat_map(|map| &map.entries) {
        if let Some(object) = entry.object() {
            let entries = by_object.entry(object).or_default();
            entries.count += 1;
            entries.pages = entries.pages.max(entry.offset.saturating_add(entry.len()) >> PAGE_SHIFT);
        }
    }
    by_object
}

fn finding(ctx: &Context<'_>, rule: &'static str, object: &Object, detail: impl FnOnce() -> String) {
    ctx.finding(rule, object.name, object.at, detail);
}

fn claim(ctx: &Context<'_>, object: &Object) {
    for node in &object.nodes {
        ctx.claim(node.pfn.into(), Owner::IndexNode, object.at);
    }
    for resident in &object.pages {
        let pfn = u64::from(resident.pfn);
        ctx.claim(pfn, Owner::Resident, object.at);
        let Some(page) = ctx.pages.get(pfn) else { continue };
        if (page.object.addr(), page.pindex) != (object.at, resident.pindex) && !object.is_updating() {
            ctx.finding("object-page", "vm_page", ctx.pages.address(pfn), || {
                format!(
                    "{} at {} has page {pfn:#x} at index {:#x}, but the page says index {:#x} of {}",
                    object.name,
                    object.at,
                    resident.pindex,
                    page.pindex,
                    page.object.addr()
                )
            });
        }
    }
}

/// What does not change in an object's life.
fn constants(ctx: &Context<'_>, object: &Object) {
    let kind = if object.is_kernels() { ObjectType::Phys } else { ObjectType::Default };
    if object.kind != kind as u32 {
        finding(ctx, "object-kind", object, || {
            let is = ObjectType::from_code(object.kind);
            format!("its type is {} ({is:?}), that of such an object {} ({kind:?})", object.kind, kind as u32)
        });
    }
    let known = if object.is_kernels() { ObjectFlags::empty() } else { ObjectFlags::ONEMAPPING };
    let unknown = object.flags.bits() & !known.bits();
    if unknown != 0 {
        finding(ctx, "object-flags", object, || {
            format!("flags is {:#x}, of which such an object has none of {unknown:#x}", object.flags.bits())
        });
    }
    let size = VM_MAX_KERNEL_ADDRESS.since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT;
    if object.size > size {
        finding(ctx, "object-size", object, || {
            format!("size says {:#x} pages, more than the {size:#x} of the address space", object.size)
        });
    }
    if object.is_kernels() {
        if object.size != size {
            finding(ctx, "object-size", object, || {
                format!("size says {:#x} pages, the kernel's address space has {size:#x}", object.size)
            });
        }
        if object.index_levels != INDEX_LEVELS {
            finding(ctx, "object-levels", object, || {
                format!("its index has {} levels, not {INDEX_LEVELS}", object.index_levels)
            });
        }
    }
}

fn counts(ctx: &Context<'_>, object: &Object) {
    let (pages, nodes) = (object.pages.len() as u64, object.nodes.len() as u64);
    if object.resident_page_count != pages {
        finding(ctx, "object-resident", object, || {
            format!("resident_page_count says {}, its index has {pages} pages", object.resident_page_count)
        });
    }
    if u64::from(object.index_pages) != nodes {
        finding(ctx, "object-index-pages", object, || {
            format!("index_pages says {}, its index has {nodes} nodes", object.index_pages)
        });
    }
    if let Some(last) = object.pages.last().filter(|last| last.pindex >= object.size) {
        finding(ctx, "object-size", object, || {
            format!("size says {:#x} pages, but a page is at index {:#x}", object.size, last.pindex)
        });
    }
}

fn references(ctx: &Context<'_>, object: &Object, entries: Entries) {
    let expected = entries.count + u64::from(object.is_kernels());
    let count = u64::from(object.ref_count);
    // Who sleeps on a page has a reference for that time, one for each thread.
    let most = if ctx.rest.is_quiet() { 0 } else { ctx.sched.threads.len() as u64 };
    let is_known = ctx.roots.sched.lock.owner.get() == 0;
    let is_wrong = count < expected || (is_known && count > expected + most);
    if is_wrong {
        finding(ctx, "object-ref-count", object, || {
            let own = if object.is_kernels() { "1 of its own and " } else { "" };
            format!("ref_count says {count}, there are {own}{} of entries", entries.count)
        });
    }
    if count == 1 && !object.is_kernels() && !object.flags.contains(ObjectFlags::ONEMAPPING) {
        finding(ctx, "object-flags", object, || "it has one reference, but is not marked ONEMAPPING".to_owned());
    }
    if entries.pages > object.size {
        finding(ctx, "object-size", object, || {
            format!("size says {:#x} pages, but its entries end at page {:#x}", object.size, entries.pages)
        });
    }
}

/// Nodes count their slots in use, leaves their pins as well, and kmem_map's leaves are pinned for ever.
fn index(ctx: &Context<'_>, object: &Object) {
    let kept = kept_leaves(ctx, object);
    for node in &object.nodes {
        let Some(page) = ctx.pages.get(node.pfn.into()) else { continue };
        let pins = u32::from(kept.as_ref().is_some_and(|kept| node.level == 0 && kept.contains(&node.base)));
        let counted = page.private;
        let most = if node.level == 0 && !ctx.rest.is_quiet() { u32::MAX } else { node.used + pins };
        if counted < node.used + pins || counted > most {
            node_finding(ctx, object, node, || {
                format!("private says {counted}, it has {} slots in use and {pins} pins", node.used)
            });
        } else if counted == 0 {
            node_finding(ctx, object, node, || "nothing is in it, and nobody pins it".to_owned());
        }
    }
    if let Some(kept) = kept {
        let span = 1 << INDEX_SHIFT;
        let leaves = object.nodes.iter().filter(|node| node.level == 0 && kept.contains(&node.base)).count() as u64;
        let expected = (kept.end - kept.start).div_ceil(span);
        if leaves != expected {
            finding(ctx, "object-index", object, || {
                format!("kmem_map's pages are below {expected} leaves, of which {leaves} are there")
            });
        }
    }
}

fn node_finding(ctx: &Context<'_>, object: &Object, node: &Node, detail: impl FnOnce() -> String) {
    ctx.finding("object-node", "vm_page", ctx.pages.address(node.pfn.into()), || {
        let Node { pfn, level, base, .. } = node;
        let whose = format!("of {} at {}, level {level}, from page index {base:#x}", object.name, object.at);
        format!("page {pfn:#x} is an index node {whose}: {}", detail())
    });
}

/// First indices of the leaves of kmem_object that kmem_map has pinned.
fn kept_leaves(ctx: &Context<'_>, object: &Object) -> Option<std::ops::Range<u64>> {
    let map = ctx.maps.at(ctx.roots.maps[1].get().addr()).filter(|_| object.name == "kmem_object")?;
    let index = |at: GuestVirt| at.get().checked_sub(VM_MIN_KERNEL_ADDRESS.get()).map(|bytes| bytes >> PAGE_SHIFT);
    let (first, end) = (index(map.min)?, index(map.max)?);
    Some(first >> INDEX_SHIFT << INDEX_SHIFT..end.max(first))
}

/// Objects are freed with their last reference: all that are handed out stand behind an entry.
fn unreachable(ctx: &Context<'_>) {
    let known = ctx.objects.all.values().filter(|object| !object.is_kernels()).count() as u64;
    let zone = &ctx.roots.zones[OBJECT_ZONE];
    if zone.lock.owner.get() == 0 && zone.used.get() != known && ctx.rest.is_quiet() {
        let at = offset_of!(KernelRoots, zones) + OBJECT_ZONE * size_of::<SlabZone>();
        ctx.finding("object-unreachable", "zone of objects", ctx.root(at), || {
            format!("{} objects are handed out, {known} stand behind entries", zone.used.get())
        });
    }
}

/// Pages that say that they belong to an object which does not know them.
fn strangers(ctx: &Context<'_>) {
    for (pfn, page) in ctx.pages.used().filter(|(_, page)| !page.object.is_null()) {
        if ctx.owner(pfn) != Some(Owner::Resident) {
            let object = ctx.objects.all.get(&page.object.addr());
            // An object that is known is left out while somebody changes it; one that is not may be on its way into a map.
            if object.map_or_else(|| ctx.is_any_map_updating(), Object::is_updating) {
                continue;
            }
            ctx.finding("object-page", "vm_page", ctx.pages.address(pfn), || {
                let name = object.map_or("no known object", |object| object.name);
                let at = page.object.addr();
                format!("page {pfn:#x} says index {:#x} of {at} ({name}), which does not have it", page.pindex)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::{GuestPhys, KPtr};
    use vmkern_abi::layout::{IndexNode, VmObject};

    use super::super::tests::lab::{Lab, expect_finding};
    use super::*;

    fn kmem_object(lab: &Lab) -> KPtr<VmObject> {
        KPtr::new(lab.roots().0.addr().add(offset_of!(KernelRoots, kmem_object) as u64))
    }

    /// The leaf above the first page of kmem_map, and that page's slot in it.
    fn leaf(lab: &Lab) -> (GuestPhys, usize) {
        let object = lab.get(kmem_object(lab));
        let pindex = lab.get(lab.map(1)).min_offset().since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT;
        let slot = |level: u32| usize::try_from(pindex >> (INDEX_SHIFT * level)).expect("it is small") % 1024;
        let node = |pfn: u32| GuestPhys::from_pfn(pfn.into());
        let below = |at: GuestPhys, level| {
            lab.get::<IndexNode>(KPtr::new(vmkern_abi::kva::phys_to_dmap(at))).slots[slot(level)].get()
        };
        let middle = node(below(node(object.root.get()), 2));
        (node(below(middle, 1)), slot(0))
    }

    #[test]
    fn wrong_fields_of_objects_are_found() {
        let lab = Lab::new();
        lab.each(
            kmem_object(&lab),
            "kmem_object",
            &[
                ("object-kind", |o| o.kind.set(0)),
                ("object-kind", |o| o.kind.set(77)),
                ("object-flags", |o| o.flags.set(ObjectFlags::DEAD)),
                ("object-size", |o| o.size.update(|size| size - 1)),
                ("object-levels", |o| o.index_levels.set(2)),
                ("object-levels", |o| o.index_levels.set(9)),
                ("object-resident", |o| o.resident_page_count.update(|n| n + 1)),
                ("object-index-pages", |o| o.index_pages.update(|n| n - 1)),
                ("object-ref-count", |o| o.ref_count.update(|n| n + 1)),
                ("object-ref-count", |o| o.ref_count.update(|n| n - 1)),
                ("object-resident", |o| o.root.set(0)),
                ("object-index", |o| o.root.set(0)),
            ],
        );
        let anonymous = KPtr::<VmObject>::new(lab.get(lab.entry(2, 0)).object.get().addr());
        lab.each(
            anonymous,
            "vm_object",
            &[
                ("object-flags", |o| o.flags.set(ObjectFlags::empty())),
                ("object-kind", |o| o.kind.set(ObjectType::Dead as u32)),
                ("object-size", |o| o.size.set(0)),
                ("object-ref-count", |o| o.ref_count.set(0)),
            ],
        );
        assert!(lab.check().is_clean());
    }

    #[test]
    fn an_object_that_is_being_changed_is_left_out() {
        let lab = Lab::new();
        let report = lab.damaged(kmem_object(&lab), |o| {
            o.lock.owner.set(8);
            o.ref_count.set(0);
        });
        assert!(report.findings.iter().all(|finding| finding.rule == "mutex-owner"), "{report}");
        assert_eq!((&*report.updating[0].what, report.updating[0].owner), ("kmem_object", 7));
    }

    #[test]
    fn slots_of_an_index_and_pages_lead_to_each_other() {
        let lab = Lab::new();
        let (leaf, slot) = leaf(&lab);
        let first = lab.guest.map_entries(crate::MapId::KMEM).expect("the map is good")[0].start;
        let slot = slot + usize::try_from(first.since(lab.get(lab.map(1)).min_offset()) / 4096).expect("it is small");
        let page = lab.vm_page(lab.pfn_at(first));
        let report = lab.damaged_phys::<IndexNode>(leaf, |node| node.slots[slot].set(0));
        expect_finding(&report, "object-page", "vm_page", page.addr());
        expect_finding(&report, "object-resident", "kmem_object", kmem_object(&lab).addr());
        expect_finding(&report, "entry-resident", "vm_map_entry", lab.entry(1, 0).addr());
        expect_finding(&report, "object-node", "vm_page", lab.vm_page(leaf.pfn()).addr());
        let report = lab.damaged_phys::<IndexNode>(leaf, |node| node.slots[slot].set(node.slots[slot + 1].get()));
        let next = lab.vm_page(lab.pfn_at(first.add(4096)));
        expect_finding(&report, "page-owner", "vm_page", next.addr());
        expect_finding(&report, "object-page", "vm_page", next.addr());
        let report = lab.damaged_phys::<IndexNode>(leaf, |node| node.slots[slot].set(0xfff_fff0));
        assert!(report.findings.iter().any(|f| f.rule == "page-unmanaged"), "{report}");
        lab.each(
            page,
            "vm_page",
            &[
                ("object-page", |page| page.pindex.update(|n| n + 1)),
                ("object-page", |page| page.object.set(KPtr::NULL)),
            ],
        );
        lab.each(lab.vm_page(leaf.pfn()), "vm_page", &[("object-node", |page| page.private.update(|n| n + 1))]);
    }

    #[test]
    fn an_object_that_no_entry_names_is_found_by_the_count_of_its_zone() {
        let lab = Lab::new();
        let (roots_at, _) = lab.roots();
        let report = lab.damaged(roots_at, |roots| roots.zones[OBJECT_ZONE].used.update(|n| n + 1));
        let at = roots_at.addr().add(offset_of!(KernelRoots, zones) as u64);
        expect_finding(&report, "object-unreachable", "zone of objects", at);
        let entry = lab.entry(2, 0);
        let report = lab.damaged(entry, |entry| entry.object.set(KPtr::NULL));
        expect_finding(&report, "object-unreachable", "zone of objects", at);
        let page = lab.vm_page(lab.pfn_at(lab.pageable));
        expect_finding(&report, "object-page", "vm_page", page.addr());
    }

    #[test]
    fn nodes_that_are_entered_twice_or_lie_nowhere_are_found() {
        let lab = Lab::new();
        let (leaf, _) = leaf(&lab);
        let object = lab.get(kmem_object(&lab));
        let root = GuestPhys::from_pfn(object.root.get().into());
        let leaf_pfn = u32::try_from(leaf.pfn()).expect("it is small");
        let report = lab.damaged_phys::<IndexNode>(root, |node| node.slots[1023].set(object.root.get()));
        expect_finding(&report, "object-index", "kmem_object", kmem_object(&lab).addr());
        let report = lab.damaged_phys::<IndexNode>(root, |node| node.slots[7].set(0x7fff_ffff));
        assert!(report.findings.iter().any(|f| f.rule == "unreadable" && f.what == "object index node"), "{report}");
        let report = lab.damaged(kmem_object(&lab), |o| o.root.set(leaf_pfn));
        assert!(!report.is_clean());
    }
}
