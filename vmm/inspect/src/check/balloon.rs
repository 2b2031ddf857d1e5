//! The balloon's blocks and their lists: what the driver has taken out of the free lists for the
//! host.

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{BALLOON_ORDER, PageFlags, VmFreeList};

use super::context::Context;
use super::owners::Owner;
use super::page_array::Page;
use super::page_list::check_blocks;
use super::rule::rules;

rules! {
    Some(check);
    Memory {
        BALLOON_LINK = "balloon-link":
            "a list of the balloon is linked both ways, to its tail, counts its blocks, and \
             reaches none twice";
        BALLOON_BLOCK = "balloon-block":
            "a block of the balloon is aligned to its size, lies in one segment below the fresh \
             pages, and all its pages, and no others, say that they are the balloon's; its first \
             page has its order";
        BALLOON_COUNT = "balloon-count":
            "the balloon's number of pages is that of its blocks";
    }
}

/// Flags of every page in the balloon.
const FLAGS: PageFlags = PageFlags::ALLOCATED
    .union(PageFlags::TOUCHED)
    .union(PageFlags::UNMANAGED)
    .union(PageFlags::BALLOON);

/// Checks the lists, claims every page of a block, and compares the number of pages.
fn check(ctx: &Context<'_>) {
    // The free queue's lock guards the lists.
    if ctx.roots.vm_page_queue_free_mtx.owner.get() != 0 {
        return;
    }
    let balloon = &ctx.roots.balloon;
    let found = check_list(ctx, &balloon.held) + check_list(ctx, &balloon.leaving);
    if balloon.pages.get() != found {
        ctx.finding(&BALLOON_COUNT, "balloon", ctx.root_of(&balloon.pages), || {
            format!("it says {} pages, but its blocks have {found}", balloon.pages.get())
        });
    }
    for (pfn, page) in ctx.pages.used() {
        if page.flags.contains(PageFlags::BALLOON) && ctx.owner(pfn) != Some(Owner::Balloon) {
            ctx.finding(&BALLOON_BLOCK, "vm_page", ctx.pages.address(pfn), || {
                format!("page {pfn:#x} says that it is the balloon's, but lies in no block of it")
            });
        }
    }
}

/// Checks a list, and returns the number of pages of its blocks.
fn check_list(ctx: &Context<'_>, list: &VmFreeList) -> u64 {
    let mut pages = 0;
    check_blocks(ctx, &BALLOON_LINK, "list of the balloon", (list, &""), |pfn, head| {
        pages += check_block(ctx, pfn, head);
    });
    pages
}

/// Checks the block that begins with page `pfn`, claims its pages, and returns their number.
fn check_block(ctx: &Context<'_>, pfn: u64, head: &Page) -> u64 {
    // 1. The block as its head describes it.
    let at = ctx.pages.address(pfn);
    let fault = |at: GuestVirt, detail: String| {
        ctx.finding(&BALLOON_BLOCK, "vm_page", at, || detail);
    };
    let Some(order) = usize::try_from(head.private).ok().filter(|&order| order <= BALLOON_ORDER)
    else {
        fault(at, format!("page {pfn:#x} heads a block of order {}", head.private));
        return 0;
    };
    let (count, end) = (1_u64 << order, pfn + (1 << order));
    let segment = ctx.pages.locate(pfn).map(|(number, _)| &ctx.pages.segments[number]);
    if !pfn.is_multiple_of(count) || segment.is_none_or(|segment| end > segment.fresh) {
        fault(at, format!("pages {pfn:#x} to {end:#x} cannot be a block of order {order}"));
        return 0;
    }
    // 2. Its pages.
    for page in pfn..end {
        ctx.claim(page, Owner::Balloon, at);
        let Some(found) = ctx.pages.get(page) else { continue };
        let links = if page == pfn { (head.next, head.prev, head.private) } else { (0, 0, 0) };
        let expected = Page {
            flags: FLAGS,
            next: links.0,
            prev: links.1,
            private: links.2,
            segind: found.segind,
            act_count: found.act_count,
            ..Page::FRESH
        };
        if *found != expected {
            fault(
                ctx.pages.address(page),
                format!("page {page:#x} is in the balloon's block at {pfn:#x}, but is {found:x?}"),
            );
        }
    }
    count
}
