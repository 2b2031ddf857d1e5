//! The paging queues (`vm_pageq.c`): managed pages that nobody has wired, the least recently used
//! first.
//!
//! Only pages of anonymous objects get here. Every function needs the page-queue mutex
//! ([`PageQueues`]).

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{PQ_ACTIVE, PQ_INACTIVE, PageFlags, VmFreeList, VmPage};

use super::page::PageQueues;
use super::phys::Phys;
use crate::machine::{Cpu, PhysMem};

impl<M: PhysMem + Cpu> Phys<M> {
    /// Puts `m` at the end of the active queue (`vm_page_activate`), unless it is wired or
    /// unmanaged.
    pub(crate) fn vm_page_activate(&self, queues: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        let page = self.page(m);
        if page.queue.get() == PQ_ACTIVE
            || page.wire_count.get() != 0
            || page.flags.get().contains(PageFlags::UNMANAGED)
        {
            return;
        }
        self.vm_pageq_remove(queues, m);
        self.vm_pageq_enqueue(queues, PQ_ACTIVE, m);
    }

    /// Takes `m` off its queue, if it is on one (`vm_pageq_remove`).
    pub(crate) fn vm_pageq_remove(&self, _: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        let page = self.page(m);
        let Some(list) = self.vm_page_queue(page.queue.get()) else { return };
        let (prev, next) = (page.prev.get(), page.next.get());
        match prev {
            0 => list.head.set(next),
            prev => self.page_by_number(prev).next.set(next),
        }
        match next {
            0 => list.tail.set(prev),
            next => self.page_by_number(next).prev.set(prev),
        }
        list.count.dec();
        self.vm_pageq_count(page.queue.get(), |n| n - 1);
        page.queue.set(0);
        page.prev.set(0);
        page.next.set(0);
    }

    /// Puts `m`, on no queue, at the end of `queue` (`vm_page_enqueue`).
    fn vm_pageq_enqueue(&self, _: &PageQueues<'_, M>, queue: u8, m: KPtr<VmPage>) {
        let Some(list) = self.vm_page_queue(queue) else { return };
        let (page, pfn, last) = (self.page(m), self.vm_page_number(m), list.tail.get());
        page.queue.set(queue);
        page.prev.set(last);
        page.next.set(0);
        match last {
            0 => list.head.set(pfn),
            last => self.page_by_number(last).next.set(pfn),
        }
        list.tail.set(pfn);
        list.count.inc();
        self.vm_pageq_count(queue, |n| n + 1);
    }

    fn vm_page_queue(&self, queue: u8) -> Option<&VmFreeList> {
        match queue {
            PQ_INACTIVE => Some(&self.state().vm_page_queues[0]),
            PQ_ACTIVE => Some(&self.state().vm_page_queues[1]),
            _ => None,
        }
    }

    fn vm_pageq_count(&self, queue: u8, change: impl FnOnce(u64) -> u64) {
        let cnt = self.cnt();
        let counter = if queue == PQ_ACTIVE { &cnt.v_active_count } else { &cnt.v_inactive_count };
        counter.update_locked(change);
    }
}
