//! A walk along a list of pages: a free list, a cache, a paging queue, or blocks that are away.
//!
//! The list is the guest's, so the walk ends at a page that it has seen, or that cannot be there.

use std::collections::HashSet;
use std::fmt::Display;

use vmkern_abi::layout::VmFreeList;

use super::context::Context;
use super::page_array::Page;
use super::rule::Rule;

/// Which pages a list may lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those that were ever used.
    Used,
    /// All that are managed.
    Managed,
}

/// What a walk has come to.
pub(super) enum Step<'a> {
    /// Page number `from`, or the list's head if that is 0, leads to a page out of reach. The walk
    /// ends.
    Astray { from: u32, pfn: u64 },
    /// A page that was seen before. The walk ends.
    Again { pfn: u64 },
    /// A page that comes after `from`.
    Page { from: u32, pfn: u64, page: &'a Page },
}

/// Where a walk has ended.
pub(super) struct Walked {
    /// The number of the last page, or 0.
    pub last: u32,
    /// Pages.
    pub count: u64,
}

/// Follows `list`, and calls `visit` with each step. Pages that are in `seen` end the walk; it adds
/// those that it visits.
pub(super) fn walk<'a>(
    ctx: &'a Context<'_>,
    list: &VmFreeList,
    reach: Reach,
    seen: &mut HashSet<u64>,
    mut visit: impl FnMut(Step<'a>),
) -> Walked {
    let (mut last, mut count, mut next) = (0, 0, list.head.get());
    while next != 0 {
        let pfn = u64::from(next);
        let can_be = reach == Reach::Managed || ctx.pages.locate(pfn).is_some();
        let Some(page) = ctx.pages.get(pfn).filter(|_| can_be) else {
            visit(Step::Astray { from: last, pfn });
            break;
        };
        if !seen.insert(pfn) {
            visit(Step::Again { pfn });
            break;
        }
        visit(Step::Page { from: last, pfn, page });
        count += 1;
        (last, next) = (next, page.next);
    }
    Walked { last, count }
}

/// Checks the links, the tail and the count of a list of blocks that are not free, by `rule`.
/// `which` says in front of a detail which of several lists it is. Calls `block` with each head.
pub(super) fn check_blocks(
    ctx: &Context<'_>,
    rule: &'static Rule,
    what: &'static str,
    (list, which): (&VmFreeList, &dyn Display),
    mut block: impl FnMut(u64, &Page),
) {
    // 1. The blocks: each visited once, and linked to the previous one.
    let at = ctx.root_of(list);
    let fault = |at, detail: String| ctx.finding(rule, what, at, || format!("{which}{detail}"));
    let walked = walk(ctx, list, Reach::Managed, &mut HashSet::new(), |step| match step {
        Step::Astray { from, pfn } => {
            fault(at, format!("page {from:#x} leads to {pfn:#x}, which is not managed"));
        }
        Step::Again { pfn } => {
            let at = ctx.pages.address(pfn);
            fault(at, format!("it leads to page {pfn:#x} twice and never ends"));
        }
        Step::Page { from, pfn, page } => {
            if page.prev != from {
                let (at, prev) = (ctx.pages.address(pfn), page.prev);
                fault(at, format!("page {pfn:#x} comes after {from:#x}, but says {prev:#x}"));
            }
            block(pfn, page);
        }
    });
    // 2. The tail and the count.
    let (tail, count, Walked { last, count: found }) = (list.tail.get(), list.count.get(), walked);
    if tail != last || count != found {
        fault(
            at,
            format!("it says {count} blocks up to page {tail:#x}, but has {found} up to {last:#x}"),
        );
    }
}
