//! The physical memory allocator (`vm_phys.c`): a binary buddy system over segments.
//!
//! A segment has two parts. Pages below [`VmPhysSeg::fresh`] are allocated or lie in blocks of a
//! power-of-two number of pages, whose heads are on the free lists. Pages from there on were never
//! used: nothing has been written about them, so booting costs the same with any amount of memory.
//! When the lists have no block, one is cut off the fresh part.
//!
//! An allocation takes the head of the list of the smallest sufficient order and puts the halves it
//! splits off at the heads of theirs; a free coalesces and appends at the tail. Memory below 16 MiB
//! is searched last. The host may take free memory away at both places, without asking
//! ([`vmkern_abi::seize`]). Because fresh blocks are cut no larger than requested (but at least
//! [`FRESH_ORDER`]), memory that was used before is reused first.

use core::ops::Deref;

use vmkern_abi::addr::{GuestPhys, KPtr, PAGE_SIZE};
use vmkern_abi::field::Field;
use vmkern_abi::kva::{dmap_to_phys, phys_to_dmap};
use vmkern_abi::layout::{FRESH_ORDER, VM_NFREELIST, VM_NFREEORDER, VmFreeList, VmPage, VmPhysSeg};

use super::page::{FreeQueue, phys_of_number};
use crate::kern::Kern;
use crate::machine::{Cpu, Mark, PhysMem};
use crate::num::to_u16;
use crate::queue::{BackLinks, Links, TailQ};

/// Bytes of an element of the page array.
const PAGE_STRUCT: u64 = size_of::<VmPage>() as u64;

/// Physical memory as pages, over threads and locks: the layer below [`super::object::Object`].
#[derive(Debug)]
pub struct Phys<M> {
    kern: Kern<M>,
    vm_page_array: GuestPhys,
    first_page: u64,
}

impl<M> Deref for Phys<M> {
    type Target = Kern<M>;

    #[inline]
    fn deref(&self) -> &Kern<M> {
        &self.kern
    }
}

impl<M: PhysMem + Cpu> Phys<M> {
    /// The pages of a system: their array is at `vm_page_array`, and begins with page number
    /// `first_page`.
    pub(crate) const fn new(kern: Kern<M>, vm_page_array: GuestPhys, first_page: u64) -> Self {
        Self { kern, vm_page_array, first_page }
    }

    /// The segment with this number.
    pub(crate) fn vm_phys_seg(&self, number: u64) -> &VmPhysSeg {
        let first = self.state().vm_phys_segs.get();
        self.get(KPtr::new(first.addr().add(number * size_of::<VmPhysSeg>() as u64)))
    }

    /// All segments, ascending.
    pub fn vm_phys_segments(&self) -> impl Iterator<Item = &VmPhysSeg> {
        (0..self.state().vm_phys_nsegs.get()).map(|number| self.vm_phys_seg(number))
    }

    /// The page with number `pfn`, which the page array covers.
    #[inline]
    pub(crate) fn page_by_number(&self, pfn: u32) -> &VmPage {
        self.at(self.vm_page_array.add((u64::from(pfn) - self.first_page) * PAGE_STRUCT))
    }

    /// The page with number `pfn`, which the page array covers.
    #[inline]
    pub(crate) fn vm_page_pointer(&self, pfn: u32) -> KPtr<VmPage> {
        KPtr::new(phys_to_dmap(
            self.vm_page_array.add((u64::from(pfn) - self.first_page) * PAGE_STRUCT),
        ))
    }

    /// Number of the page `m`.
    #[inline]
    pub(crate) fn vm_page_number(&self, m: KPtr<VmPage>) -> u32 {
        let index = phys_of(m).map(|pa| pa.since(self.vm_page_array) / PAGE_STRUCT);
        match index.map(|index| u32::try_from(self.first_page + index)) {
            Some(Ok(pfn)) => pfn,
            _ => self.panic(format_args!("{} is not a vm_page", m.addr())),
        }
    }

    /// Physical address of the page `m` (`VM_PAGE_TO_PHYS`).
    #[inline]
    #[must_use]
    pub fn vm_page_to_phys(&self, m: KPtr<VmPage>) -> GuestPhys {
        GuestPhys::from_pfn(u64::from(self.vm_page_number(m)))
    }

    /// The managed page that holds `pa` (`PHYS_TO_VM_PAGE`), or `None` when `pa` is not under
    /// management.
    #[must_use]
    pub fn phys_to_vm_page(&self, pa: GuestPhys) -> Option<KPtr<VmPage>> {
        let pfn = u32::try_from(pa.pfn()).ok()?;
        self.vm_phys_segments()
            .any(|seg| (seg.start.get()..seg.end.get()).contains(&pfn))
            .then(|| self.vm_page_pointer(pfn))
    }

