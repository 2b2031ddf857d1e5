//! Objects: counts, references, indexes, and the link from each page back to its object.

use std::collections::HashMap;
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, PAGE_SHIFT};
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{KernelRoots, ObjectFlags, ObjectType, SlabZone, Zone};

use super::context::Context;
use super::objects::{Object, Resident};
use super::owners::Owner;
use super::page_array::Page;
use super::rule::Rule;
use super::rule::rules;

rules! {
    Some(check);
    Objects {
        OBJECT_KIND = "object-kind":
            "kernel objects are OBJT_PHYS, all others OBJT_DEFAULT";
        OBJECT_FLAGS = "object-flags":
            "it has only flags of its kind; with one reference it has ONEMAPPING";
        OBJECT_SIZE = "object-size":
            "pages and entries end inside the object; the kernel's objects have the size of the \
             kernel's address space";
        OBJECT_RESIDENT = "object-resident":
            "`resident_page_count` is the number of pages in the index";
        OBJECT_SEARCH = "object-search":
            "the pages between which the last search ended are neighbours in the index";
        OBJECT_PAGE = "object-page":
            "a page of the object names the object and this index, and a page that names an \
             object is one of its pages";
        OBJECT_REF_COUNT = "object-ref-count":
            "`ref_count` is the number of entries, one more for a kernel object, and at most one \
             for each thread that may be in a page fault";
        OBJECT_UNREACHABLE = "object-unreachable":
            "an entry refers to every allocated object";
    }
}

