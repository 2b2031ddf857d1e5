//! Pages of memory (`vm_page.c`): who has which, who is admitted to take one, and what may be done
//! to it.
//!
//! `v_free_count` is the number of pages that an allocation could have, those in CPUs' caches
//! included. Three classes of requests stop at different floors; note that INTERRUPT, which
//! M_NOWAIT means, digs deeper than SYSTEM. `vm_page_alloc` never sleeps and never clears a page: a
//! caller who wants zeros looks at [`PageFlags::ZERO`] and clears the page unless it is set.

use bitflags::bitflags;
use vmkern_abi::addr::{GuestPhys, KPtr, PAGE_SHIFT};
use vmkern_abi::layout::{ObjectType, PageFlags, PageOflags, VmObject, VmPage};

use super::Vm;
use super::pagecache::Cached;
use crate::kern::lock::LockClass;
use crate::kern::sched::PVM;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::{Relock, Sleep};
use crate::machine::{Machine, Supply};

/// Who asks for a page, and so how deep the request may dig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocClass {
    /// Down to `v_free_reserved` (`VM_ALLOC_NORMAL`).
    Normal,
    /// To the last page (`VM_ALLOC_INTERRUPT`).
    Interrupt,
    /// Down to `v_interrupt_free_min` (`VM_ALLOC_SYSTEM`).
    System,
}

bitflags! {
    /// The other `VM_ALLOC_*` flags, with FreeBSD's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocFlags: u32 {
        /// The page comes wired once.
        const WIRED = 0x20;
        /// A zeroed page is welcome: [`PageFlags::ZERO`] tells whether it is one.
        const ZERO = 0x40;
        /// `vm_page_grab` sleeps until it has a page.
        const RETRY = 0x80;
        /// The page comes not busy.
        const NOBUSY = 0x200;
    }
}

/// Whether a function has slept, so that what its caller knew may be wrong now.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slept {
    /// It has.
    Yes,
    /// It has not.
    No,
}

/// A request for a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// The object that it is for.
    pub object: Option<KPtr<VmObject>>,
    /// How deep it may dig.
    pub class: AllocClass,
    /// The rest of what `vm_page_alloc` was asked for.
    pub flags: AllocFlags,
}

/// What is known of a freed page's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Anything.
    Unknown,
    /// Zeros only.
    Zero,
}

impl<M: Machine> Vm<M> {
    /// The page structure behind `m`.
    #[inline]
    pub fn page(&self, m: KPtr<VmPage>) -> &VmPage {
        self.get(m)
    }

    /// Acquires the page-queue mutex (`vm_page_lock_queues`).
    pub fn vm_page_lock_queues(&self) {
        self.mtx_lock(LockClass::PageQueue, &self.state().vm_page_queue_mtx.owner);
    }

    /// Releases the page-queue mutex (`vm_page_unlock_queues`).
    pub fn vm_page_unlock_queues(&self) {
        self.mtx_unlock(LockClass::PageQueue, &self.state().vm_page_queue_mtx.owner);
    }

    pub(crate) fn vm_page_assert_queues_locked(&self) {
        self.mtx_assert_owned(LockClass::PageQueue, &self.state().vm_page_queue_mtx.owner);
    }

    pub(crate) fn free_queue_lock(&self) {
        self.mtx_lock(LockClass::FreeQueue, &self.state().vm_page_queue_free_mtx.owner);
    }

    pub(crate) fn free_queue_unlock(&self) {
        self.mtx_unlock(LockClass::FreeQueue, &self.state().vm_page_queue_free_mtx.owner);
    }

    /// Pages that an allocation could have: the A of FreeBSD's tests, free plus cached.
    #[must_use]
    pub fn vm_page_available(&self) -> u64 {
        self.cnt().v_free_count.get() + self.cnt().v_cache_count.get()
    }

