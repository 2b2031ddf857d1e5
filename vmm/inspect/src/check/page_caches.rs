//! The CPUs' caches of free pages: their links, their sizes, and the floor of free pages above
//! which they are used.

use std::collections::HashSet;
use std::mem::offset_of;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{PageCache, Pcpu, VmFreeList};

use super::context::Context;
use super::owners::Owner;
use super::page_list::{Reach, Step, walk};
use super::rule::rules;
use super::sched::Item;

rules! {
    Some(check);
    Memory {
        PAGE_CACHE_LINK = "page-cache-link":
            "a CPU's cache of pages is linked both ways, to its tail, and reaches no page twice";
        PAGE_CACHE_COUNT = "page-cache-count":
            "its count is the number of its pages, at most `page_cache_max`, and 0 where there \
             are no caches";
        PAGE_CACHE_FLOOR = "page-cache-floor":
            "the floor of caches follows from the thresholds, the CPUs, and what a cache can hold";
    }
}

/// The largest allowed limit of a cache in pages (`vm.pgcache_zone_max_pcpu`).
const LIMIT: u64 = 65_536;

/// Checks the caches, and claims every page in them.
fn check(ctx: &Context<'_>) {
    let max = &ctx.roots.page_cache_max;
    if max.get() > LIMIT {
        ctx.finding(&PAGE_CACHE_FLOOR, "kernel roots", ctx.root_of(max), || {
            format!("page_cache_max is {}, expected at most {LIMIT}", max.get())
        });
    }
    if ctx.roots.vm_page_queue_free_mtx.owner.get() == 0 {
        check_floor(ctx);
    }
    for cpu in &ctx.sched.cpus {
        if cpu.value.page_cache.lock.owner.get() == 0 {
            check_cache(ctx, cpu);
        }
    }
}

/// The floor for this number of CPUs, if there are caches.
fn floor(ctx: &Context<'_>) -> u64 {
    let (roots, meter) = (&ctx.roots, &ctx.roots.meter);
    if meter.ncpu.get() < 2 || roots.page_cache_max.get() == 0 || roots.idlezero_enable.is_set() {
        return 0;
    }
    let busy = meter
        .v_free_min
        .get()
        .max(meter.v_free_reserved.get().saturating_add(meter.v_cache_min.get()));
    busy.saturating_add(meter.ncpu.get().saturating_mul(roots.page_cache_max.get()))
}

fn check_floor(ctx: &Context<'_>) {
    let (says, expected) = (ctx.roots.page_cache_floor.get(), floor(ctx));
    if says != expected {
        ctx.finding(
            &PAGE_CACHE_FLOOR,
            "kernel roots",
            ctx.root_of(&ctx.roots.page_cache_floor),
            || {
                format!(
                    "page_cache_floor is {says}, but thresholds, CPUs and page_cache_max make it \
                     {expected}"
                )
            },
        );
    }
}

fn check_cache(ctx: &Context<'_>, cpu: &Item<Pcpu>) {
    // 1. The pages: used, visited once, linked to the previous page, and with the right segment.
    let number = cpu.value.cpuid.get();
    let list: &VmFreeList = &cpu.value.page_cache.pages;
    let at = cpu.addr().add((offset_of!(Pcpu, page_cache) + offset_of!(PageCache, pages)) as u64);
    let walked = walk(ctx, list, Reach::Used, &mut HashSet::new(), |step| match step {
        Step::Astray { from, pfn } => {
            ctx.finding(&PAGE_CACHE_LINK, "page cache", at, || {
                format!("of CPU {number}: page {from:#x} leads to {pfn:#x}, which was never used")
            });
        }
        Step::Again { pfn } => {
            ctx.finding(&PAGE_CACHE_LINK, "vm_page", ctx.pages.address(pfn), || {
                format!("the cache of CPU {number} leads to page {pfn:#x} twice and never ends")
            });
        }
        Step::Page { from, pfn, page } => {
            let segment = ctx.pages.locate(pfn).map(|(segment, _)| segment);
            if page.prev != from || segment != Some(usize::from(page.segind)) {
                ctx.finding(&PAGE_CACHE_LINK, "vm_page", ctx.pages.address(pfn), || {
                    let (prev, segind) = (page.prev, page.segind);
                    format!(
                        "page {pfn:#x} of segment {} comes after {from:#x} in the cache of CPU \
                         {number}, but says prev {prev:#x}, segind {segind}",
                        segment.unwrap_or_default()
                    )
                });
            }
            ctx.claim(pfn, Owner::PageCache, at);
        }
    });
    // 2. The list's tail and count.
    if list.tail.get() != walked.last {
        ctx.finding(&PAGE_CACHE_LINK, "page cache", at, || {
            format!(
                "of CPU {number}: its tail is page {:#x}, but its last page is {:#x}",
                list.tail.get(),
                walked.last
            )
        });
    }
    check_count(ctx, list, at, number, walked.count);
}

/// Checks the count of the cache of CPU `number`, which has `found` pages.
fn check_count(ctx: &Context<'_>, list: &VmFreeList, at: GuestVirt, number: u32, found: u64) {
    let count = list.count.get();
    let most = if floor(ctx) == 0 { 0 } else { ctx.roots.page_cache_max.get() };
    if count != found || found > most {
        ctx.finding(&PAGE_CACHE_COUNT, "page cache", at, || {
            format!(
                "of CPU {number}: count says {count}, but it has {found} pages and may have {most}"
            )
        });
    }
}
