//! Every page's state, which depends on its owner, and the counters of pages by state.
//!
//! Runs after all claims: an allocated page without an owner is lost.

use vmkern_abi::layout::{PageFlags, PageOflags};

use super::context::Context;
use super::free_lists::is_known_zero;
use super::in_flight::InFlight;
use super::owners::Owner;
use super::page_array::Page;
use super::rule::rules;

rules! {
    Some(check);
    Owners {
        PAGE_LOST = "page-lost":
            "an allocated page is used by something, and a free page is in a free block or a \
             CPU's cache, or seized";
    }
    Memory {
        PAGE_FREE_STATE = "page-free-state":
            "a free page has the fields of a free page, in a block or in a cache";
        PAGE_STATE = "page-state":
            "an allocated page has the flags, wiring, validity and queue that its owner gives it; \
             pages mapped by `pmap_qenter` are chained only while a thread holds the first";
        PAGE_COUNTS = "page-counts":
            "each counter of pages is equal to the number of pages that it counts";
    }
}

/// Pages by state.
#[derive(Default)]
struct Counts {
    free: u64,
    zero: u64,
    wired: u64,
}

/// Checks the states of all pages, and that no page is lost.
fn check(ctx: &Context<'_>) {
    check_states(ctx);
    check_lost(ctx);
}

fn check_states(ctx: &Context<'_>) {
    // 1. While a lock is held, pages may be changing their state.
    if ctx.is_locked() || ctx.is_free_memory_updating() {
        return;
    }
    let mut counts = Counts::default();
    let mut chained = Vec::new();
    // 2. Each page, by its owner.
    for (pfn, page) in ctx.pages.used() {
        counts.wired += u64::from(page.wire_count > 0);
        match ctx.owner(pfn) {
            Some(owner) if owner.is_free() => {
                counts.free += 1;
                counts.zero += u64::from(is_known_zero(ctx, page));
                check_free(ctx, pfn, page, owner);
            }
            // Its flags are those of a free page; the block's head has a rule of its own.
            Some(Owner::Seized) => {}
            // The balloon's own rules cover all of its state.
            Some(Owner::Balloon) => {}
            None if !page.is_allocated() => {
                ctx.finding(&PAGE_LOST, "vm_page", ctx.pages.address(pfn), || {
                    format!("page {pfn:#x} is free, but in no free block and no cache")
                })
            }
            None => {}
            Some(Owner::Resident) => check_resident(ctx, pfn, page),
            Some(Owner::Kentered) if page.next != 0 && !ctx.is_quiet() => {
                chained.push(pfn);
                check_private(ctx, pfn, &Page { next: 0, ..*page }, Owner::Kentered);
            }
            Some(owner) => check_private(ctx, pfn, page, owner),
        }
        if page.is_allocated() {
            check_allocated(ctx, pfn, page);
        }
    }
    // 3. Checks that need all pages.
    check_chained(ctx, &chained);
    check_counts(ctx, &counts);
}

/// Checks pages that are mapped by `pmap_qenter` and linked to another page. An operation that
/// removes such mappings chains their pages first, and keeps the head of the chain until it has
/// freed them.
fn check_chained(ctx: &Context<'_>, chained: &[u64]) {
    for pfn in InFlight::new(ctx).lost(chained) {
        ctx.finding(&PAGE_STATE, "vm_page", ctx.pages.address(pfn), || {
            let next = ctx.pages.get(pfn).map_or(0, |page| page.next);
            format!("page {pfn:#x} is {}, but has next {next:#x}", Owner::Kentered.words())
        });
    }
}

/// Checks that every allocated page has an owner. Runs after all claims.
fn check_lost(ctx: &Context<'_>) {
    // The pages that a map needs for itself are not read while the map is being changed.
    if ctx.is_locked() || ctx.maps.all.iter().any(|map| map.is_updating()) {
        return;
    }
    let nobodys = |&(pfn, page): &(u64, &Page)| page.is_allocated() && ctx.owner(pfn).is_none();
    let suspects: Vec<u64> = ctx.pages.used().filter(nobodys).map(|(pfn, _)| pfn).collect();
    for pfn in InFlight::new(ctx).lost(&suspects) {
        ctx.finding(&PAGE_LOST, "vm_page", ctx.pages.address(pfn), || {
            format!("page {pfn:#x} is handed out, but nothing leads to it")
        });
    }
}