    /// Takes a page, or `None` when the class's floor is reached (`vm_page_alloc`). Never sleeps,
    /// never clears.
    ///
    /// With an object the page is entered at `pindex`, and is busy unless `NOBUSY`; without one
    /// `pindex` is only remembered. Locks: the object's is held; takes the free queue's, or while
    /// pages are plenty a cache's.
    #[must_use]
    pub fn vm_page_alloc(
        &self,
        object: Option<KPtr<VmObject>>,
        pindex: u64,
        class: AllocClass,
        flags: AllocFlags,
    ) -> Option<KPtr<VmPage>> {
        if let Some(object) = object {
            self.vm_object_assert_locked(object);
        }
        if class != AllocClass::Interrupt && self.in_interrupt() {
            self.panic(format_args!("vm_page_alloc(NORMAL|SYSTEM) in interrupt context"));
        }
        // The pagedaemon may dig where others may not, as it works for them.
        let class = if class == AllocClass::Normal && self.is_pagedaemon() {
            AllocClass::System
        } else {
            class
        };
        let want = Want { object, class, flags };
        let m = match self.page_cache_alloc(want) {
            Cached::Page(m) => m,
            Cached::None => self.vm_page_alloc_exact(want)?,
            Cached::Refused => {
                self.free_queue_lock();
                self.vm_page_short();
                self.free_queue_unlock();
                return None;
            }
        };
        match object {
            Some(object) => self.vm_page_insert(m, object, pindex),
            None => self.page(m).pindex.set(pindex),
        }
        Some(m)
    }

    /// Takes a page off the free lists if the class's floor allows it. Locks: takes the free
    /// queue's.
    fn vm_page_alloc_exact(&self, want: Want) -> Option<KPtr<VmPage>> {
        self.free_queue_lock();
        let cnt = self.cnt();
        let reserved = cnt.v_free_reserved.get();
        let floor = match want.class {
            AllocClass::Normal => reserved,
            AllocClass::System => reserved.min(cnt.v_interrupt_free_min.get()),
            AllocClass::Interrupt => 0,
        };
        let floor = floor.saturating_sub(cnt.v_cache_count.get());
        let refused =
            cnt.v_free_count.get() > floor && self.machine().refuses(Supply::Page(want.class));
        if refused || !cnt.v_free_count.take_above(floor) {
            self.vm_page_short();
            self.free_queue_unlock();
            return None;
        }
        let Some(m) = self.vm_phys_alloc_pages(0) else {
            self.panic(format_args!("vm_page_alloc: missing page"))
        };
        self.vm_page_hand_out(m, want);
        if self.vm_paging_needed() {
            self.pagedaemon_wakeup();
        }
        self.free_queue_unlock();
        Some(m)
    }

    /// Notes that a request was not admitted. Locks: the free queue's.
    fn vm_page_short(&self) {
        self.state().vm_pageout_deficit.inc();
        self.pagedaemon_wakeup();
    }

    /// Makes `m`, which was free, what `want` asks for. Locks: that under which it was taken.
    pub(super) fn vm_page_hand_out(&self, m: KPtr<VmPage>, want: Want) {
        let Want { object, flags, .. } = want;
        let page = self.page(m);
        let zero = self.vm_page_is_zero(page);
        if zero {
            self.state().vm_page_zero_count.fetch_sub(1);
        }
        let mut pflags = PageFlags::ALLOCATED | PageFlags::TOUCHED;
        pflags.set(PageFlags::ZERO, zero && flags.contains(AllocFlags::ZERO));
        let unmanaged =
            object.is_none_or(|object| self.get(object).kind.get() == ObjectType::Phys as u32);
        pflags.set(PageFlags::UNMANAGED, unmanaged);
        page.flags.set(pflags);
        let busy = object.is_some() && !flags.contains(AllocFlags::NOBUSY);
        page.oflags.set(if busy { PageOflags::BUSY } else { PageOflags::empty() });
        page.wire_count.set(0);
        if flags.contains(AllocFlags::WIRED) {
            // Not guarded by the free queue's lock alone, as elsewhere it is the page queues' that
            // is held.
            self.cnt().v_wire_count.fetch_add(1);
            page.wire_count.set(1);
        }
        page.act_count.set(0);
        self.page_worked();
    }

