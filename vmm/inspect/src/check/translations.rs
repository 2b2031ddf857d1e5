//! Every translation of kernel_map belongs to exactly one entry and one page, and everything that
//! should be mapped is mapped.

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_MASK, PAGE_SHIFT};
use vmkern_abi::layout::{EntryFlags, PageFlags, PageOflags, Protection, VM_PAGE_BITS_ALL};
use vmkern_abi::pte::{PG_FRAME, Pte, PteFlags};

use super::context::Context;
use super::maps::{Entry, Map};
use super::objects::{Object, Resident};
use super::owners::Owner;
use super::page_array::Page;
use super::rule::rules;
use super::table_rules::user;
use super::tables::Translation;

rules! {
    Some(check);
    Entries {
        ENTRY_RESIDENT = "entry-resident":
            "every page of a range of a kernel object is resident";
    }
    Objects {
        OBJECT_LEAK = "object-leak":
            "every page of an object is in the range of an entry";
        PAGE_RESIDENT = "page-resident":
            "a page in an entry's range is wired as the entry is, valid, not busy, and unmanaged \
             in a kernel object";
    }
    Translations {
        PTE_HOLE = "pte-hole":
            "only allocated addresses are mapped";
        PTE_UNEXPLAINED = "pte-unexplained":
            "there is a page behind each translation, and `pmap_enter` has mapped nothing in a \
             range without an object";
        PTE_MISSING = "pte-missing":
            "every page of a kernel object is mapped, unless its range has been protected";
        PTE_PROTECTION = "pte-protection":
            "a translation allows no more than its entry, except one of `pmap_kenter`, and no less \
             if that was never protected";
        PTE_FRAME = "pte-frame":
            "a translation leads to the page of the entry's object at that place";
        PTE_KENTER = "pte-kenter":
            "`pmap_qenter` has mapped nothing over the pages of an object";
        PTE_WX = "pte-wx":
            "no page is writable and executable";
        PTE_USER = "pte-user":
            "CPL3 may use the mappings if and only if the kernel runs there";
        PTE_WIRED = "pte-wired":
            "a translation is marked as wired if and only if its page is wired";
        PTE_FLAGS = "pte-flags":
            "a translation is global and accessed; kernel memory that can be written is modified";
        PTE_RESERVED = "pte-reserved":
            "no bit is set that the kernel never sets";
    }
}

/// Flags that a translation can have in addition to those that it must have.
const OPTIONAL: PteFlags = PteFlags::RW.union(PteFlags::A).union(PteFlags::M);
/// Flags of every translation of kernel_map.
const ALWAYS: PteFlags = PteFlags::V.union(PteFlags::G).union(PteFlags::NX);

/// Checks all translations and all entries.
fn check(ctx: &Context<'_>) {
    let user = user(ctx);
    let mut entries: Vec<(&Map, &Entry)> =
        ctx.maps.all.iter().flat_map(|map| map.entries.iter().map(move |e| (map, e))).collect();
    entries.retain(|(_, entry)| !entry.is_submap() && entry.end > entry.start);
    entries.sort_unstable_by_key(|(_, entry)| entry.start);
    let mut done = GuestVirt::new(0);
    for &(map, entry) in &entries {
        holes(ctx, done, entry.start);
        done = done.max(entry.end);
        for translation in ctx.tables.kernel_in(entry.start, entry.end) {
            flags(ctx, translation, user);
        }
        if map.is_updating() {
            continue;
        }
        allows(ctx, entry);
        let Some(at) = entry.object() else {
            windows(ctx, entry);
            continue;
        };
        if let Some(object) = ctx.objects.all.get(&at).filter(|object| !object.is_updating()) {
            behind_entry(ctx, entry, object);
        }
    }
    holes(ctx, done, GuestVirt::new(u64::MAX));
    leaks(ctx, &entries);
}

