//! Owners of pages: every allocated page has exactly one owner.
//!
//! Each part of the check claims the pages that it visits. Two claims of one page contradict each
//! other, a claim of a free page contradicts the page array, and an allocated page without a claim
//! is lost.

use std::cell::RefCell;

use vmkern_abi::addr::GuestVirt;

use super::finding::Findings;
use super::page_array::{Page, PageArray};
use super::rule::rules;

rules! {
    None;
    Owners {
        PAGE_OWNER = "page-owner":
            "a page has one use: a page of an object, a node, a table, a page of a pool, a slab, \
             and so on";
        PAGE_FREE = "page-free":
            "a used page is allocated, and a page in a free block, in a CPU's cache or seized by \
             the host is not";
        PAGE_UNMANAGED = "page-unmanaged":
            "a used page is managed";
    }
}

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The home of a map.
    MapHome,
    /// A page of a map's entries or nodes.
    MapPool,
    /// A page of an object.
    Resident,
    /// A page table.
    PageTable,
    /// A page mapped by `pmap_kenter` or `pmap_qenter`.
    Kentered,
    /// A slab of a zone.
    Slab,
    /// Part of a free block.
    FreeBlock,
    /// In the balloon.
    Balloon,
    /// Free, in a CPU's cache.
    PageCache,
    /// Seized by the host.
    Seized,
}

impl Owner {
    /// A description of such a page.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::MapHome => "the home of a map",
            Self::MapPool => "a page of a map's pool",
            Self::Resident => "a page of an object",
            Self::PageTable => "a page table",
            Self::Kentered => "mapped by pmap_qenter",
            Self::Slab => "a slab of a zone",
            Self::FreeBlock => "in a free block",
            Self::Balloon => "in the balloon",
            Self::PageCache => "in a CPU's cache of free pages",
            Self::Seized => "seized by the host",
        }
    }

    /// Whether such a page is free.
    pub(super) const fn is_free(self) -> bool {
        matches!(self, Self::FreeBlock | Self::PageCache)
    }

    /// Whether such a page is allocated.
    const fn is_allocated(self) -> bool {
        !self.is_free() && !matches!(self, Self::Seized)
    }
}

/// The owners of all pages that were ever used.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// By segment of the page array, then by page.
    owners: RefCell<Vec<Vec<Option<Owner>>>>,
}

impl Owners {
    pub(super) fn new(pages: &PageArray) -> Self {
        let owners = pages.segments.iter().map(|segment| vec![None; segment.pages.len()]).collect();
        Self { owners: RefCell::new(owners) }
    }

    /// Claims page `pfn` for `owner`, the structure at `at`.
    pub(super) fn claim(
        &self,
        pages: &PageArray,
        findings: &Findings,
        pfn: u64,
        owner: Owner,
        at: GuestVirt,
    ) {
        // 1. The page is managed and has been used.
        let what = || format!("page {pfn:#x}");
        let Some((segment, index)) = pages.locate(pfn) else {
            if pages.is_managed(pfn) {
                findings.add(&PAGE_FREE, "vm_page", pages.address(pfn), || {
                    format!("{} is {} at {at}, but was never handed out", what(), owner.words())
                });
            } else {
                findings.add(&PAGE_UNMANAGED, owner.words(), at, || {
                    format!("{} is not managed", what())
                });
            }
            return;
        };
        // 2. Its flags agree with the owner.
        let is_allocated = pages.segments[segment].pages.get(index).is_some_and(Page::is_allocated);
        if is_allocated != owner.is_allocated() {
            let word = if is_allocated { "handed out" } else { "free" };
            findings.add(&PAGE_FREE, "vm_page", pages.address(pfn), || {
                format!(
                    "{} is {} at {at}, but its flags say that it is {word}",
                    what(),
                    owner.words()
                )
            });
        }
        // 3. It has no other owner.
        let slot = &mut self.owners.borrow_mut()[segment][index];
        match *slot {
            None => *slot = Some(owner),
            Some(first) => findings.add(&PAGE_OWNER, "vm_page", pages.address(pfn), || {
                format!("{} is {} at {at}, and also {}", what(), owner.words(), first.words())
            }),
        }
    }

    /// The owner of page `pfn`, if it was claimed.
    pub(super) fn of(&self, pages: &PageArray, pfn: u64) -> Option<Owner> {
        let (segment, index) = pages.locate(pfn)?;
        self.owners.borrow()[segment][index]
    }
}