    /// Whether a free page is known to hold zeros only.
    pub(super) fn vm_page_is_zero(&self, page: &VmPage) -> bool {
        let flags = page.flags.get();
        flags.contains(PageFlags::ZERO)
            || (!flags.contains(PageFlags::TOUCHED) && self.state().boot_zeroed.get() != 0)
    }

    /// The page of `object` at `pindex`, allocated if need be (`vm_page_grab`). A new one is
    /// cleared with `ZERO`; one that was there is returned as it is.
    ///
    /// With `RETRY` it sleeps until there is a page; without, a shortage is `None`.
    /// Locks: the object's is held, and dropped while sleeping.
    #[must_use]
    pub fn vm_page_grab(
        &self,
        object: KPtr<VmObject>,
        pindex: u64,
        flags: AllocFlags,
    ) -> Option<KPtr<VmPage>> {
        self.vm_object_assert_locked(object);
        loop {
            if let Some(m) = self.vm_page_lookup(object, pindex) {
                if self.vm_page_sleep_if_busy(m, "pgrbwt") == Slept::Yes {
                    if !flags.contains(AllocFlags::RETRY) {
                        return None;
                    }
                    continue;
                }
                if flags.contains(AllocFlags::WIRED) {
                    self.vm_page_lock_queues();
                    self.vm_page_wire(m);
                    self.vm_page_unlock_queues();
                }
                if !flags.contains(AllocFlags::NOBUSY) {
                    self.vm_page_busy(m);
                }
                return Some(m);
            }
            let Some(m) = self.vm_page_alloc(
                Some(object),
                pindex,
                AllocClass::Normal,
                flags - AllocFlags::RETRY,
            ) else {
                self.vm_object_unlock(object);
                self.vm_wait();
                self.vm_object_lock(object);
                if !flags.contains(AllocFlags::RETRY) {
                    return None;
                }
                continue;
            };
            let page = self.page(m);
            if page.valid.get() == 0
                && flags.contains(AllocFlags::ZERO)
                && !page.flags.get().contains(PageFlags::ZERO)
            {
                self.pmap_zero_page(m);
            }
            return Some(m);
        }
    }

    /// The resident page of `object` at `pindex` (`vm_page_lookup`). Locks: the object's is held.
    #[must_use]
    pub fn vm_page_lookup(&self, object: KPtr<VmObject>, pindex: u64) -> Option<KPtr<VmPage>> {
        self.vm_object_assert_locked(object);
        self.index_lookup(self.get(object), pindex).map(|pfn| self.vm_page_pointer(pfn))
    }

    /// Enters `m` into `object` at `pindex` (`vm_page_insert`). Locks: the object's.
    pub fn vm_page_insert(&self, m: KPtr<VmPage>, object: KPtr<VmObject>, pindex: u64) {
        self.vm_object_assert_locked(object);
        let page = self.page(m);
        if !page.object.get().is_null() {
            self.panic(format_args!("vm_page_insert: page already inserted"));
        }
        page.object.set(object);
        page.pindex.set(pindex);
        let object = self.get(object);
        self.index_insert(object, self.vm_page_number(m));
        object.resident_page_count.inc();
        object.generation.update_locked(|n| n.wrapping_add(1));
    }

    /// Takes `m` out of its object, if it has one (`vm_page_remove`). The pmap is not touched.
    /// Locks: the object's and the page queues'.
    pub fn vm_page_remove(&self, m: KPtr<VmPage>) {
        self.vm_page_assert_queues_locked();
        let page = self.page(m);
        let Some(object) = page.object.get().non_null() else { return };
        self.vm_object_assert_locked(object);
        if page.oflags.get().contains(PageOflags::BUSY) {
            self.vm_page_wakeup(m);
        }
        let object = self.get(object);
        self.index_remove(object, self.vm_page_number(m));
        object.resident_page_count.dec();
        object.generation.update_locked(|n| n.wrapping_add(1));
        page.object.set(KPtr::NULL);
    }

