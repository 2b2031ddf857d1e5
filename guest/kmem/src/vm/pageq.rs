//! The paging queues (`vm_pageq.c`): managed pages that are not wired, the least recently used
//! first.
//!
//! Only pages of anonymous objects get here. Every function needs the page-queue mutex
//! ([`PageQueues`]).

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{PQ_ACTIVE, PQ_INACTIVE, PageFlags, VmFreeList, VmPage};

use super::page::PageQueues;
use super::phys::{End, Phys};
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

    /// Removes `m` from its queue, if it is on one (`vm_pageq_remove`).
    pub(crate) fn vm_pageq_remove(&self, _: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        let page = self.page(m);
        let Some(list) = self.vm_page_queue(page.queue.get()) else { return };
        self.page_list_remove(list, self.vm_page_number(m));
        self.vm_pageq_count(page.queue.get(), |n| n - 1);
        page.queue.set(0);
    }

    /// Puts `m`, on no queue, at the end of `queue` (`vm_page_enqueue`).
    fn vm_pageq_enqueue(&self, _: &PageQueues<'_, M>, queue: u8, m: KPtr<VmPage>) {
        let Some(list) = self.vm_page_queue(queue) else { return };
        self.page(m).queue.set(queue);
        self.page_list_push(list, self.vm_page_number(m), End::Tail);
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
