//! Free memory: the buddy lists, the page array and the counters agree.

use std::collections::HashSet;
use std::ops::Range;

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::layout::{
    ISADMA_END, PageFlags, VM_FREELIST_DEFAULT, VM_FREELIST_ISADMA, VM_NFREEORDER, VmFreeList,
    VmPage, VmPhysSeg,
};

use super::context::Context;
use super::owners::Owner;
use super::page_array::{Page, Segment};
use super::page_list::{Reach, Step, Walked, walk};
use super::rule::rules;

rules! {
    Some(check);
    Owners {
        SEGMENT_ORDER = "segment-order":
            "segments ascend and lie inside the page array";
    }
    Memory {
        PAGE_ARRAY = "page-array":
            "the page array begins with the block of 64 pages that the first segment begins in, \
             is aligned, and ends with RAM";
        SEGMENT_FREELIST = "segment-freelist":
            "a segment's free list is the one for its addresses: below 16 MiB, or above";
        FREE_LIST_LINK = "free-list-link":
            "a free list is linked both ways, to its tail, and reaches no block twice";
        FREE_LIST_COUNT = "free-list-count":
            "its count is the number of its blocks";
        FREE_BLOCK_ORDER = "free-block-order":
            "a block is on the list of its order, and aligned to it";
        FREE_BLOCK_SEGMENT = "free-block-segment":
            "a block lies in one segment, of this list, below the fresh pages";
        FREE_BLOCK_INNER = "free-block-inner":
            "no block lies within a block";
        FREE_BLOCK_COALESCED = "free-block-coalesced":
            "two buddies that are free are one block";
    }
}

/// Pages described by one page of the page array. The array's first page describes a whole block of
/// them.
const PAGES_A_PAGE: u64 = PAGE_SIZE / size_of::<VmPage>() as u64;

/// Checks segments and free lists, and claims every page of a free block.
fn check(ctx: &Context<'_>) {
    check_segments(ctx);
    if ctx.roots.vm_page_queue_free_mtx.owner.get() != 0 {
        return;
    }
    for (flind, orders) in ctx.roots.vm_phys_free_queues.iter().enumerate() {
        for (order, list) in orders.iter().enumerate() {
            check_list(ctx, flind, order, list);
        }
    }
}

/// Checks the segments and their free lists.
fn check_segments(ctx: &Context<'_>) {
    // 1. Each segment is in the free list of its addresses, and does not cross a boundary between
    //    lists.
    for (number, segment) in ctx.pages.segments.iter().enumerate() {
        let isadma = ISADMA_END.pfn();
        let expected =
            if segment.start < isadma { VM_FREELIST_ISADMA } else { VM_FREELIST_DEFAULT };
        let at = ctx.roots.vm_phys_segs.get().addr().add((number * size_of::<VmPhysSeg>()) as u64);
        if segment.freelist as usize != expected || (segment.start < isadma && segment.end > isadma)
        {
            ctx.finding(&SEGMENT_FREELIST, "vm_phys_seg", at, || {
                let (start, end) = (segment.start, segment.end);
                format!(
                    "pages {start:#x} to {end:#x} are of free list {}, expected {expected}",
                    segment.freelist
                )
            });
        }
    }
    // 2. The kernel's count of segments.
    let (read, counted) = (ctx.pages.segments.len() as u64, ctx.roots.vm_phys_nsegs.get());
    if read != counted {
        ctx.finding(&SEGMENT_ORDER, "kernel roots", ctx.root_of(&ctx.roots.vm_phys_nsegs), || {
            format!("vm_phys_nsegs is {counted}, but only {read} segments make sense")
        });
    }
    // 3. The page array begins with the first segment, rounded down to a whole page of elements.
    let (begin, first) =
        (ctx.roots.first_page.get(), ctx.pages.segments.first().map_or(0, |segment| segment.start));
    let expected = first - first % PAGES_A_PAGE;
    if begin != expected {
        ctx.finding(&PAGE_ARRAY, "kernel roots", ctx.root_of(&ctx.roots.first_page), || {
            format!(
                "the page array begins with page {begin:#x}, the first segment with {first:#x}: \
                 {expected:#x} expected"
            )
        });
    }
}

fn segment_of<'a>(ctx: &'a Context<'_>, pfn: u64) -> Option<(usize, &'a Segment)> {
    let (number, _) = ctx.pages.locate(pfn)?;
    Some((number, &ctx.pages.segments[number]))
}