    /// Frees `m` (`vm_page_free`). Panics when it is free, busy or wired. Locks: the object's and
    /// the page queues'.
    pub fn vm_page_free(&self, m: KPtr<VmPage>) {
        self.vm_page_free_toq(m, Contents::Unknown);
    }

    /// Frees `m`, which holds zeros only (`vm_page_free_zero`). Locks: the object's and the page
    /// queues'.
    pub fn vm_page_free_zero(&self, m: KPtr<VmPage>) {
        self.vm_page_free_toq(m, Contents::Zero);
    }

    /// Unwires and frees `m`, a page without an object that is wired once. Locks: takes the page
    /// queues'.
    pub fn vm_page_unwire_free(&self, m: KPtr<VmPage>) {
        self.vm_page_free_wired(m, Contents::Unknown);
    }

    /// Puts `m`, a page on no queue, before `next` (or null) in a chain of its owner's.
    pub fn vm_page_chain(&self, m: KPtr<VmPage>, next: KPtr<VmPage>) {
        let next = next.non_null().map_or(0, |next| self.vm_page_number(next));
        self.page(m).next.set(next);
    }

    /// Takes `m` out of the chain that it heads: the next one, or null. The caller has a pointer to
    /// the next one before `m` lets go of it: a look from outside finds the chain at every instant.
    pub fn vm_page_unchain(&self, m: KPtr<VmPage>) -> KPtr<VmPage> {
        let page = self.page(m);
        let next = match page.next.get() {
            0 => KPtr::NULL,
            next => self.vm_page_pointer(next),
        };
        page.next.set(0);
        next
    }

    /// Frees `m`, a page without an object that is wired once. Locks: takes the page queues', once
    /// more if they are held.
    pub(crate) fn vm_page_free_wired(&self, m: KPtr<VmPage>, contents: Contents) {
        self.vm_page_lock_queues();
        self.vm_page_unwire(m);
        self.vm_page_free_toq(m, contents);
        self.vm_page_unlock_queues();
    }

    fn vm_page_free_toq(&self, m: KPtr<VmPage>, contents: Contents) {
        self.vm_page_assert_queues_locked();
        let page = self.page(m);
        if page.busy.get() != 0 {
            self.panic(format_args!("vm_page_free: freeing busy page"));
        }
        if !page.flags.get().contains(PageFlags::ALLOCATED) {
            self.panic(format_args!("vm_page_free: freeing free page"));
        }
        self.page_worked();
        self.vm_pageq_remove(m);
        self.vm_page_remove(m);
        page.valid.set(0);
        page.dirty.set(0);
        match page.wire_count.get() {
            0 => {}
            1 => self.panic(format_args!("vm_page_free: freeing wired page")),
            count => {
                let count = count.cast_signed();
                self.panic(format_args!(
                    "vm_page_free: invalid wire count ({count}), pindex: {:#x}",
                    page.pindex.get()
                ))
            }
        }
        page.pindex.set(0);
        page.private.set(0);
        page.oflags.set(PageOflags::empty());
        if self.page_cache_free(m, contents) {
            return;
        }
        self.free_queue_lock();
        self.vm_page_take_back(m, contents, PageFlags::TOUCHED);
        self.vm_phys_free_pages(m, 0);
        self.cnt().v_free_count.fetch_add(1);
        self.vm_page_free_wakeup();
        self.vm_page_zero_idle_wakeup();
        self.free_queue_unlock();
    }

    /// Makes `m`, which nobody has any more, a free page with `flags`. Locks: that under which it
    /// goes where free pages are.
    pub(super) fn vm_page_take_back(
        &self,
        m: KPtr<VmPage>,
        contents: Contents,
        mut flags: PageFlags,
    ) {
        if contents == Contents::Zero {
            flags |= PageFlags::ZERO;
            self.state().vm_page_zero_count.fetch_add(1);
        }
        self.page(m).flags.set(flags);
    }

