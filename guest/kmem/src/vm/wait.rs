//! Waiting for pages (the waiting half of `vm_page.c` and `vm_pageout.c`).
//!
//! A caller that needs a page and may sleep calls [`Phys::vm_wait`], which wakes the pagedaemon and
//! sleeps on `v_free_count` without looking at it. Progress comes from two sides: a page that is
//! freed when `v_free_min` pages are free wakes all sleepers, and so does the pagedaemon, after it
//! has asked all handlers for memory ([`super::pageout`]).
//!
//! A caller that needs many pages at once, for page tables, also sleeps in `vmwait`, until that
//! many are free ([`Phys::vm_wait_for`]); FreeBSD panics there.

use core::mem::offset_of;

use vmkern_abi::atomic::{Ordering, fence};
use vmkern_abi::layout::{KernelRoots, VmMeter};

use super::page::FreeQueue;
use super::phys::Phys;
use crate::kern::sched::{PSWP, PUSER, PVM};
use crate::kern::seeded;
use crate::kern::sleepq::{WaitChannel, has_sleepers};
use crate::kern::synch::{Relock, Sleep};
use crate::machine::{Cpu, PhysMem};

impl<M: PhysMem + Cpu> Phys<M> {
    /// Sleeps on `channel` with the free-queue mutex, whose guard is `queue`, as the interlock. The
    /// free queue is not locked afterwards.
    fn sleep_for_pages(
        &self,
        queue: FreeQueue<'_, M>,
        channel: WaitChannel,
        pri: u8,
        wmesg: &'static str,
    ) {
        // Pages have been freed, and others may have taken them: the caller tries again.
        let (Sleep::Woken | Sleep::TimedOut) =
            self.msleep(channel, queue.hand_over(), pri, wmesg, 0, Relock::Drop);
    }

    /// The channel of threads that wait for pages (`&cnt.v_free_count`).
    pub(super) fn free_count_channel(&self) -> WaitChannel {
        self.state_channel(offset_of!(KernelRoots, meter) + offset_of!(VmMeter, v_free_count))
    }

    /// The channel of the pagedaemon until pages are needed (`&vm_pages_needed`).
    pub(super) fn pagedaemon_channel(&self) -> WaitChannel {
        self.state_channel(offset_of!(KernelRoots, vm_pages_needed))
    }

    /// The channel of the pagedaemon when it needs a page itself (`&vm_pageout_pages_needed`).
    fn pageout_pages_channel(&self) -> WaitChannel {
        self.state_channel(offset_of!(KernelRoots, vm_pageout_pages_needed))
    }

    /// The channel of threads that wait for many pages (`&vm_pages_wanted`).
    fn pages_wanted_channel(&self) -> WaitChannel {
        self.state_channel(offset_of!(KernelRoots, vm_pages_wanted))
    }

    fn state_channel(&self, offset: usize) -> WaitChannel {
        WaitChannel::from(self.roots().addr().add(offset as u64))
    }

    /// Whether the calling thread is the pagedaemon (`curproc == pageproc`).
    pub(crate) fn is_pagedaemon(&self) -> bool {
        let pageproc = self.state().pageproc.get();
        !pageproc.is_null() && self.current_thread() == pageproc
    }

    /// Sleeps until pages have been freed (`VM_WAIT`). The caller tries again, and may find that
    /// others have taken them. Locks: none may be held.
    pub fn vm_wait(&self) {
        let queue = self.free_queue();
        if self.is_pagedaemon() {
            self.state().vm_pageout_pages_needed.raise();
            self.sleep_for_pages(queue, self.pageout_pages_channel(), PSWP, "VMWait");
        } else {
            self.pagedaemon_wakeup(&queue);
            self.sleep_for_pages(queue, self.free_count_channel(), PVM, "vmwait");
        }
    }

    /// Sleeps until `pages` pages are free, for a caller that needs that many at once and takes
    /// none before. If they are already free it returns at once; for fewer than `v_free_min` it
    /// waits like [`Phys::vm_wait`]. The caller tries again, and may find that others have taken
    /// them. Locks: none may be held.
    pub fn vm_wait_for(&self, pages: u64) {
        if pages < self.cnt().v_free_min.get() {
            // As below: the caller tries again with the pages that are free then.
            return self.vm_wait();
        }
        let queue = self.free_queue();
        let wanted = &self.state().vm_pages_wanted;
        let others = wanted.get();
        wanted.set(if others == 0 { pages } else { others.min(pages) });
        // A CPU that has freed a page to a cache sees that it is wanted, or this thread sees the
        // freed page.
        fence(Ordering::SeqCst);
        if self.vm_page_available() >= pages {
            wanted.set(others);
            return;
        }
        self.pagedaemon_wakeup(&queue);
        let (pri, wmesg) = if self.is_pagedaemon() { (PSWP, "VMWait") } else { (PVM, "vmwait") };
        self.sleep_for_pages(queue, self.pages_wanted_channel(), pri, wmesg);
    }

