//! Clearing free pages while there is nothing else to do (`vm_zeroidle.c`,
//! `vm_phys_zero_pages_idle`).
//!
//! The thread `pagezero` runs when otherwise only the idle threads could run. While fewer than four
//! fifths of the free pages are known to be zero, it takes a dirty page off the free lists, clears
//! it, and puts it back. When four fifths are zero, it sleeps until fewer than two thirds are. The
//! free queue stays locked while one page is cleared, so that page counts as free all the time: an
//! allocation that needs that very page waits for the lock, and the lock's owner always runs.
//! FreeBSD unlocks the queue, and the page belongs to no list in the meantime. As in FreeBSD of
//! 2008, it is off unless `vm.idlezero_enable` says otherwise.
//!
//! A system at rest has no thread that can run, including this one, so the host never sees its work
//! half done.

use core::mem::offset_of;

use vmkern_abi::addr::KPtr;
use vmkern_abi::boot::Tunables;
use vmkern_abi::layout::{KernelRoots, PageFlags, RQ_PPQ, VM_NFREELIST, VmPage};

use super::page::FreeQueue;
use super::phys::Phys;
use super::thread::ThreadSpec;
use super::{Shortage, Vm, VmMachine, Wait};
use crate::kern::sched::PRI_MAX_IDLE;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::{Relock, Sleep};
use crate::kern::thread::PAGEZERO_TID;
use crate::machine::{Cpu, PhysMem};

/// Seconds after which it looks again without a wakeup.
const LOOK_AGAIN: u64 = 300;

impl<M: VmMachine> Vm<M> {
    /// Creates the thread, asleep, if `vm.idlezero_enable` is set (`pagezero_start`), and wakes it
    /// if there is work.
    ///
    /// # Errors
    /// [`Shortage`] when there is no memory for the thread.
    pub(crate) fn vm_pagezero_start(&self, tunables: &Tunables) -> Result<(), Shortage> {
        if tunables.vm_idlezero_enable.unwrap_or(0) == 0 {
            return Ok(());
        }
        let (priority, start) = (PRI_MAX_IDLE - RQ_PPQ, Self::vm_pagezero);
        let spec = ThreadSpec { tid: PAGEZERO_TID, name: "pagezero", priority, start, arg: 0 };
        self.kthread_create_asleep(&spec, self.zero_state_channel(), "pgzero", Wait::No)?;
        self.state().idlezero_enable.raise();
        self.state().pagezero_sleeps.raise();
        self.vm_page_zero_idle_wakeup(&self.free_queue());
        Ok(())
    }

    /// The thread (`vm_pagezero`). Never returns.
    fn vm_pagezero(&self, _arg: u64) {
        loop {
            let mut queue = self.free_queue();
            if !self.vm_page_zero_check(&queue) || !self.vm_page_zero_idle(&queue) {
                self.state().pagezero_sleeps.raise();
                let (channel, timo) = (self.zero_state_channel(), self.hz() * LOOK_AGAIN);
                // Pages may have been freed or taken: the counts are read again.
                let (Sleep::Woken | Sleep::TimedOut) =
                    self.msleep(channel, queue.interlock(), 0, "pgzero", timo, Relock::Yes);
            }
        }
    }
}

impl<M: PhysMem + Cpu> Phys<M> {
    /// Whether free pages should be cleared (`vm_page_zero_check`): until four fifths of them are
    /// zero, and then not before fewer than two thirds are.
    fn vm_page_zero_check(&self, _: &FreeQueue<'_, M>) -> bool {
        let state = self.state();
        let (zero, free) = (state.vm_page_zero_count.get(), self.cnt().v_free_count.get());
        let enough = if state.zero_state.is_set() { free * 2 / 3 } else { free * 4 / 5 };
        state.idlezero_enable.is_set() && zero < enough
    }

    /// Clears a free page (`vm_page_zero_idle`). Returns whether there was one to clear.
    fn vm_page_zero_idle(&self, queue: &FreeQueue<'_, M>) -> bool {
        let (state, cnt) = (self.state(), self.cnt());
        state.zero_state.lower();
        let Some(m) = self.vm_phys_dirty_page(queue) else { return false };
        self.pmap_zero_page(m);
        self.page(m).flags.set(PageFlags::TOUCHED | PageFlags::ZERO);
        self.vm_phys_free_pages(queue, m, 0);
        state.vm_page_zero_count.fetch_add(1);
        state.cnt_prezero.inc();
        if state.vm_page_zero_count.get() >= cnt.v_free_count.get() * 4 / 5 {
            state.zero_state.raise();
        }
        true
    }

    /// Takes a free page that is not known to be zero off its list. The search continues where the
    /// last one ended.
    fn vm_phys_dirty_page(&self, queue: &FreeQueue<'_, M>) -> Option<KPtr<VmPage>> {
        let cursor = &self.state().zeroidle_cursor;
        loop {
            let from = cursor.get();
            let used = |from: u32, to: u32| {
                let clip = move |pfn: u32| pfn.clamp(from, to);
                self.vm_phys_segments()
                    .flat_map(move |seg| clip(seg.start.get())..clip(seg.fresh.get()))
            };
            let dirty = |&pfn: &u32| {
                let page = self.page_by_number(pfn);
                !page.flags.get().contains(PageFlags::ALLOCATED)
                    && !self.vm_page_is_zero(page)
                    && self.vm_phys_block_of(queue, pfn).is_some()
            };
            if let Some(pfn) = used(from, u32::MAX).chain(used(0, from)).find(dirty) {
                cursor.set(pfn + 1);
                self.vm_phys_unfree_page(queue, pfn);
                return Some(self.vm_page_pointer(pfn));
            }
            // Memory that was never used may also be dirty.
            let is_dirty = !self.state().boot_zeroed.is_set();
            if !is_dirty || !(0..VM_NFREELIST).any(|list| self.vm_phys_cut_fresh(queue, 0, list)) {
                return None;
            }
        }
    }

    /// Wakes the thread if it sleeps and there is work (`vm_page_zero_idle_wakeup`).
    #[inline]
    pub(super) fn vm_page_zero_idle_wakeup(&self, queue: &FreeQueue<'_, M>) {
        let sleeps = &self.state().pagezero_sleeps;
        if sleeps.is_set() && self.vm_page_zero_check(queue) {
            sleeps.lower();
            self.wakeup(self.zero_state_channel());
        }
    }

    fn zero_state_channel(&self) -> WaitChannel {
        WaitChannel::from(self.roots().addr().add(offset_of!(KernelRoots, zero_state) as u64))
    }
}
