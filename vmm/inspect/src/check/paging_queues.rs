//! The paging queues, which hold managed pages that are not wired.

use std::collections::HashSet;

use vmkern_abi::layout::{PQ_ACTIVE, PQ_INACTIVE, VmFreeList};

use super::context::Context;
use super::page_array::Page;
use super::page_list::{Reach, Step, Walked, walk};
use super::page_state::PAGE_COUNTS;
use super::rule::rules;

rules! {
    Some(check);
    Memory {
        PAGE_QUEUE = "page-queue":
            "a paging queue is linked both ways, and has exactly the pages that say so";
    }
}

/// Checks both queues against each other and against the page array.
fn check(ctx: &Context<'_>) {
    if ctx.roots.vm_page_queue_mtx.owner.get() != 0 {
        return;
    }
    let mut queued = HashSet::new();
    let [inactive, active] = &ctx.roots.vm_page_queues;
    check_queue(ctx, "inactive", PQ_INACTIVE, inactive, &mut queued);
    check_queue(ctx, "active", PQ_ACTIVE, active, &mut queued);
    let counters = [
        ("v_inactive_count", &ctx.roots.meter.v_inactive_count, inactive),
        ("v_active_count", &ctx.roots.meter.v_active_count, active),
    ];
    for (name, counter, list) in counters {
        if counter.get() != list.count.get() {
            ctx.finding(&PAGE_COUNTS, "vmmeter", ctx.root_of(counter), || {
                format!("{name} says {}, but its queue counts {}", counter.get(), list.count.get())
            });
        }
    }
    for (pfn, page) in ctx.pages.used() {
        if page.queue != 0 && !queued.contains(&pfn) {
            ctx.finding(&PAGE_QUEUE, "vm_page", ctx.pages.address(pfn), || {
                format!(
                    "page {pfn:#x} says that it is on queue {}, which does not lead to it",
                    page.queue
                )
            });
        }
    }
}

fn check_queue(
    ctx: &Context<'_>,
    name: &str,
    number: u8,
    list: &VmFreeList,
    queued: &mut HashSet<u64>,
) {
    // 1. The pages: used, and each on one queue once.
    let list_at = ctx.root_of(list);
    let walked = walk(ctx, list, Reach::Used, queued, |step| match step {
        Step::Astray { from, pfn } => {
            ctx.finding(&PAGE_QUEUE, "paging queue", list_at, || {
                format!("{name} queue: page {from:#x} leads to {pfn:#x}, which was never used")
            });
        }
        Step::Again { pfn } => {
            ctx.finding(&PAGE_QUEUE, "vm_page", ctx.pages.address(pfn), || {
                format!("the {name} queue leads to page {pfn:#x}, which is on a queue already")
            });
        }
        Step::Page { from, pfn, page } => check_page(ctx, name, number, (pfn, page), from),
    });
    // 2. The queue's tail and count.
    let Walked { last, count } = walked;
    if list.tail.get() != last || list.count.get() != count {
        ctx.finding(&PAGE_QUEUE, "paging queue", list_at, || {
            let (tail, counted) = (list.tail.get(), list.count.get());
            format!(
                "{name} queue: tail {tail:#x} and count {counted}, but it has {count} pages up to \
                 {last:#x}"
            )
        });
    }
}

/// Checks that page `pfn` names the queue that it is on, and `before`, the previous page there.
fn check_page(ctx: &Context<'_>, name: &str, number: u8, (pfn, page): (u64, &Page), before: u32) {
    let at = ctx.pages.address(pfn);
    if page.prev != before {
        ctx.finding(&PAGE_QUEUE, "vm_page", at, || {
            format!(
                "prev of page {pfn:#x} is {:#x}, but the {name} queue comes from {before:#x}",
                page.prev
            )
        });
    }
    if page.queue != number {
        ctx.finding(&PAGE_QUEUE, "vm_page", at, || {
            format!(
                "page {pfn:#x} is on the {name} queue, number {number}, but says {}",
                page.queue
            )
        });
    }
}