fn check_list(ctx: &Context<'_>, flind: usize, order: usize, list: &VmFreeList) {
    let list_at = ctx.root_of(list);
    // 1. The blocks: each in a segment, visited once, and linked to the previous one.
    let walked = walk(ctx, list, Reach::Used, &mut HashSet::new(), |step| match step {
        Step::Astray { from, pfn } => {
            ctx.finding(&FREE_LIST_LINK, "free list", list_at, || {
                format!(
                    "list {flind}, order {order}: page {from:#x} leads to {pfn:#x}, which was \
                     never used"
                )
            });
        }
        Step::Again { pfn } => {
            ctx.finding(&FREE_LIST_LINK, "vm_page", ctx.pages.address(pfn), || {
                format!("list {flind}, order {order} leads to page {pfn:#x} twice and never ends")
            });
        }
        Step::Page { from, pfn, page: head } => {
            let at = ctx.pages.address(pfn);
            if head.prev != from {
                ctx.finding(&FREE_LIST_LINK, "vm_page", at, || {
                    format!(
                        "prev of page {pfn:#x} is {:#x}, but its free list comes from {from:#x}",
                        head.prev
                    )
                });
            }
            if let Some((number, segment)) = segment_of(ctx, pfn) {
                check_block(ctx, &Block { pfn, order, flind, at }, head, number, segment);
            }
        }
    });
    // 2. The list's tail and count.
    check_ends(ctx, flind, order, list, walked);
}

/// Checks the tail and the count of a list after a walk along it.
fn check_ends(
    ctx: &Context<'_>,
    flind: usize,
    order: usize,
    list: &VmFreeList,
    Walked { last, count: found }: Walked,
) {
    let list_at = ctx.root_of(list);
    if list.tail.get() != last {
        ctx.finding(&FREE_LIST_LINK, "free list", list_at, || {
            let tail = list.tail.get();
            format!(
                "list {flind}, order {order}: its tail is page {tail:#x}, but its last block is \
                 {last:#x}"
            )
        });
    }
    if list.count.get() != found {
        ctx.finding(&FREE_LIST_COUNT, "free list", list_at, || {
            format!(
                "list {flind}, order {order}: count says {}, but it has {found} blocks",
                list.count.get()
            )
        });
    }
}

struct Block {
    pfn: u64,
    order: usize,
    flind: usize,
    at: GuestVirt,
}

fn check_block(ctx: &Context<'_>, block: &Block, head: &Page, number: usize, segment: &Segment) {
    // 1. The head page has the block's order, segment and list, and the block is aligned to its
    //    size.
    let &Block { pfn, order, flind, at } = block;
    let end = pfn + (1 << order);
    if usize::from(head.block) != order + 1
        || pfn.trailing_zeros() < u32::try_from(order).unwrap_or(0)
    {
        ctx.finding(&FREE_BLOCK_ORDER, "vm_page", at, || {
            format!(
                "page {pfn:#x} is on the list of order {order}, but its block says {}",
                i32::from(head.block) - 1
            )
        });
    }
    if end > segment.fresh
        || usize::from(head.segind) != number
        || segment.freelist as usize != flind
    {
        ctx.finding(&FREE_BLOCK_SEGMENT, "vm_page", at, || {
            let (segind, own, fresh) = (head.segind, segment.freelist, segment.fresh);
            format!(
                "pages {pfn:#x} to {end:#x}, on list {flind}: in segment {number}, of list {own}, \
                 used below {fresh:#x}; segind says {segind}"
            )
        });
    }
    // 2. Free buddies are merged as soon as both are free.
    let buddy = pfn ^ (1 << order);
    let is_pair = order + 1 < VM_NFREEORDER
        && buddy >= segment.start
        && buddy + (1 << order) <= segment.fresh;
    if is_pair && ctx.pages.get(buddy).is_some_and(|page| usize::from(page.block) == order + 1) {
        ctx.finding(&FREE_BLOCK_COALESCED, "vm_page", at, || {
            format!(
                "page {pfn:#x} and its buddy {buddy:#x} both head a free block of order {order}"
            )
        });
    }
    // 3. The inner pages belong to the block, and none of them heads a block.
    check_inner(ctx, block, pfn..end.min(segment.fresh));
}

/// Claims the pages of a block, and checks that only the first of them heads a block.
fn check_inner(ctx: &Context<'_>, block: &Block, pages: Range<u64>) {
    let &Block { pfn, order, at, .. } = block;
    for page in pages {
        ctx.claim(page, Owner::FreeBlock, at);
        if page != pfn && ctx.pages.get(page).is_some_and(|page| page.block != 0) {
            ctx.finding(&FREE_BLOCK_INNER, "vm_page", ctx.pages.address(page), || {
                format!(
                    "page {page:#x} heads a block, but lies in the one of order {order} at page \
                     {pfn:#x}"
                )
            });
        }
    }
}

/// Whether a free page is known to be zero.
pub(super) fn is_known_zero(ctx: &Context<'_>, page: &Page) -> bool {
    page.flags.contains(PageFlags::ZERO) || is_untouched(ctx, page)
}

fn is_untouched(ctx: &Context<'_>, page: &Page) -> bool {
    ctx.roots.boot_zeroed.is_set() && !page.flags.contains(PageFlags::TOUCHED)
}
