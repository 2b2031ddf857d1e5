//! The pagedaemon (`vm_pageout.c`).
//!
//! It asks all handlers of vm_lowmem for memory, and repeats that every half second as long as
//! pages are needed. It does not scan the paging queues yet. [`super::wait`] says which threads
//! wait for it, and for what.
//!
//! Until the pagedaemon's thread is created, all thresholds are 0. It is created asleep: most
//! guests never need it to run.

use vmkern_abi::atomic::{Ordering, fence};

use super::page::FreeQueue;
use super::thread::ThreadSpec;
use super::{Shortage, Vm, VmMachine, Wait};
use crate::kern::sched::PVM;
use crate::kern::synch::{Relock, Sleep};
use crate::kern::thread::PAGEDAEMON_TID;

/// Largest transfer of the buffer cache in bytes (`MAXBSIZE`).
const MAXBSIZE: u64 = 65536;
/// Pages that no SYSTEM request may take (`v_interrupt_free_min`).
const INTERRUPT_FREE_MIN: u64 = 2;

impl<M: VmMachine> Vm<M> {
    /// Computes the thresholds, and makes the pagedaemon's thread, which sleeps until pages are
    /// needed for the first time.
    ///
    /// # Errors
    /// [`Shortage`] when there is no memory for the thread.
    pub fn vm_pageout_start(&self) -> Result<(), Shortage> {
        let start = Self::vm_pageout;
        let spec =
            ThreadSpec { tid: PAGEDAEMON_TID, name: "pagedaemon", priority: PVM, start, arg: 0 };
        let thread =
            self.kthread_create_asleep(&spec, self.pagedaemon_channel(), "psleep", Wait::No)?;
        self.state().pageproc.set(thread);
        self.vm_pageout_init();
        Ok(())
    }

    /// The pagedaemon (`vm_pageout`), from the end of its first sleep on. Never returns.
    fn vm_pageout(&self, _arg: u64) {
        let needed = &self.state().vm_pages_needed;
        let mut pass = 0_u32;
        loop {
            if needed.is_set() {
                self.cnt().v_pdwakeups.inc();
            }
            // 1. The pass: everything that can give memory back is asked.
            self.vm_pageout_scan();
            let mut queue = self.free_queue();
            // 2. What it has brought. A CPU that has freed a page to its cache sees that it is
            //    needed, or is seen here to have freed it.
            fence(Ordering::SeqCst);
            if needed.is_set() && !self.vm_page_count_min() {
                if !self.vm_paging_needed() {
                    needed.lower();
                }
                self.wakeup(self.free_count_channel());
            }
            // 3. The sleep: short while there is not enough, else until pages are needed.
            if needed.is_set() {
                // Still not enough: a second pass follows at once, the next ones take their time.
                pass += 1;
                if pass > 1 {
                    // Pages may come and go, and `needed` with them: the next turn looks again.
                    self.pagedaemon_sleep(&mut queue, (self.hz() / 2).max(1));
                }
            } else {
                pass = if pass > 1 { 1 } else { 0 };
                // As above. When this returns, a thread needs pages, or has needed some.
                self.pagedaemon_sleep(&mut queue, 0);
            }
        }
    }

    /// Sleeps until pages are needed, for `timo` ticks at most, or without a limit if that is 0.
    /// The free queue is unlocked during the sleep.
    fn pagedaemon_sleep(&self, queue: &mut FreeQueue<'_, M>, timo: u64) {
        let (channel, interlock) = (self.pagedaemon_channel(), queue.interlock());
        // Pages may have been freed or taken: the caller's loop reads counts and flags again.
        let (Sleep::Woken | Sleep::TimedOut) =
            self.msleep(channel, interlock, PVM, "psleep", timo, Relock::Yes);
    }

    /// One pass of the pagedaemon (`vm_pageout_scan`), without the scan of the paging queues.
    fn vm_pageout_scan(&self) {
        self.vm_lowmem();
        self.uma_reclaim();
        let queue = self.free_queue();
        self.state().vm_pageout_deficit.set(0);
        self.page_cache_drain(&queue);
    }

    /// Computes the thresholds from the number of pages and the pages free now, as FreeBSD's
    /// pagedaemon does first (`vm_pageout`).
    fn vm_pageout_init(&self) {
        let cnt = self.cnt();
        let (pages, free) = (cnt.v_page_count.get(), cnt.v_free_count.get());
        let page_count = if pages < 2000 { 8 } else { 16 };
        let free_min = 4 + pages.saturating_sub(1024) / 200;
        let pageout_free_min = 2 * MAXBSIZE / 4096 + INTERRUPT_FREE_MIN;
        let reserved = page_count + pageout_free_min + pages / 768;
        cnt.v_interrupt_free_min.set(INTERRUPT_FREE_MIN);
        cnt.v_pageout_free_min.set(pageout_free_min);
        cnt.v_free_reserved.set(reserved);
        cnt.v_free_severe.set(free_min / 2 + reserved);
        let free_min = free_min + reserved;
        cnt.v_free_min.set(free_min);
        let target = if free > 6144 { 4 } else { 2 } * free_min + reserved;
        cnt.v_free_target.set(target);
        let (cache_min, inactive) =
            if free > 2048 { (target, 3 * target / 2) } else { (0, free / 4) };
        cnt.v_cache_min.set(cache_min);
        cnt.v_cache_max.set(2 * cache_min);
        cnt.v_inactive_target.set(inactive.min(free / 3));
    }
}
