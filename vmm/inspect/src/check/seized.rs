//! Blocks that the host has seized, and their lists. (What it has seized of segments' ends is
//! checked with the segments.)

use vmkern_abi::layout::PageFlags;

use super::context::Context;
use super::owners::Owner;
use super::page_array::Page;
use super::page_list::check_blocks;
use super::rule::rules;

rules! {
    Some(check);
    Memory {
        SEIZED_LINK = "seized-link":
            "a list of seized blocks is linked both ways, to its tail, counts its blocks, and \
             reaches none twice";
        SEIZED_BLOCK = "seized-block":
            "the head of a seized block says so, with the block's order, and is not the head of a \
             free block; the block is aligned, and lies in one segment below the fresh pages";
    }
}

/// Checks the lists of seized blocks, and claims every page of a block.
fn check(ctx: &Context<'_>) {
    for (order, list) in ctx.roots.vm_seized_queues.iter().enumerate() {
        let which = format_args!("order {order}: ");
        check_blocks(ctx, &SEIZED_LINK, "list of seized blocks", (list, &which), |pfn, head| {
            check_block(ctx, order, pfn, head);
        });
    }
    check_heads(ctx);
}

/// Checks the block of `order` that begins with page `pfn`, and claims its pages.
fn check_block(ctx: &Context<'_>, order: usize, pfn: u64, head: &Page) {
    let at = ctx.pages.address(pfn);
    let end = pfn + (1 << order);
    let segment = ctx.pages.locate(pfn).map(|(number, _)| number);
    let fits = segment.is_some_and(|number| {
        end <= ctx.pages.segments[number].fresh && usize::from(head.segind) == number
    });
    let says = usize::try_from(head.private).unwrap_or(usize::MAX);
    let is_head = head.flags.contains(PageFlags::SEIZED) && says == order + 1 && head.block == 0;
    if !is_head || !fits || !pfn.is_multiple_of(1 << order) {
        ctx.finding(&SEIZED_BLOCK, "vm_page", at, || {
            format!(
                "pages {pfn:#x} to {end:#x} are listed as a seized block of order {order}, in \
                 segment {segment:?}; the head is {head:x?}"
            )
        });
    }
    for page in pfn..end {
        if ctx.pages.locate(page).is_some() {
            ctx.claim(page, Owner::Seized, at);
        }
    }
}

/// Checks that every page that says that it heads a seized block does.
fn check_heads(ctx: &Context<'_>) {
    for (pfn, page) in ctx.pages.used() {
        if page.flags.contains(PageFlags::SEIZED) && ctx.owner(pfn) != Some(Owner::Seized) {
            ctx.finding(&SEIZED_BLOCK, "vm_page", ctx.pages.address(pfn), || {
                format!("page {pfn:#x} says that it heads a seized block, but is on no list")
            });
        }
    }
}