/// Checks that nothing is mapped outside entries.
fn holes(ctx: &Context<'_>, start: GuestVirt, end: GuestVirt) {
    // Entries of a map that is being changed may be missing.
    let is_updating =
        |va| ctx.maps.all.iter().any(|map| map.is_updating() && map.min <= va && va < map.max);
    if end <= start {
        return;
    }
    for &Translation { va, pte } in ctx.tables.kernel_in(start, end) {
        if !is_updating(va) {
            ctx.finding(&PTE_HOLE, "PTE", va, || {
                format!("the entry is {:#x}, but nothing is allocated there", pte.bits())
            });
        }
    }
}

/// Checks the flags that do not depend on the entry or the page.
fn flags(ctx: &Context<'_>, &Translation { va, pte }: &Translation, user: PteFlags) {
    // 1. Never writable and executable; U if and only if the kernel's main part runs at CPL3.
    let bits = pte.bits() & !PG_FRAME;
    let flags = PteFlags::from_bits_retain(bits);
    let told = |rule, why: &str| {
        ctx.finding(rule, "PTE", va, || format!("the entry is {:#x}: {why}", pte.bits()));
    };
    if flags.contains(PteFlags::RW) && !flags.contains(PteFlags::NX) {
        told(&PTE_WX, "it is writable and executable");
    }
    if flags & PteFlags::U != user {
        told(
            &PTE_USER,
            if user.is_empty() {
                "CPL3 may use it, but the kernel runs at CPL0"
            } else {
                "CPL3 may not use it, but the kernel runs there"
            },
        );
    }
    // 2. Flags that the kernel never sets, and those that every entry has.
    let known = ALWAYS | OPTIONAL | PteFlags::W | PteFlags::KENTER | PteFlags::U;
    let unknown = bits & !known.bits();
    if unknown != 0 {
        ctx.finding(&PTE_RESERVED, "PTE", va, || {
            format!("the entry is {:#x}, but nothing sets {unknown:#x}", pte.bits())
        });
    }
    let missing = (ALWAYS - PteFlags::NX) - flags;
    if !missing.is_empty() {
        ctx.finding(&PTE_FLAGS, "PTE", va, || {
            format!("the entry is {:#x}, without {missing:?}", pte.bits())
        });
    }
    // 3. The flags that each of the two ways of mapping guarantees.
    if flags.contains(PteFlags::KENTER | PteFlags::W) {
        told(&PTE_WIRED, "a mapping of pmap_qenter is not counted as wired");
    }
    if !flags.contains(PteFlags::KENTER) && !flags.contains(PteFlags::A) {
        told(&PTE_FLAGS, "pmap_enter sets A, and nothing clears it");
    }
}

/// Checks the translations of an entry against what it allows. `vm_map_protect` takes permissions
/// away at once, and leaves it to a fault to give them.
fn allows(ctx: &Context<'_>, entry: &Entry) {
    let allowed = entry.protection;
    for &Translation { va, pte } in ctx.tables.kernel_in(entry.start, entry.end) {
        // `pmap_kenter` asks no entry.
        let describes = !pte.flags().contains(PteFlags::KENTER);
        let is_writable = pte.flags().contains(PteFlags::RW);
        let why = match () {
            () if describes && !allowed.contains(Protection::READ) => "is there",
            () if describes && is_writable && !allowed.contains(Protection::WRITE) => "is writable",
            () if !is_writable && allowed == Protection::ALL => "is read-only",
            () => continue,
        };
        ctx.finding(&PTE_PROTECTION, "PTE", va, || {
            let (bits, start, end) = (pte.bits(), entry.start, entry.end);
            format!("the entry is {bits:#x}: it {why}, but [{start}, {end}) allows {allowed}")
        });
    }
}

/// Checks a range without an object: it has only mappings of `pmap_kenter` and `pmap_qenter`, each
/// to a different page.
fn windows(ctx: &Context<'_>, entry: &Entry) {
    for &Translation { va, pte } in ctx.tables.kernel_in(entry.start, entry.end) {
        if !pte.flags().contains(PteFlags::KENTER) {
            ctx.finding(&PTE_UNEXPLAINED, "PTE", va, || {
                format!(
                    "pmap_enter has mapped {}, but the entry at {} has no object",
                    pte.frame(),
                    entry.at
                )
            });
            continue;
        }
        ctx.claim(pte.frame().pfn(), Owner::Kentered, va);
    }
}