/// Checks all objects, and claims their pages.
fn check(ctx: &Context<'_>) {
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

/// What the entries of all maps refer to of one object.
#[derive(Clone, Copy, Debug, Default)]
struct Entries {
    count: u64,
    /// Pages of the object up to the end of the last entry.
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
    rule: &'static Rule,
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
            ctx.finding(&OBJECT_PAGE, "vm_page", ctx.pages.address(pfn), || {
                format!(
                    "{} at {} has page {pfn:#x} at index {:#x}, but the page says index {:#x} of \
                     {}",
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

/// Checks the fields that do not change during an object's life.
fn constants(ctx: &Context<'_>, object: &Object) {
    // 1. The type and the flags, which differ for the kernel's own objects.
    let kind = if object.is_kernels() { ObjectType::Phys } else { ObjectType::Default };
    if object.kind != kind.code() {
        finding(ctx, &OBJECT_KIND, object, || {
            let is = ObjectType::from_code(object.kind);
            format!(
                "its type is {} ({is:?}), but such an object has type {} ({kind:?})",
                object.kind,
                kind.code()
            )
        });
    }
    let known = if object.is_kernels() { ObjectFlags::empty() } else { ObjectFlags::ONEMAPPING };
    let unknown = object.flags.bits() & !known.bits();
    if unknown != 0 {
        finding(ctx, &OBJECT_FLAGS, object, || {
            format!(
                "flags is {:#x}, but such an object never has {unknown:#x}",
                object.flags.bits()
            )
        });
    }
    // 2. The size: at most the address space; exactly the address space for the kernel's own
    //    objects.
    let size = VM_MAX_KERNEL_ADDRESS.since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT;
    if object.size > size {
        finding(ctx, &OBJECT_SIZE, object, || {
            format!(
                "size says {:#x} pages, more than the {size:#x} of the address space",
                object.size
            )
        });
    }
    if object.is_kernels() && object.size != size {
        finding(ctx, &OBJECT_SIZE, object, || {
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
        finding(ctx, &OBJECT_RESIDENT, object, || {
            format!(
                "resident_page_count says {}, but its index has {pages} pages",
                object.resident_page_count
            )
        });
    }
    if let Some(last) = object.pages.last().filter(|last| last.pindex >= object.size) {
        finding(ctx, &OBJECT_SIZE, object, || {
            format!("size says {:#x} pages, but a page is at index {:#x}", object.size, last.pindex)
        });
    }
}

fn references(ctx: &Context<'_>, object: &Object, entries: Entries) {
    // 1. One reference for each entry, and at most one more for each page fault in progress.
    let expected = entries.count + u64::from(object.is_kernels());
    let count = u64::from(object.ref_count);
    // A page fault holds a reference while it sleeps on a busy page, and for a moment before and
    // after.
    let most = ctx.rest.awake() + ctx.rest.faults();
    let is_known = ctx.roots.sched.lock.owner.get() == 0;
    let is_wrong = count < expected || (is_known && count > expected + most);
    if is_wrong {
        finding(ctx, &OBJECT_REF_COUNT, object, || {
            let own = if object.is_kernels() { "1 of its own and " } else { "" };
            format!(
                "ref_count says {count}, but the references are {own}{} from entries",
                entries.count
            )
        });
    }
    // 2. An anonymous object with one reference is marked so.
    if count == 1 && !object.is_kernels() && !object.flags.contains(ObjectFlags::ONEMAPPING) {
        finding(ctx, &OBJECT_FLAGS, object, || {
            "it has one reference, but is not marked ONEMAPPING".to_owned()
        });
    }
    // 3. No entry reaches past the object's end.
    if entries.pages > object.size {
        finding(ctx, &OBJECT_SIZE, object, || {
            format!(
                "size says {:#x} pages, but its entries end at page {:#x}",
                object.size, entries.pages
            )
        });
    }
}

/// Checks that the pages between which the last search ended are neighbours in the index.
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
        finding(ctx, &OBJECT_SEARCH, object, || {
            format!(
                "its last search ended between pages {before:#x} and {after:#x}, which are not \
                 neighbours"
            )
        });
    }
}

/// Checks that every allocated object is referenced by an entry: an object is freed with its last
/// reference.
fn unreachable(ctx: &Context<'_>) {
    let known = ctx.objects.all.values().filter(|object| !object.is_kernels()).count() as u64;
    let zone = &ctx.roots.zones[Zone::Object.index()];
    if zone.lock.owner.get() == 0 && zone.used.get() != known && ctx.rest.is_quiet() {
        let at = offset_of!(KernelRoots, zones) + Zone::Object.index() * size_of::<SlabZone>();
        ctx.finding(&OBJECT_UNREACHABLE, "zone of objects", ctx.root(at), || {
            format!("used says {}, but {known} objects are behind entries", zone.used.get())
        });
    }
}

/// Finds pages that name an object whose index does not contain them. Of a subtree that was cut
/// off, only the root is reported.
fn strangers(ctx: &Context<'_>) {
    for (pfn, page) in ctx.pages.used().filter(|(_, page)| !page.object.is_null()) {
        if ctx.owner(pfn) != Some(Owner::Resident) {
            let object = ctx.objects.all.get(&page.object.addr());
            // A known object is skipped while it is being changed; an unknown one may be about to
            // enter a map.
            let is_updating = object.map_or_else(|| ctx.is_any_map_updating(), Object::is_updating);
            if is_updating || hangs_on_stranger(ctx, pfn, page) {
                continue;
            }
            ctx.finding(&OBJECT_PAGE, "vm_page", ctx.pages.address(pfn), || {
                let name = object.map_or("an unknown object", |object| object.name);
                let at = page.object.addr();
                format!(
                    "page {pfn:#x} names index {:#x} of {at} ({name}), which does not contain it",
                    page.pindex
                )
            });
        }
    }
}

/// Whether the parent of `page` is a page of the same object, is also missing from its index, and
/// links to `page`.
fn hangs_on_stranger(ctx: &Context<'_>, pfn: u64, page: &Page) -> bool {
    let parent = u64::from(page.parent);
    let upper =
        ctx.pages.get(parent).filter(|_| parent != 0 && ctx.owner(parent) != Some(Owner::Resident));
    upper.is_some_and(|upper| {
        upper.object == page.object
            && [upper.left, upper.right].into_iter().any(|below| u64::from(below) == pfn)
    })
}
