//! The balloon: pages that leave the allocator for the host.
//!
//! The driver of the balloon takes blocks by the rules of a NORMAL request, the largest first, up
//! to 2 MiB ([`Phys::balloon_take`]). A block is not taken while threads sleep for pages, nor when
//! fewer than `v_free_reserved` pages would be left; as after any allocation the pagedaemon is
//! woken below its threshold. Taken blocks count as handed out: `v_free_count` falls,
//! `v_page_count` and the thresholds stay.
//!
//! Blocks go back in two steps. [`Phys::balloon_leave`] names the blocks of which the driver then
//! tells the device. When the device has answered, [`Phys::balloon_free`] frees them, with the
//! wakeups of a free. The youngest blocks, which are the smallest, leave first. The device may have
//! discarded their contents, or not: nothing is known of a page that comes back.
//!
//! **Locks.** The free queue's, taken here, guards the lists. Only the driver's thread calls these
//! functions, except [`Phys::balloon_relief`]. None sleeps.

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::layout::{BALLOON_ORDER, Balloon, PageFlags, VmFreeList};
use vmkern_abi::virtio::balloon::StopReason;

use super::page::{FreeQueue, phys_of_number};
use super::phys::{End, Phys};
use crate::machine::{AllocClass, Cpu, Mark, PhysMem};
use crate::num::to_u32;

/// A block of pages in the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonBlock {
    /// Its first page, by number.
    pub first: u32,
    /// Its number of pages, a power of two.
    pub pages: u32,
}

impl BalloonBlock {
    const fn new(first: u32, order: usize) -> Self {
        Self { first, pages: 1 << order }
    }

    /// Physical address of its first page.
    #[must_use]
    pub fn start(self) -> GuestPhys {
        phys_of_number(self.first)
    }

    /// The numbers of its pages.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        self.first..self.first + self.pages
    }
}

/// The largest order of a block of at most `pages` pages; `pages` is not 0.
fn order_within(pages: u64) -> usize {
    (pages.ilog2() as usize).min(BALLOON_ORDER)
}

impl<M: PhysMem + Cpu> Phys<M> {
    /// The balloon's lists.
    fn balloon(&self) -> &Balloon {
        &self.state().balloon
    }

    /// Pages in the balloon.
    #[must_use]
    pub fn balloon_pages(&self) -> u64 {
        self.balloon().pages.get()
    }

    /// Takes one block of at most `most` pages, which is not 0, into the balloon. Locks: takes the
    /// free queue's, and the caches' if the lists have no block.
    ///
    /// # Errors
    /// Why nothing was taken.
    pub fn balloon_take(&self, most: u64) -> Result<BalloonBlock, StopReason> {
        // 1. Threads that sleep for pages come first. A fail point may refuse the block.
        if self.vm_pages_slept_for() {
            return Err(StopReason::Asleep);
        }
        if self.vm_page_must_fail(AllocClass::Normal) {
            return Err(StopReason::NoBlock);
        }
        let queue = self.free_queue();
        // 2. The pages are counted as taken before a block is looked for, as caches of other CPUs
        //    count down without this lock.
        let cnt = self.cnt();
        let floor = cnt.v_free_reserved.get().saturating_sub(cnt.v_cache_count.get());
        let mut order = order_within(most);
        let mut refused = StopReason::Floor;
        loop {
            if cnt.v_free_count.take_leaving(1 << order, floor) {
                if let Some(first) = self.balloon_block(&queue, order) {
                    self.balloon_fill(&queue, first, order);
                    if self.vm_paging_needed() {
                        self.pagedaemon_wakeup(&queue);
                    }
                    return Ok(BalloonBlock::new(first, order));
                }
                cnt.v_free_count.fetch_add(1 << order);
                refused = StopReason::NoBlock;
            }
            // 3. Smaller blocks, down to single pages.
            order = order.checked_sub(1).ok_or(refused)?;
        }
    }

    /// Takes a block off the lists. Pages in CPUs' caches are taken back only for the last order.
    fn balloon_block(&self, queue: &FreeQueue<'_, M>, order: usize) -> Option<u32> {
        if let Some(first) = self.vm_phys_take(queue, order) {
            return Some(first);
        }
        if order > 0 || !self.page_cache_drain(queue) {
            return None;
        }
        self.vm_phys_take(queue, order)
    }

