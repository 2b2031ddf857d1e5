//! Objects: counts, references, indexes, and the way back from each page.

use std::collections::HashMap;
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, PAGE_SHIFT};
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{KernelRoots, ObjectFlags, ObjectType, SlabZone};

use super::context::Context;
use super::objects::{Object, Resident};
use super::owners::Owner;
use super::page_array::Page;

/// Number of the zone of objects.
const OBJECT_ZONE: usize = 0;

/// Checks all objects, and claims their pages.
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
        last_search(ctx, object);
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
            entries.pages =
                entries.pages.max(entry.offset.saturating_add(entry.len()) >> PAGE_SHIFT);
        }
    }
    by_object
}

fn finding(
    ctx: &Context<'_>,
    rule: &'static str,
    object: &Object,
    detail: impl FnOnce() -> String,
) {
    ctx.finding(rule, object.name, object.at, detail);
}

fn claim(ctx: &Context<'_>, object: &Object) {
    for resident in &object.pages {
        let pfn = u64::from(resident.pfn);
        ctx.claim(pfn, Owner::Resident, object.at);
        let Some(page) = ctx.pages.get(pfn) else { continue };
        if (page.object.addr(), page.pindex) != (object.at, resident.pindex)
            && !object.is_updating()
        {
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
            format!(
                "its type is {} ({is:?}), but such an object has type {} ({kind:?})",
                object.kind, kind as u32
            )
        });
    }
    let known = if object.is_kernels() { ObjectFlags::empty() } else { ObjectFlags::ONEMAPPING };
    let unknown = object.flags.bits() & !known.bits();
    if unknown != 0 {
        finding(ctx, "object-flags", object, || {
            format!(
                "flags is {:#x}, but such an object never has {unknown:#x}",
                object.flags.bits()
            )
        });
    }
    let size = VM_MAX_KERNEL_ADDRESS.since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT;
    if object.size > size {
        finding(ctx, "object-size", object, || {
            format!(
                "size says {:#x} pages, more than the {size:#x} of the address space",
                object.size
            )
        });
    }
    if object.is_kernels() && object.size != size {
        finding(ctx, "object-size", object, || {
            format!(
                "size says {:#x} pages, but the kernel's address space has {size:#x}",
                object.size
            )
        });
    }
}