fn check_free(ctx: &Context<'_>, pfn: u64, page: &Page, owner: Owner) {
    let is_cached = owner == Owner::PageCache;
    let is_linked = is_cached || page.block != 0;
    let place = if is_cached { PageFlags::PCPU_CACHE } else { PageFlags::empty() };
    let expected = Page {
        flags: page.flags & (PageFlags::ZERO | PageFlags::TOUCHED) | place,
        next: if is_linked { page.next } else { 0 },
        prev: if is_linked { page.prev } else { 0 },
        // A page keeps its segment's number.
        segind: page.segind,
        act_count: page.act_count,
        block: if is_cached { 0 } else { page.block },
        ..Page::FRESH
    };
    if *page != expected {
        ctx.finding(&PAGE_FREE_STATE, "vm_page", ctx.pages.address(pfn), || {
            format!(
                "page {pfn:#x} is {}, but its state is not that of a free page: {page:x?}",
                owner.words()
            )
        });
    }
}

fn check_allocated(ctx: &Context<'_>, pfn: u64, page: &Page) {
    // 1. The flags that an allocated page may have.
    let segment = ctx.pages.locate(pfn).map(|(segment, _)| segment);
    let is_home = ctx.owner(pfn) == Some(Owner::MapHome);
    let mark = match ctx.owner(pfn) {
        Some(Owner::MapHome) => PageFlags::MAP_HOME,
        Some(Owner::Balloon) => PageFlags::BALLOON,
        _ => PageFlags::empty(),
    };
    let known =
        PageFlags::ALLOCATED | PageFlags::TOUCHED | PageFlags::ZERO | PageFlags::UNMANAGED | mark;
    let fault =
        |detail: String| ctx.finding(&PAGE_STATE, "vm_page", ctx.pages.address(pfn), || detail);
    if !page.flags.contains(PageFlags::TOUCHED) || !known.contains(page.flags) {
        fault(format!("page {pfn:#x} is handed out, with the flags {:?}", page.flags));
    }
    if is_home && !page.flags.contains(mark) && ctx.is_quiet() {
        fault(format!(
            "page {pfn:#x} is the home of a map, but is not marked as one: {:?}",
            page.flags
        ));
    }
    // 2. No field of a free page is set, and the segment is that of its address.
    if page.block != 0 {
        fault(format!(
            "page {pfn:#x} is handed out, but heads a free block of order {}",
            page.block - 1
        ));
    }
    if segment != Some(usize::from(page.segind)) {
        fault(format!(
            "page {pfn:#x} lies in segment {segment:?}, but segind says {}",
            page.segind
        ));
    }
    // 3. Fields that this kernel never sets, and consistent validity.
    if page.hold_count != 0 || page.busy != 0 {
        let (holds, busy) = (page.hold_count, page.busy);
        fault(format!(
            "page {pfn:#x} has hold_count {holds} and busy {busy}, but nothing holds or shares \
             pages"
        ));
    }
    if page.dirty & !page.valid != 0 {
        fault(format!(
            "chunks {:#x} of page {pfn:#x} are dirty, but only {:#x} are valid",
            page.dirty, page.valid
        ));
    }
    // 4. Its use.
    check_use(ctx, pfn, page);
}