    /// Marks the block at `first`, which is on no list, as the balloon's, and puts it there.
    fn balloon_fill(&self, _: &FreeQueue<'_, M>, first: u32, order: usize) {
        self.vm_phys_mark(first, 1 << order, Mark::Used);
        let segind = self.page_by_number(first).segind.get();
        let mut zero = 0;
        for pfn in BalloonBlock::new(first, order).numbers() {
            let page = self.page_by_number(pfn);
            zero += u64::from(self.vm_page_is_zero(page));
            page.segind.set(segind);
            page.act_count.set(0);
            page.flags.set(
                PageFlags::ALLOCATED
                    | PageFlags::TOUCHED
                    | PageFlags::UNMANAGED
                    | PageFlags::BALLOON,
            );
            self.page_worked();
        }
        self.state().vm_page_zero_count.fetch_sub(zero);
        self.balloon_push(&self.balloon().held, first, order);
        self.balloon().pages.update_locked(|pages| pages + (1 << order));
    }

    /// Puts the block at `first`, on no list, at the head of `list`.
    fn balloon_push(&self, list: &VmFreeList, first: u32, order: usize) {
        self.page_by_number(first).private.set(to_u32(order as u64));
        self.page_list_push(list, first, End::Head);
    }

    /// The order of the block at `first`, in the balloon.
    fn balloon_order(&self, first: u32) -> usize {
        self.page_by_number(first).private.get() as usize
    }

    /// Takes a block of at most `most` pages, which is not 0, off those that stay, and puts it with
    /// those that leave: the device must be told of it before [`Phys::balloon_free`]. `None` when
    /// no block stays. Locks: takes the free queue's.
    #[must_use]
    pub fn balloon_leave(&self, most: u64) -> Option<BalloonBlock> {
        let _queue = self.free_queue();
        let held = &self.balloon().held;
        let first = self.page_list(held).first()?;
        let mut order = self.balloon_order(first);
        self.page_list_remove(held, first);
        // The upper halves of a block that is too large stay.
        while order > order_within(most) {
            order -= 1;
            self.balloon_push(held, first + (1 << order), order);
        }
        self.balloon_push(&self.balloon().leaving, first, order);
        Some(BalloonBlock::new(first, order))
    }

    /// Frees the blocks of which the device has been told, and wakes the threads that wait for
    /// pages. Returns the number of pages. Locks: takes the free queue's, once for each block.
    pub fn balloon_free(&self) -> u64 {
        let mut freed = 0;
        loop {
            // Between two blocks other CPUs may take or free pages; only this thread changes the
            // list.
            let queue = self.free_queue();
            let leaving = &self.balloon().leaving;
            let Some(first) = self.page_list(leaving).first() else { return freed };
            let order = self.balloon_order(first);
            let pages = 1_u64 << order;
            self.page_list_remove(leaving, first);
            for pfn in BalloonBlock::new(first, order).numbers() {
                let page = self.page_by_number(pfn);
                page.private.set(0);
                page.flags.set(PageFlags::TOUCHED);
                self.page_worked();
            }
            self.balloon().pages.update_locked(|count| count - pages);
            self.vm_phys_mark(first, pages, Mark::Free);
            self.vm_phys_give(&queue, first, order);
            self.cnt().v_free_count.fetch_add(pages);
            self.vm_page_free_wakeup(&queue);
            self.vm_page_zero_idle_wakeup(&queue);
            freed += pages;
        }
    }

    /// Whether a thread sleeps until pages are free.
    fn vm_pages_slept_for(&self) -> bool {
        self.vm_pages_awaited() && self.vm_page_sleepers()
    }

    /// How many pages of the balloon the guest needs back, when the event `vm_lowmem` happens: as
    /// many as lead out of the shortage, if a request was refused since the pagedaemon's last pass.
    /// A request that only came below a threshold is not a reason. Locks: none.
    #[must_use]
    pub fn balloon_relief(&self) -> u64 {
        let (state, cnt) = (self.state(), self.cnt());
        let deficit = state.vm_pageout_deficit.get();
        let wanted = state.vm_pages_wanted.get();
        if deficit == 0 && wanted == 0 {
            return 0;
        }
        let enough = (cnt.v_free_min.get() + deficit).max(wanted);
        enough.saturating_sub(self.vm_page_available()).min(self.balloon_pages())
    }
}

const _: () = assert!(PAGE_SIZE == 4096, "the balloon counts in pages of 4 KiB");