/// Pages of `object` whose offset is in the range of `entry`.
fn resident<'o>(entry: &Entry, object: &'o Object) -> &'o [Resident] {
    let first = entry.offset >> PAGE_SHIFT;
    let end = first.saturating_add(entry.len() >> PAGE_SHIFT);
    let pages = &object.pages[object.pages.partition_point(|resident| resident.pindex < first)..];
    &pages[..pages.partition_point(|resident| resident.pindex < end)]
}

/// Checks the pages of an entry's object against the translations of its range.
fn behind_entry(ctx: &Context<'_>, entry: &Entry, object: &Object) {
    // 1. An entry of the kernel's own objects has all its pages, unless it is being created.
    let (pages, first) = (resident(entry, object), entry.offset >> PAGE_SHIFT);
    let is_being_made = !ctx.rest.is_quiet()
        && (entry.wired_count == 0 || entry.eflags.contains(EntryFlags::IN_TRANSITION));
    let is_whole = object.is_kernels() && !is_being_made;
    let count = entry.len() >> PAGE_SHIFT;
    if is_whole && pages.len() as u64 != count {
        let missing = (first..).zip(pages).find(|(want, resident)| *want != resident.pindex);
        let pindex = missing.map_or(first + pages.len() as u64, |(want, _)| want);
        ctx.finding(&ENTRY_RESIDENT, "vm_map_entry", entry.at, || {
            let Entry { start, end, .. } = entry;
            format!(
                "[{start}, {end}) has {count} pages, but {} has {}: none at index {pindex:#x}",
                object.name,
                pages.len()
            )
        });
    }
    // 2. Compare pages and translations in order of addresses.
    let va_of = |resident: &Resident| {
        GuestVirt::new(entry.start.get() + ((resident.pindex - first) << PAGE_SHIFT))
    };
    let mut translations = ctx.tables.kernel_in(entry.start, entry.end).iter().peekable();
    for resident in pages {
        let va = va_of(resident);
        while let Some(stray) = translations.next_if(|translation| translation.va < va) {
            without_page(ctx, entry, object, stray);
        }
        let translation = translations.next_if(|translation| translation.va == va);
        let Some(page) = ctx.pages.get(resident.pfn.into()) else { continue };
        let place = Place { ctx, entry, object, va, pfn: resident.pfn, page };
        match translation {
            Some(translation) => place.mapped(translation.pte),
            None if is_whole && entry.protection == Protection::ALL => {
                ctx.finding(&PTE_MISSING, "PTE", va, || {
                    format!(
                        "{} has page {:#x} for it, but nothing is mapped",
                        object.name, resident.pfn
                    )
                })
            }
            None => {}
        }
        if !is_being_made {
            place.page();
        }
    }
    // 3. Translations past the last page.
    translations.for_each(|stray| without_page(ctx, entry, object, stray));
}

fn without_page(
    ctx: &Context<'_>,
    entry: &Entry,
    object: &Object,
    &Translation { va, pte }: &Translation,
) {
    ctx.finding(&PTE_UNEXPLAINED, "PTE", va, || {
        let pindex = entry.offset.wrapping_add(va.since(entry.start)) >> PAGE_SHIFT;
        format!(
            "it leads to {}, but {} at {} has no page at index {pindex:#x}",
            pte.frame(),
            object.name,
            object.at
        )
    });
}

/// A page in the range of an entry.
struct Place<'p, 'a> {
    ctx: &'p Context<'a>,
    entry: &'p Entry,
    object: &'p Object,
    va: GuestVirt,
    pfn: u32,
    page: &'p Page,
}