    /// Allocates `2^order` pages (`vm_phys_alloc_pages`), or returns `None` when no free block is
    /// large enough. If necessary it takes back the pages in CPUs' caches. Locks: may take the
    /// caches'.
    #[must_use]
    pub fn vm_phys_alloc_pages(
        &self,
        queue: &FreeQueue<'_, M>,
        order: usize,
    ) -> Option<KPtr<VmPage>> {
        let pfn = match self.vm_phys_take(queue, order) {
            Some(pfn) => pfn,
            None if self.page_cache_drain(queue) => self.vm_phys_take(queue, order)?,
            None => return None,
        };
        self.vm_phys_mark(pfn, 1 << order, Mark::Used);
        Some(self.vm_page_pointer(pfn))
    }

    /// Takes `2^order` pages off the lists, and returns the number of the first.
    pub(super) fn vm_phys_take(&self, queue: &FreeQueue<'_, M>, order: usize) -> Option<u32> {
        for flind in 0..VM_NFREELIST {
            loop {
                let queues = &self.state().vm_phys_free_queues[flind];
                let first = |oind: usize| Some((oind, self.page_list(&queues[oind]).first()?));
                if let Some((oind, pfn)) = (order..VM_NFREEORDER).find_map(first) {
                    self.freelist_remove(&queues[oind], pfn);
                    self.vm_phys_split_pages(pfn, oind, order, flind);
                    return Some(pfn);
                }
                if !self.vm_phys_cut_fresh(queue, order, flind) {
                    break;
                }
            }
        }
        None
    }

    /// Returns the upper halves of the block at `pfn` until `order` is left
    /// (`vm_phys_split_pages`).
    fn vm_phys_split_pages(&self, pfn: u32, mut oind: usize, order: usize, flind: usize) {
        let segind = self.page_by_number(pfn).segind.get();
        while oind > order {
            oind -= 1;
            let half = pfn + (1 << oind);
            self.page_by_number(half).segind.set(segind);
            self.freelist_push(
                &self.state().vm_phys_free_queues[flind][oind],
                half,
                oind,
                End::Head,
            );
        }
    }

    /// Cuts a block off the fresh part of a segment of list `flind` and puts it on the list of its
    /// order. Returns false when there is no fresh memory left.
    pub(super) fn vm_phys_cut_fresh(
        &self,
        queue: &FreeQueue<'_, M>,
        order: usize,
        flind: usize,
    ) -> bool {
        for number in 0..self.state().vm_phys_nsegs.get() {
            let seg = self.vm_phys_seg(number);
            let (fresh, end) = (seg.fresh.get(), seg.end.get());
            if seg.freelist.get() as usize != flind || fresh == end {
                continue;
            }
            let aligned = fresh.trailing_zeros() as usize;
            let room = (end - fresh).ilog2() as usize;
            let block = order.max(FRESH_ORDER).min(aligned).min(room).min(VM_NFREEORDER - 1);
            seg.fresh.set(fresh + (1 << block));
            self.page_by_number(fresh).segind.set(to_u16(number));
            self.vm_phys_give(queue, fresh, block);
            return true;
        }
        false
    }

    /// Whether page number `pfn`, which has been used and is not allocated or in a cache, is in a
    /// free block: the host may have seized it. The block's head and order.
    pub(super) fn vm_phys_block_of(&self, _: &FreeQueue<'_, M>, pfn: u32) -> Option<(u32, usize)> {
        let is_used = |seg: &&VmPhysSeg| (seg.start.get()..seg.fresh.get()).contains(&pfn);
        let start = self.vm_phys_segments().find(is_used)?.start.get();
        let blocks = (0..VM_NFREEORDER).map(|order| (pfn & !((1 << order) - 1), order));
        let of_order = |&(head, order): &(u32, usize)| {
            usize::from(self.page_by_number(head).block.get()) == order + 1
        };
        blocks.take_while(|&(head, _)| head >= start).find(of_order)
    }

    /// Takes the free page number `pfn` out of its block (`vm_phys_unfree_page`); the rest of the
    /// block stays free. Panics when the page is in no block.
    pub(super) fn vm_phys_unfree_page(&self, queue: &FreeQueue<'_, M>, pfn: u32) {
        let Some((mut head, mut order)) = self.vm_phys_block_of(queue, pfn) else {
            self.panic(format_args!("vm_phys_unfree_page: page {pfn:#x} is not free"));
        };
        let segind = self.page_by_number(head).segind.get();
        let seg = self.vm_phys_seg(u64::from(segind));
        let queues = &self.state().vm_phys_free_queues[seg.freelist.get() as usize];
        self.freelist_remove(&queues[order], head);
        while order > 0 {
            order -= 1;
            let middle = head + (1 << order);
            let other = if pfn < middle { middle } else { core::mem::replace(&mut head, middle) };
            self.page_by_number(other).segind.set(segind);
            self.freelist_push(&queues[order], other, order, End::Head);
        }
        self.page_by_number(pfn).segind.set(segind);
        self.vm_phys_mark(pfn, 1, Mark::Used);
    }