/// Checks that the queue and the flags of an allocated page are consistent.
fn check_use(ctx: &Context<'_>, pfn: u64, page: &Page) {
    let fault =
        |detail: String| ctx.finding(&PAGE_STATE, "vm_page", ctx.pages.address(pfn), || detail);
    if page.queue != 0 && (page.wire_count != 0 || page.flags.contains(PageFlags::UNMANAGED)) {
        let (queue, wired) = (page.queue, page.wire_count);
        fault(format!(
            "page {pfn:#x} is on queue {queue}, but wired {wired} times, flags {:?}",
            page.flags
        ));
    }
    if !(PageOflags::BUSY | PageOflags::WANTED).contains(page.oflags)
        || (page.oflags.contains(PageOflags::WANTED) && !page.oflags.contains(PageOflags::BUSY))
    {
        fault(format!("page {pfn:#x} has the oflags {:?}", page.oflags));
    }
    if page.oflags.contains(PageOflags::BUSY) && ctx.is_quiet() {
        fault(format!("page {pfn:#x} is busy, but every thread waits for work"));
    }
}

/// Checks a page of an object, which also decides whether the page is managed.
fn check_resident(ctx: &Context<'_>, pfn: u64, page: &Page) {
    let kernels = [ctx.root_of(&ctx.roots.kernel_object), ctx.root_of(&ctx.roots.kmem_object)];
    let is_kernels = kernels.contains(&page.object.addr());
    let fault =
        |detail: String| ctx.finding(&PAGE_STATE, "vm_page", ctx.pages.address(pfn), || detail);
    if page.flags.contains(PageFlags::UNMANAGED) != is_kernels {
        fault(format!(
            "page {pfn:#x} of the object at {} has the flags {:?}",
            page.object.addr(),
            page.flags
        ));
    }
    if page.private != 0 {
        fault(format!(
            "page {pfn:#x} belongs to an object, but counts {} in private",
            page.private
        ));
    }
    if page.queue == 0 && (page.next != 0 || page.prev != 0) {
        let (next, prev) = (page.next, page.prev);
        fault(format!("page {pfn:#x} is on no queue, but has next {next:#x} and prev {prev:#x}"));
    }
    // Between allocation and wiring or queueing, a page is neither, but then a thread works on it.
    if page.wire_count == 0 && page.queue == 0 && ctx.is_quiet() {
        fault(format!("page {pfn:#x} is neither wired nor on a paging queue"));
    }
}

/// Checks a page without an object: its owner has wired it once, and nothing else is set.
fn check_private(ctx: &Context<'_>, pfn: u64, page: &Page, owner: Owner) {
    let expected = Page {
        flags: page.flags | PageFlags::ALLOCATED | PageFlags::UNMANAGED,
        wire_count: 1,
        segind: page.segind,
        act_count: page.act_count,
        private: if owner == Owner::PageTable { page.private } else { 0 },
        // A rule of its own covers it.
        block: page.block,
        hold_count: page.hold_count,
        busy: page.busy,
        ..Page::FRESH
    };
    if *page != expected {
        ctx.finding(&PAGE_STATE, "vm_page", ctx.pages.address(pfn), || {
            format!(
                "page {pfn:#x} is {}, so it should be wired once and have no other state, but is \
                 {page:x?}",
                owner.words()
            )
        });
    }
}

fn check_counts(ctx: &Context<'_>, counts: &Counts) {
    let roots = &ctx.roots;
    let fresh: u64 = ctx.pages.segments.iter().map(|segment| segment.end - segment.fresh).sum();
    let zero = counts.zero + if roots.boot_zeroed.is_set() { fresh } else { 0 };
    let compare =
        |name: &str, counter: &vmkern_abi::field::Field<u64>, found: u64, source: &str| {
            if counter.get() != found {
                ctx.finding(&PAGE_COUNTS, "vmmeter", ctx.root_of(counter), || {
                    format!("{name} says {}, but {source} {found}", counter.get())
                });
            }
        };
    compare("v_page_count", &roots.meter.v_page_count, ctx.pages.managed(), "the segments have");
    compare(
        "v_free_count",
        &roots.meter.v_free_count,
        counts.free + fresh,
        "free blocks, caches and unused memory have",
    );
    compare(
        "v_wire_count",
        &roots.meter.v_wire_count,
        counts.wired,
        "the page array has wired pages:",
    );
    compare("v_cache_count", &roots.meter.v_cache_count, 0, "no page can be cached:");
    compare("vm_page_zero_count", &roots.vm_page_zero_count, zero, "free pages known to be zero:");
}
