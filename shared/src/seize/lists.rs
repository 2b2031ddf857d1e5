//! Lists of blocks of free or seized pages, changed from outside.

use super::{Refused, Seize, Structures};
use crate::layout::{PageFlags, VM_NFREEORDER, VmFreeList, VmPage};

/// An end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The first one.
    Head,
    /// The last one.
    Tail,
}

/// A kind of list: how the page at a block's head says that it is on one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A free list.
    Free,
    /// A list of seized blocks.
    Seized,
}

impl Kind {
    /// Whether `page` heads a block of `order` on a list of this kind.
    fn is_head(self, page: &VmPage, order: usize) -> bool {
        let seized = page.flags.get().contains(PageFlags::SEIZED);
        let allocated = page.flags.get().contains(PageFlags::ALLOCATED);
        let block = usize::from(page.block.get());
        !allocated
            && match self {
                Self::Free => !seized && block == order + 1,
                Self::Seized => seized && block == 0 && page.private.get() == mark(order),
            }
    }

    /// Has `page` say that it heads a block of `order`.
    fn mark_head(self, page: &VmPage, order: usize) {
        match self {
            Self::Free => page.block.set(u8::try_from(order + 1).unwrap_or(u8::MAX)),
            Self::Seized => {
                page.flags.update_locked(|flags| flags | PageFlags::SEIZED);
                page.private.set(mark(order));
            }
        }
    }

    /// Has `page` say that it heads no block.
    fn unmark_head(self, page: &VmPage) {
        match self {
            Self::Free => page.block.set(0),
            Self::Seized => {
                page.flags.update_locked(|flags| flags - PageFlags::SEIZED);
                page.private.set(0);
            }
        }
    }
}

/// Orders in which blocks for `want` pages, which are not 0, are looked for: from the largest that
/// fits down, then from the smallest of more.
pub(super) fn orders(want: u64) -> impl Iterator<Item = usize> {
    let fits = (want.ilog2() as usize).min(VM_NFREEORDER - 1);
    (0..=fits).rev().chain(fits + 1..VM_NFREEORDER)
}

/// The word of a seized block's head that says its order.
fn mark(order: usize) -> u32 {
    u32::try_from(order + 1).unwrap_or(u32::MAX)
}

/// A block of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The number of its first page.
    pub pfn: u32,
    /// It has `2^order` pages.
    pub order: usize,
}

impl Block {
    /// The number of its pages.
    pub(super) fn pages(self) -> u64 {
        1 << self.order
    }

    /// Its halves, the lower first. It has at least two pages.
    pub(super) fn halves(self) -> [Self; 2] {
        let order = self.order - 1;
        [Self { pfn: self.pfn, order }, Self { pfn: self.pfn + (1 << order), order }]
    }
}

impl<S: Structures> Seize<'_, S> {
    /// The first block of `list`, whose blocks are of `order`, if it has one.
    pub(super) fn first(
        &self,
        kind: Kind,
        list: &VmFreeList,
        order: usize,
    ) -> Result<Option<Block>, Refused> {
        match list.head.get() {
            0 => Ok(None),
            pfn => self.block(kind, Block { pfn, order }).map(Some),
        }
    }

    /// `block`, if its head says that it is one of `kind`, is aligned, and lies in a segment's used
    /// part.
    fn block(&self, kind: Kind, block: Block) -> Result<Block, Refused> {
        let page = self.page(block.pfn)?;
        let seg = self.segment(page.segind.get().into())?;
        let end = u64::from(block.pfn) + block.pages();
        let is_sound = kind.is_head(page, block.order)
            && block.pfn.trailing_zeros() as usize >= block.order
            && seg.start.get() <= block.pfn
            && end <= seg.fresh.get().into();
        if is_sound { Ok(block) } else { Err(self.damaged(block.pfn)) }
    }

    /// Takes `block` off `list`. Its head's links are clear afterwards.
    pub(super) fn unlink(
        &self,
        kind: Kind,
        list: &VmFreeList,
        block: Block,
    ) -> Result<(), Refused> {
        let page = self.page(block.pfn)?;
        self.unlink_page(list, block.pfn)?;
        kind.unmark_head(page);
        Ok(())
    }

    /// Takes `block` off the list of its order among `lists`, or as large a part of it as `most`
    /// pages, which are not 0, allow: the upper halves go back, to the heads of their lists.
    /// Returns the part, and the number of its segment.
    pub(super) fn cut(
        &self,
        kind: Kind,
        lists: &[VmFreeList; VM_NFREEORDER],
        mut block: Block,
        most: u64,
    ) -> Result<(Block, u16), Refused> {
        let segind = self.page(block.pfn)?.segind.get();
        self.unlink(kind, &lists[block.order], block)?;
        while block.pages() > most {
            let [lower, upper] = block.halves();
            self.link(kind, &lists[upper.order], upper, (segind, End::Head))?;
            block = lower;
        }
        Ok((block, segind))
    }

    /// Takes page number `pfn` off `list`. Its links are clear afterwards.
    pub(super) fn unlink_page(&self, list: &VmFreeList, pfn: u32) -> Result<(), Refused> {
        // 1. The links of the neighbours, or the list's ends, lead here; otherwise nothing changes.
        let page = self.page(pfn)?;
        let (next, prev) = (page.next.get(), page.prev.get());
        let to_here = if prev == 0 { &list.head } else { &self.page(prev)?.next };
        let back_here = if next == 0 { &list.tail } else { &self.page(next)?.prev };
        let count = list.count.get();
        if to_here.get() != pfn || back_here.get() != pfn || count == 0 {
            return Err(self.damaged(pfn));
        }
        // 2. They lead past it.
        to_here.set(next);
        back_here.set(prev);
        page.next.set(0);
        page.prev.set(0);
        list.count.set(count - 1);
        Ok(())
    }

    /// Puts `block`, which is in segment number `segind`, on `list`, whose blocks are of its order.
    pub(super) fn link(
        &self,
        kind: Kind,
        list: &VmFreeList,
        block: Block,
        (segind, end): (u16, End),
    ) -> Result<(), Refused> {
        let page = self.page(block.pfn)?;
        page.segind.set(segind);
        kind.mark_head(page, block.order);
        let (near, far) = match end {
            End::Head => (&list.head, &list.tail),
            End::Tail => (&list.tail, &list.head),
        };
        let beside = near.get();
        let (next, prev) = if end == End::Head { (beside, 0) } else { (0, beside) };
        page.next.set(next);
        page.prev.set(prev);
        match beside {
            0 => far.set(block.pfn),
            beside if end == End::Head => self.page(beside)?.prev.set(block.pfn),
            beside => self.page(beside)?.next.set(block.pfn),
        }
        near.set(block.pfn);
        list.count.inc();
        Ok(())
    }

    /// The free lists of list number `flind`.
    pub(super) fn free_lists(&self, flind: usize) -> &[VmFreeList; VM_NFREEORDER] {
        &self.roots.vm_phys_free_queues[flind]
    }

    pub(super) fn damaged(&self, pfn: u32) -> Refused {
        Refused::Damaged { structure: "vm_page", at: self.page_at(pfn) }
    }
}
