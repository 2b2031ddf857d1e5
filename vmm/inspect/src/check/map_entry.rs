//! Map entries one by one: flags, protections, wiring, and objects.

use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, PAGE_MASK};
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::{EntryFlags, KernelRoots, Protection, VmMap, VmMapEntry};

use super::context::Context;
use super::maps::{Entry, Map};
use super::rule::Rule;
use super::rule::rules;

rules! {
    Some(check);
    Entries {
        ENTRY_FLAGS = "entry-flags":
            "it has no flag that the kernel never sets, such as copy on write";
        ENTRY_NOFAULT = "entry-nofault":
            "a range in which a fault is a panic has no object or, if it was cut in a pageable \
             map, an object without pages";
        ENTRY_TRANSITION = "entry-transition":
            "it is in transition only while a thread is in an operation, and whenever it is being \
             deleted";
        ENTRY_WAKEUP = "entry-wakeup":
            "if the entry says that a thread sleeps on the map, one does, and the entry is in \
             transition";
        ENTRY_PROTECTION = "entry-protection":
            "it may allow everything, and does unless `vm_map_protect` has made it allow reads and \
             writes, reads, or nothing";
        ENTRY_INHERITANCE = "entry-inheritance":
            "it is the default";
        ENTRY_WIRED = "entry-wired":
            "a range of a kernel object is wired once, any other not at all";
        ENTRY_OFFSET = "entry-offset":
            "the offset is of whole pages; in a kernel object it follows from the address; a \
             submap has none";
    }
}

/// Flags that an entry can have in this kernel. None is copy on write.
const KNOWN: EntryFlags =
    EntryFlags::IS_SUB_MAP.union(EntryFlags::NOFAULT).union(EntryFlags::PASSING);

/// What an entry can allow: everything, until it is protected.
const PROTECTIONS: [Protection; 4] = [
    Protection::ALL,
    Protection::READ.union(Protection::WRITE),
    Protection::READ,
    Protection::empty(),
];

/// Checks the entries of all maps.
fn check(ctx: &Context<'_>) {
    for map in ctx.maps.all.iter().filter(|map| !map.is_updating()) {
        for entry in &map.entries {
            flags(ctx, map, entry);
            protection(ctx, entry);
            wiring(ctx, entry);
            offset(ctx, entry);
        }
    }
}

fn finding(ctx: &Context<'_>, rule: &'static Rule, entry: &Entry, detail: impl FnOnce() -> String) {
    ctx.finding(rule, "vm_map_entry", entry.at, || {
        format!("[{}, {}): {}", entry.start, entry.end, detail())
    });
}

fn flags(ctx: &Context<'_>, map: &Map, entry: &Entry) {
    // 1. Only flags that exist, and the entry of a nofault range.
    let eflags = entry.eflags;
    let unknown = eflags.bits() & !KNOWN.bits();
    if unknown != 0 {
        finding(ctx, &ENTRY_FLAGS, entry, || {
            format!("eflags is {:#x}, but nothing sets {unknown:#x}", eflags.bits())
        });
    }
    if eflags.contains(EntryFlags::NOFAULT) {
        nofault(ctx, map, entry);
    }
    // 2. Only a thread in the middle of an operation leaves an entry in transition, or deletes it.
    if eflags.contains(EntryFlags::IN_TRANSITION) && ctx.rest.is_quiet() {
        finding(ctx, &ENTRY_TRANSITION, entry, || {
            "it is in transition, but no thread is in an operation".to_owned()
        });
    }
    if eflags.contains(EntryFlags::DELETING) && !eflags.contains(EntryFlags::IN_TRANSITION) {
        finding(ctx, &ENTRY_TRANSITION, entry, || {
            "it is being deleted, but not in transition".to_owned()
        });
    }
    if eflags.contains(EntryFlags::DELETING) != (entry.deleter != 0) {
        finding(ctx, &ENTRY_TRANSITION, entry, || {
            let is = if entry.deleter == 0 { "is" } else { "is not" };
            format!(
                "its deleter is {}, but its flags say that it {is} being deleted",
                entry.deleter
            )
        });
    }
    // 3. A wakeup is owed only during a transition, to a sleeping thread.
    if eflags.contains(EntryFlags::NEEDS_WAKEUP) {
        let channel = map_channel(map.at);
        if !eflags.contains(EntryFlags::IN_TRANSITION) {
            finding(ctx, &ENTRY_WAKEUP, entry, || {
                "a thread waits for it, but it is not in transition".to_owned()
            });
        } else if ctx.rest.is_quiet() && !ctx.rest.has_sleeper(channel) {
            finding(ctx, &ENTRY_WAKEUP, entry, || {
                format!("a thread waits for it, but no thread sleeps on {channel}")
            });
        }
    }
}

