//! The contents of free pages: those that are known to be zero must be zero.
//!
//! Memory beyond the `fresh` mark of a segment is not read: it was never used, and reading it would
//! make it resident. For the same reason no page is read that the source does not hold, because it
//! was never touched or has been discarded: it is zero.

use std::sync::atomic::Ordering;

use super::context::Context;
use super::free_lists::is_known_zero;
use super::owners::Owner;
use super::page_array::{Page, PageArray};
use super::rule::rules;
use crate::ram::PageWords;

rules! {
    Some(check);
    Memory {
        PAGE_ZERO = "page-zero":
            "a free page that is known to be zero holds zeros only";
    }
}

/// Checks the contents of free pages that an allocation would treat as zeroed.
fn check(ctx: &Context<'_>) {
    if ctx.is_locked() || ctx.is_free_memory_updating() {
        return;
    }
    for (pfn, page) in ctx.pages.used() {
        if !ctx.owner(pfn).is_some_and(Owner::is_free) || !is_known_zero(ctx, page) {
            continue;
        }
        let at = PageArray::phys(pfn);
        if !ctx.memory.holds(at) {
            continue;
        }
        match ctx.memory.page("free page", at) {
            Ok(words) => check_zero(ctx, pfn, page, words),
            Err(error) => ctx.unreadable(&error),
        }
    }
}

/// Checks that `words`, the contents of free page `pfn`, are zeros.
fn check_zero(ctx: &Context<'_>, pfn: u64, page: &Page, words: &PageWords) {
    let words = words.iter().map(|word| word.load(Ordering::Relaxed)).enumerate();
    let Some((index, word)) = { words }.find(|&(_, word)| word != 0) else { return };
    ctx.finding(&PAGE_ZERO, "vm_page", ctx.pages.address(pfn), || {
        let (flags, at) = (page.flags, index * 8);
        format!(
            "page {pfn:#x} is free and known to be zero ({flags:?}), but holds {word:#x} at {at:#x}"
        )
    });
}