    /// Frees `2^order` pages (`vm_phys_free_pages`).
    pub fn vm_phys_free_pages(&self, queue: &FreeQueue<'_, M>, m: KPtr<VmPage>, order: usize) {
        let pfn = self.vm_page_number(m);
        self.vm_phys_mark(pfn, 1 << order, Mark::Free);
        self.vm_phys_give(queue, pfn, order);
    }

    /// Puts `2^order` pages from number `pfn` on onto the lists.
    pub(super) fn vm_phys_give(&self, _: &FreeQueue<'_, M>, mut pfn: u32, mut order: usize) {
        let segind = self.page_by_number(pfn).segind.get();
        let seg = self.vm_phys_seg(u64::from(segind));
        let queues = &self.state().vm_phys_free_queues[seg.freelist.get() as usize];
        while order < VM_NFREEORDER - 1 {
            let buddy = pfn ^ (1 << order);
            if buddy < seg.start.get()
                || u64::from(buddy) + (1 << order) > u64::from(seg.fresh.get())
            {
                break;
            }
            let head = self.page_by_number(buddy);
            if usize::from(head.block.get()) != order + 1 {
                break;
            }
            self.freelist_remove(&queues[order], buddy);
            order += 1;
            pfn &= !((1 << order) - 1);
        }
        self.page_by_number(pfn).segind.set(segind);
        self.freelist_push(&queues[order], pfn, order, End::Tail);
    }

    /// Reports the state of `pages` pages from number `pfn` on to the machine.
    #[inline]
    pub(super) fn vm_phys_mark(&self, pfn: u32, pages: u64, mark: Mark) {
        self.machine().mark(phys_of_number(pfn), pages * PAGE_SIZE, mark);
    }

    fn freelist_push(&self, list: &VmFreeList, pfn: u32, order: usize, end: End) {
        self.page_by_number(pfn).block.set(u8::try_from(order + 1).unwrap_or(u8::MAX));
        self.page_list_push(list, pfn, end);
    }

    fn freelist_remove(&self, list: &VmFreeList, pfn: u32) {
        self.page_list_remove(list, pfn);
        self.page_by_number(pfn).block.set(0);
    }

    /// The pages of `list`, by number. Locks: the one of the list.
    #[inline]
    pub(super) fn page_list<'a>(&'a self, list: &'a VmFreeList) -> PageList<'a, M> {
        TailQ::new(PageLinks(self), &list.head, &list.tail)
    }

    /// Puts page number `pfn`, on no list, at an end of `list`. Locks: the one of the list.
    pub(super) fn page_list_push(&self, list: &VmFreeList, pfn: u32, end: End) {
        match end {
            End::Head => self.page_list(list).insert_head(pfn),
            End::Tail => self.page_list(list).insert_tail(pfn),
        }
        list.count.inc();
    }

    /// Takes page number `pfn` off `list`. Its links are clear afterwards: they serve chains of
    /// pages, too. Locks: the one of the list.
    pub(super) fn page_list_remove(&self, list: &VmFreeList, pfn: u32) {
        self.page_list(list).remove(pfn);
        let page = self.page_by_number(pfn);
        page.next.set(0);
        page.prev.set(0);
        list.count.dec();
    }
}

/// Physical address of a structure in the direct map.
pub(crate) fn phys_of<T>(pointer: KPtr<T>) -> Option<GuestPhys> {
    dmap_to_phys(pointer.addr())
}

/// The links of pages on the free lists, in the caches and on the page queues (`pageq`).
#[derive(Debug)]
pub(super) struct PageLinks<'a, M>(&'a Phys<M>);

/// A list of pages, by number.
pub(super) type PageList<'a, M> = TailQ<'a, PageLinks<'a, M>>;

impl<M: PhysMem + Cpu> Links for PageLinks<'_, M> {
    type Link = u32;

    #[inline]
    fn next(&self, pfn: u32) -> &Field<u32> {
        &self.0.page_by_number(pfn).next
    }
}

impl<M: PhysMem + Cpu> BackLinks for PageLinks<'_, M> {
    #[inline]
    fn prev(&self, pfn: u32) -> &Field<u32> {
        &self.0.page_by_number(pfn).prev
    }
}

/// An end of a list.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// The first one.
    Head,
    /// The last one.
    Tail,
}

const _: () = assert!(PAGE_SIZE.is_multiple_of(PAGE_STRUCT));