impl Place<'_, '_> {
    /// Checks that the translation leads to the page and has the right flags.
    fn mapped(&self, pte: Pte) {
        // 1. It leads to this page, and pmap_enter made it.
        let Self { ctx, object, va, pfn, page, .. } = self;
        let flags = pte.flags();
        let frame = GuestPhys::from_pfn((*pfn).into());
        if pte.frame() != frame {
            ctx.finding(&PTE_FRAME, "PTE", *va, || {
                format!(
                    "it leads to {}, but the page of {} at {} is at {frame}",
                    pte.frame(),
                    object.name,
                    object.at
                )
            });
        }
        if flags.contains(PteFlags::KENTER) {
            ctx.finding(&PTE_KENTER, "PTE", *va, || {
                format!(
                    "pmap_kenter made the entry {:#x}, over a page of {}",
                    pte.bits(),
                    object.name
                )
            });
            return;
        }
        // 2. It is wired if the page is, and kernel memory counts as modified from the start.
        if flags.contains(PteFlags::W) != (page.wire_count > 0) {
            ctx.finding(&PTE_WIRED, "PTE", *va, || {
                format!(
                    "the entry is {:#x}, but page {pfn:#x} is wired {} times",
                    pte.bits(),
                    page.wire_count
                )
            });
        }
        if object.is_kernels() && flags & (PteFlags::RW | PteFlags::M) == PteFlags::RW {
            ctx.finding(&PTE_FLAGS, "PTE", *va, || {
                format!(
                    "the entry is {:#x}, but writable entries of kernel memory are made with M set",
                    pte.bits()
                )
            });
        }
    }

    /// Checks the page's own fields.
    fn page(&self) {
        // 1. Wired as often as its entry, with all of its contents valid.
        let Self { ctx, entry, object, va, pfn, page } = self;
        let told = |field: &str, is: String, wants: String| {
            ctx.finding(&PAGE_RESIDENT, "vm_page", ctx.pages.address((*pfn).into()), || {
                format!(
                    "page {pfn:#x} of {} at {va}: {field} is {is}, should be {wants}",
                    object.name
                )
            });
        };
        if page.wire_count != entry.wired_count {
            told(
                "wire_count",
                page.wire_count.to_string(),
                format!("{} as in the entry", entry.wired_count),
            );
        }
        if page.valid != VM_PAGE_BITS_ALL {
            told("valid", format!("{:#x}", page.valid), format!("{VM_PAGE_BITS_ALL:#x}"));
        }
        // 2. Busy only while a thread works on it; unmanaged in the kernel's own objects.
        if ctx.rest.is_quiet() && (page.oflags != PageOflags::empty() || page.busy != 0) {
            told(
                "oflags",
                format!("{:#x} and busy {}", page.oflags.bits(), page.busy),
                "0: no thread works on it".to_owned(),
            );
        }
        if page.flags.contains(PageFlags::UNMANAGED) != object.is_kernels() {
            let wants = if object.is_kernels() { "UNMANAGED" } else { "managed" };
            told("flags", format!("{:?}", page.flags), wants.to_owned());
        }
    }
}

/// Finds pages of objects outside the range of every entry: they can never be reached or freed.
fn leaks(ctx: &Context<'_>, entries: &[(&Map, &Entry)]) {
    // 1. An entry of a map that is being changed may be missing at this moment.
    if ctx.maps.all.iter().any(|map| map.is_updating()) {
        return;
    }
    // 2. The ranges of each object that entries cover, in order.
    let mut shown: Vec<(GuestVirt, u64, u64)> = Vec::new();
    for (_, entry) in entries {
        if let Some(object) = entry.object() {
            let first = (entry.offset & !PAGE_MASK) >> PAGE_SHIFT;
            shown.push((object, first, first.saturating_add(entry.len() >> PAGE_SHIFT)));
        }
    }
    shown.sort_unstable();
    // 3. Compare the pages of each object with these ranges.
    for object in ctx.objects.all.values().filter(|object| !object.is_updating()) {
        let ranges = &shown[shown.partition_point(|range| range.0 < object.at)..];
        let mut ranges = ranges.iter().take_while(|range| range.0 == object.at).peekable();
        let mut end = 0;
        for Resident { pindex, pfn } in &object.pages {
            while let Some(range) = ranges.next_if(|range| range.1 <= *pindex) {
                end = end.max(range.2);
            }
            if *pindex >= end {
                ctx.finding(&OBJECT_LEAK, "vm_page", ctx.pages.address((*pfn).into()), || {
                    format!(
                        "page {pfn:#x} is at index {pindex:#x} of {} at {}, but no entry shows \
                         that",
                        object.name, object.at
                    )
                });
            }
        }
    }
}