    /// Whether a sleep for pages can end: there is a pagedaemon, which has set the thresholds, and
    /// threads can sleep.
    pub(super) fn vm_can_wait(&self) -> bool {
        self.cnt().v_free_min.get() != 0 && !self.is_cold()
    }

    /// Sleeps like [`Phys::vm_wait`], for a page fault, which is served after the kernel
    /// (`VM_WAITPFAULT`).
    pub fn vm_waitpfault(&self) {
        let queue = self.free_queue();
        if !seeded::WAKES_NOBODY {
            self.pagedaemon_wakeup(&queue);
        }
        self.sleep_for_pages(queue, self.free_count_channel(), PUSER, "pfault");
    }

    /// Wakes the pagedaemon unless it already knows that pages are needed (`pagedaemon_wakeup`).
    pub(super) fn pagedaemon_wakeup(&self, _: &FreeQueue<'_, M>) {
        let needed = &self.state().vm_pages_needed;
        if !needed.is_set() && !self.is_pagedaemon() {
            needed.raise();
            self.wakeup(self.pagedaemon_channel());
        }
    }

    /// Whether a thread, other than the pagedaemon until it is needed, sleeps for pages. Locks:
    /// takes the scheduler's.
    pub(super) fn vm_page_sleepers(&self) -> bool {
        let channels =
            [self.free_count_channel(), self.pageout_pages_channel(), self.pages_wanted_channel()];
        channels.into_iter().any(|channel| has_sleepers(self, channel))
    }

    /// Has the pagedaemon make a pass now, even if it knows that pages are needed and sleeps for
    /// half a second: there are pages in the balloon, and the event of the pass brings them back.
    pub(super) fn pagedaemon_hurry(&self, _: &FreeQueue<'_, M>) {
        if !self.is_pagedaemon() {
            self.state().vm_pages_needed.raise();
            self.wakeup(self.pagedaemon_channel());
        }
    }

    /// Whether a thread waits for pages to be freed.
    #[inline]
    pub(super) fn vm_pages_awaited(&self) -> bool {
        let state = self.state();
        state.vm_pages_needed.is_set()
            || state.vm_pageout_pages_needed.is_set()
            || state.vm_pages_wanted.get() != 0
    }

    /// Wakes the threads for which the page that was just freed is enough (`vm_page_free_wakeup`).
    pub(super) fn vm_page_free_wakeup(&self, _: &FreeQueue<'_, M>) {
        let state = self.state();
        let pageout_free_min = self.cnt().v_pageout_free_min.get();
        if state.vm_pageout_pages_needed.is_set() && self.vm_page_available() >= pageout_free_min {
            state.vm_pageout_pages_needed.lower();
            self.wakeup(self.pageout_pages_channel());
        }
        if state.vm_pages_needed.is_set() && !self.vm_page_count_min() {
            state.vm_pages_needed.lower();
            self.wakeup(self.free_count_channel());
        }
        let wanted = &state.vm_pages_wanted;
        if wanted.get() != 0 && self.vm_page_available() >= wanted.get() {
            wanted.set(0);
            self.wakeup(self.pages_wanted_channel());
        }
    }

    /// Whether the free pages are below `v_free_severe` (`vm_page_count_severe`).
    #[must_use]
    pub fn vm_page_count_severe(&self) -> bool {
        self.cnt().v_free_severe.get() > self.vm_page_available()
    }

    /// Whether the free pages are below `v_free_min` (`vm_page_count_min`).
    #[must_use]
    pub fn vm_page_count_min(&self) -> bool {
        self.cnt().v_free_min.get() > self.vm_page_available()
    }

    /// Whether the pagedaemon should work (`vm_paging_needed`).
    #[must_use]
    pub fn vm_paging_needed(&self) -> bool {
        self.cnt().v_free_reserved.get() + self.cnt().v_cache_min.get() > self.vm_page_available()
    }

    /// Clock ticks a second.
    pub(crate) fn hz(&self) -> u64 {
        self.cnt().hz.get()
    }
}