    /// Wires `m` once more (`vm_page_wire`). Locks: the page queues'.
    pub fn vm_page_wire(&self, m: KPtr<VmPage>) {
        self.vm_page_assert_queues_locked();
        let page = self.page(m);
        if page.wire_count.get() == 0 {
            self.vm_pageq_remove(m);
            self.cnt().v_wire_count.fetch_add(1);
        }
        page.wire_count.inc();
    }

    /// Unwires `m` once (`vm_page_unwire`, `activate` 1): a managed page that nobody wires any more
    /// goes on the active queue, an unmanaged one on none. Locks: the page queues'.
    pub fn vm_page_unwire(&self, m: KPtr<VmPage>) {
        self.vm_page_assert_queues_locked();
        let page = self.page(m);
        match page.wire_count.get() {
            0 => self.panic(format_args!("vm_page_unwire: invalid wire count: 0")),
            1 => {
                page.wire_count.set(0);
                self.cnt().v_wire_count.fetch_sub(1);
                self.vm_page_activate(m);
            }
            count => page.wire_count.set(count - 1),
        }
    }

    /// Marks `m` busy (`vm_page_busy`). Locks: the object's.
    pub fn vm_page_busy(&self, m: KPtr<VmPage>) {
        let page = self.page(m);
        if page.oflags.get().contains(PageOflags::BUSY) {
            self.panic(format_args!("vm_page_busy: page already busy!!!"));
        }
        page.oflags.update_locked(|flags| flags | PageOflags::BUSY);
    }

    /// Ends the busy state of `m` (`vm_page_wakeup`). Locks: the object's.
    pub fn vm_page_wakeup(&self, m: KPtr<VmPage>) {
        let page = self.page(m);
        if !page.oflags.get().contains(PageOflags::BUSY) {
            self.panic(format_args!("vm_page_wakeup: page not busy!!!"));
        }
        let wanted = page.oflags.get().contains(PageOflags::WANTED);
        page.oflags.update_locked(|flags| flags - PageOflags::BUSY - PageOflags::WANTED);
        if wanted {
            self.wakeup(WaitChannel::of(m));
        }
    }

    /// Whether somebody works on `m`. Locks: the object's.
    pub(crate) fn vm_page_is_busy(&self, m: KPtr<VmPage>) -> bool {
        self.page(m).oflags.get().contains(PageOflags::BUSY) || self.page(m).busy.get() != 0
    }

    /// Waits until nobody works on `m` (`vm_page_sleep_if_busy`, with the wait message `wmesg`).
    /// After a sleep the object may have changed in any way. Locks: the object's is held, and
    /// dropped while sleeping.
    pub(crate) fn vm_page_sleep_if_busy(&self, m: KPtr<VmPage>, wmesg: &'static str) -> Slept {
        if !self.vm_page_is_busy(m) {
            return Slept::No;
        }
        let page = self.page(m);
        page.oflags.update_locked(|flags| flags | PageOflags::WANTED);
        let object = page.object.get();
        let interlock = (LockClass::Object, &self.get(object).lock);
        let (Sleep::Woken | Sleep::TimedOut) =
            self.msleep(WaitChannel::of(m), interlock, PVM, wmesg, 0, Relock::Yes);
        Slept::Yes
    }

    /// Fills the page `m` with zeros through the direct map (`pmap_zero_page`).
    pub fn pmap_zero_page(&self, m: KPtr<VmPage>) {
        self.machine().zero_page(self.vm_page_to_phys(m));
    }
}

/// Physical address of page number `pfn`.
#[must_use]
pub(crate) fn phys_of_number(pfn: u32) -> GuestPhys {
    GuestPhys::new(u64::from(pfn) << PAGE_SHIFT)
}