/// Checks that a range in which a fault is a panic has no object. If it was clipped in a map other
/// than a system map, it has got one, but an empty one: only a fault adds pages.
fn nofault(ctx: &Context<'_>, map: &Map, entry: &Entry) {
    let Some(at) = entry.object() else { return };
    let may_be_cut = map.system_map == 0 && kernel_object(ctx, at).is_none();
    let pages = ctx.objects.all.get(&at).map_or(0, |object| object.pages.len());
    if !may_be_cut || pages > 0 {
        finding(ctx, &ENTRY_NOFAULT, entry, || {
            format!(
                "a fault in it is a panic, but it has the object at {at} (resident pages: {pages})"
            )
        });
    }
}

/// The wait channel of the map at `map`.
pub(super) fn map_channel(map: GuestVirt) -> GuestVirt {
    map.checked_add(offset_of!(VmMap, index) as u64).unwrap_or(map)
}

fn protection(ctx: &Context<'_>, entry: &Entry) {
    if !PROTECTIONS.contains(&entry.protection) {
        finding(ctx, &ENTRY_PROTECTION, entry, || {
            format!("protection is {}, which nothing sets", entry.protection)
        });
    }
    if entry.max_protection != Protection::ALL {
        finding(ctx, &ENTRY_PROTECTION, entry, || {
            format!(
                "max_protection is {}, but every entry of the kernel has {}",
                entry.max_protection,
                Protection::ALL
            )
        });
    }
    if entry.inheritance != VmMapEntry::INHERIT_DEFAULT {
        finding(ctx, &ENTRY_INHERITANCE, entry, || {
            format!(
                "inheritance is {}, but every entry has {}",
                entry.inheritance,
                VmMapEntry::INHERIT_DEFAULT
            )
        });
    }
}

/// Checks the wiring: ranges of kernel objects are wired once from the start; others are never
/// wired, except in transition.
fn wiring(ctx: &Context<'_>, entry: &Entry) {
    if entry.eflags.contains(EntryFlags::IN_TRANSITION) {
        return;
    }
    let is_kernels = entry.object().is_some_and(|object| kernel_object(ctx, object).is_some());
    let expected = u32::from(is_kernels);
    let is_being_made = is_kernels && entry.wired_count == 0 && !ctx.rest.is_quiet();
    if entry.wired_count != expected && !is_being_made {
        finding(ctx, &ENTRY_WIRED, entry, || {
            let with = if is_kernels { "with" } else { "without" };
            format!(
                "wired_count is {}, but is {expected} in a range {with} a kernel object",
                entry.wired_count
            )
        });
    }
}

/// The name of the kernel object at `at`, if there is one.
pub(super) fn kernel_object(ctx: &Context<'_>, at: GuestVirt) -> Option<&'static str> {
    [
        ("kernel_object", offset_of!(KernelRoots, kernel_object)),
        ("kmem_object", offset_of!(KernelRoots, kmem_object)),
    ]
    .into_iter()
    .find_map(|(name, offset)| (ctx.root(offset) == at).then_some(name))
}

fn offset(ctx: &Context<'_>, entry: &Entry) {
    if entry.is_submap() {
        if entry.offset != 0 {
            finding(ctx, &ENTRY_OFFSET, entry, || {
                format!("offset is {:#x}, but a submap has none", entry.offset)
            });
        }
        return;
    }
    if entry.offset & PAGE_MASK != 0 {
        finding(ctx, &ENTRY_OFFSET, entry, || {
            format!("offset {:#x} is not of whole pages", entry.offset)
        });
    }
    let Some(name) = entry.object().and_then(|object| kernel_object(ctx, object)) else { return };
    let expected = entry.start.get().wrapping_sub(VM_MIN_KERNEL_ADDRESS.get());
    if entry.offset != expected {
        finding(ctx, &ENTRY_OFFSET, entry, || {
            format!("offset is {:#x}, but its place in {name} is {expected:#x}", entry.offset)
        });
    }
}