fn counts(ctx: &Context<'_>, object: &Object) {
    let pages = object.pages.len() as u64;
    if object.resident_page_count != pages {
        finding(ctx, "object-resident", object, || {
            format!(
                "resident_page_count says {}, but its index has {pages} pages",
                object.resident_page_count
            )
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
    // A page fault has a reference while it sleeps on a busy page, and for a moment before and
    // after.
    let most = ctx.rest.awake() + ctx.rest.faults();
    let is_known = ctx.roots.sched.lock.owner.get() == 0;
    let is_wrong = count < expected || (is_known && count > expected + most);
    if is_wrong {
        finding(ctx, "object-ref-count", object, || {
            let own = if object.is_kernels() { "1 of its own and " } else { "" };
            format!(
                "ref_count says {count}, but the references are {own}{} from entries",
                entries.count
            )
        });
    }
    if count == 1 && !object.is_kernels() && !object.flags.contains(ObjectFlags::ONEMAPPING) {
        finding(ctx, "object-flags", object, || {
            "it has one reference, but is not marked ONEMAPPING".to_owned()
        });
    }
    if entries.pages > object.size {
        finding(ctx, "object-size", object, || {
            format!(
                "size says {:#x} pages, but its entries end at page {:#x}",
                object.size, entries.pages
            )
        });
    }
}

/// The pages between which the last search ended are neighbours in the index.
fn last_search(ctx: &Context<'_>, object: &Object) {
    let (before, after) = (object.before, object.after);
    if before | after == 0 {
        return;
    }
    let place = |pfn: u32| {
        let pindex = ctx.pages.get(pfn.into())?.pindex;
        let place = object.pages.binary_search_by_key(&pindex, |resident| resident.pindex).ok()?;
        (object.pages[place].pfn == pfn).then_some(place)
    };
    let next = if before == 0 { Some(0) } else { place(before).map(|place| place + 1) };
    let next = next.map(|place| object.pages.get(place).map_or(0, |Resident { pfn, .. }| *pfn));
    if next != Some(after) {
        finding(ctx, "object-search", object, || {
            format!(
                "its last search ended between pages {before:#x} and {after:#x}, which are not neighbours"
            )
        });
    }
}

/// Objects are freed with their last reference: all that are handed out stand behind an entry.
fn unreachable(ctx: &Context<'_>) {
    let known = ctx.objects.all.values().filter(|object| !object.is_kernels()).count() as u64;
    let zone = &ctx.roots.zones[OBJECT_ZONE];
    if zone.lock.owner.get() == 0 && zone.used.get() != known && ctx.rest.is_quiet() {
        let at = offset_of!(KernelRoots, zones) + OBJECT_ZONE * size_of::<SlabZone>();
        ctx.finding("object-unreachable", "zone of objects", ctx.root(at), || {
            format!("used says {}, but {known} objects are behind entries", zone.used.get())
        });
    }
}

/// Pages that say that they belong to an object which does not know them. Of a subtree that was cut
/// off only the first is named: the others hang on it.
fn strangers(ctx: &Context<'_>) {
    for (pfn, page) in ctx.pages.used().filter(|(_, page)| !page.object.is_null()) {
        if ctx.owner(pfn) != Some(Owner::Resident) {
            let object = ctx.objects.all.get(&page.object.addr());
            // An object that is known is left out while somebody changes it; one that is not may be
            // on its way into a map.
            let is_updating = object.map_or_else(|| ctx.is_any_map_updating(), Object::is_updating);
            if is_updating || hangs_on_stranger(ctx, pfn, page) {
                continue;
            }
            ctx.finding("object-page", "vm_page", ctx.pages.address(pfn), || {
                let name = object.map_or("an unknown object", |object| object.name);
                let at = page.object.addr();
                format!(
                    "page {pfn:#x} says index {:#x} of {at} ({name}), which does not have it",
                    page.pindex
                )
            });
        }
    }
}

/// Whether the page above `page` is one of the same object that the object does not know either,
/// and has it below.
fn hangs_on_stranger(ctx: &Context<'_>, pfn: u64, page: &Page) -> bool {
    let parent = u64::from(page.parent);
    let upper =
        ctx.pages.get(parent).filter(|_| parent != 0 && ctx.owner(parent) != Some(Owner::Resident));
    upper.is_some_and(|upper| {
        upper.object == page.object
            && [upper.left, upper.right].into_iter().any(|below| u64::from(below) == pfn)
    })
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::KPtr;
    use vmkern_abi::layout::{VmObject, VmPage};

    use super::super::tests::lab::{Lab, expect_finding};
    use super::*;

    fn kmem_object(lab: &Lab) -> KPtr<VmObject> {
        KPtr::new(lab.roots().0.addr().add(offset_of!(KernelRoots, kmem_object) as u64))
    }

    /// The page at the root of kmem_object's index, with its number.
    fn root(lab: &Lab) -> (KPtr<VmPage>, u32) {
        let pfn = lab.get(kmem_object(lab)).root.get();
        (lab.vm_page(pfn.into()), pfn)
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
                ("object-size", |o| o.size.dec()),
                ("object-resident", |o| o.resident_page_count.inc()),
                ("object-ref-count", |o| o.ref_count.inc()),
                ("object-ref-count", |o| o.ref_count.dec()),
                ("object-resident", |o| o.root.set(0)),
                ("object-search", |o| o.before.set(o.after.get())),
                ("object-search", |o| o.after.set(77)),
                ("object-search", |o| o.before.inc()),
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
    fn pages_that_leave_an_index_or_enter_another_are_found() {
        let lab = Lab::new();
        let (root, _) = root(&lab);
        let below = lab.get(root).left.get();
        assert_ne!(below, 0, "kmem_object has pages before its root");
        let report = lab.damaged(root, |page| page.left.set(0));
        expect_finding(&report, "object-page", "vm_page", lab.vm_page(below.into()).addr());
        expect_finding(&report, "object-resident", "kmem_object", kmem_object(&lab).addr());
        let entry = lab.get(lab.entry(2, 0)).object.get();
        let theirs = lab.get(KPtr::<VmObject>::new(entry.addr())).root.get();
        let report = lab.damaged(root, |page| page.left.set(theirs));
        expect_finding(&report, "page-owner", "vm_page", lab.vm_page(theirs.into()).addr());
        expect_finding(&report, "object-page", "vm_page", lab.vm_page(theirs.into()).addr());
        lab.each(root, "vm_page", &[("object-page", |page| page.object.set(KPtr::NULL))]);
    }

    #[test]
    fn links_of_an_index_that_are_out_of_order_or_lead_nowhere_are_found() {
        let lab = Lab::new();
        let (root, pfn) = root(&lab);
        let pindex = lab.get(root).pindex.get();
        lab.each(
            root,
            "vm_page",
            &[
                ("object-index", |page| page.parent.set(3)),
                ("object-index", |page| page.left.set(0x7fff_ffff)),
            ],
        );
        let report = lab.damaged(root, |page| page.pindex.inc());
        assert!(report.findings.iter().any(|f| f.rule == "object-index"), "{report}");
        let report = lab.damaged(root, |page| {
            page.left.set(pfn);
            page.right.set(pfn);
        });
        expect_finding(&report, "object-index", "vm_page", root.addr());
        // Less its lowest bit it stands below others, and is in order as long as none of those is
        // before it.
        let report = lab.damaged(root, |page| page.pindex.set(pindex & (pindex - 1)));
        assert!(report.findings.iter().any(|f| f.rule == "object-index"), "{report}");
        assert!(lab.check().is_clean());
    }

    #[test]
    fn an_object_that_no_entry_names_is_found_by_the_count_of_its_zone() {
        let lab = Lab::new();
        let (roots_at, _) = lab.roots();
        let report = lab.damaged(roots_at, |roots| roots.zones[OBJECT_ZONE].used.inc());
        let at = roots_at.addr().add(offset_of!(KernelRoots, zones) as u64);
        expect_finding(&report, "object-unreachable", "zone of objects", at);
        let entry = lab.entry(2, 0);
        let report = lab.damaged(entry, |entry| entry.object.set(KPtr::NULL));
        expect_finding(&report, "object-unreachable", "zone of objects", at);
        let page = lab.vm_page(lab.pfn_at(lab.pageable));
        expect_finding(&report, "object-page", "vm_page", page.addr());
    }
}
