//! Pages of objects (`vm_page.c`): the place of a page, its busy state, its allocation and its end.
//!
//! A page on which a thread works is busy: no other thread frees it, wires it or maps it, and a
//! thread that wants to waits ([`Object::vm_page_sleep_if_busy`]). Everything here needs the
//! object's lock; if only the page is given, the lock of its object.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{ObjectType, PageFlags, PageOflags, VM_PAGE_BITS_ALL, VmPage};

use super::{LockedObject, Object};
use crate::kern::sched::PVM;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::{Relock, Sleep};
use crate::machine::{AllocClass, Cpu, PhysMem};
use crate::vm::page::{AllocFlags, Contents, Managed, PageQueues, Want};

/// Whether a function has slept, after which the caller must check everything again.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slept {
    /// It has.
    Yes,
    /// It has not.
    No,
}

impl<M: PhysMem + Cpu> Object<M> {
    /// Allocates a page for `object`, enters it at `pindex`, and returns it, or `None` when the
    /// class's floor is reached (`vm_page_alloc`). Never sleeps, never clears. The page is busy
    /// unless `NOBUSY`. Locks: takes the free queue's, or while pages are plenty a cache's.
    #[must_use]
    pub fn vm_page_alloc(
        &self,
        object: &LockedObject<'_, M>,
        pindex: u64,
        class: AllocClass,
        flags: AllocFlags,
    ) -> Option<KPtr<VmPage>> {
        let is_phys = self.get(object.pointer()).kind.is(ObjectType::Phys);
        let is_busy = !flags.contains(AllocFlags::NOBUSY);
        let m = self.vm_page_take(Want {
            class,
            flags,
            managed: if is_phys { Managed::No } else { Managed::Yes },
            oflags: if is_busy { PageOflags::BUSY } else { PageOflags::empty() },
        })?;
        self.intr_window();
        self.vm_page_insert(m, object, pindex);
        Some(m)
    }

    /// The page of `object` at `pindex`, allocated if necessary (`vm_page_grab`). With `ZERO` a new
    /// page is cleared; a resident page is returned as it is.
    ///
    /// With `RETRY` it sleeps until there is a page; without it, a shortage returns `None`. Locks:
    /// the object's is held, and dropped while sleeping.
    #[must_use]
    pub fn vm_page_grab(
        &self,
        object: &mut LockedObject<'_, M>,
        pindex: u64,
        flags: AllocFlags,
    ) -> Option<KPtr<VmPage>> {
        loop {
            // 1. A resident page, once no thread works on it.
            if let Some(m) = self.vm_page_lookup(object, pindex) {
                // After a sleep another page may be at `pindex`, or none: it is looked up again.
                if self.vm_page_sleep_if_busy(object, m, "pgrbwt") == Slept::Yes {
                    if !flags.contains(AllocFlags::RETRY) {
                        return None;
                    }
                    continue;
                }
                if flags.contains(AllocFlags::WIRED) {
                    self.vm_page_wire(&self.page_queues(), m);
                }
                if !flags.contains(AllocFlags::NOBUSY) {
                    self.vm_page_busy(m);
                }
                return Some(m);
            }
            // 2. A new page, cleared if the caller wants that.
            let Some(m) =
                self.vm_page_alloc(object, pindex, AllocClass::Normal, flags - AllocFlags::RETRY)
            else {
                // Pages may come and go, at `pindex` too: the search starts over.
                object.unlocked(|| self.vm_wait());
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

    /// The resident page of `object` at `pindex` (`vm_page_lookup`).
    #[must_use]
    pub fn vm_page_lookup(
        &self,
        object: &LockedObject<'_, M>,
        pindex: u64,
    ) -> Option<KPtr<VmPage>> {
        self.index_lookup(self.get(object.pointer()), pindex).map(|pfn| self.vm_page_pointer(pfn))
    }

    /// Enters `m` into `object` at `pindex` (`vm_page_insert`).
    pub fn vm_page_insert(&self, m: KPtr<VmPage>, object: &LockedObject<'_, M>, pindex: u64) {
        let object = object.pointer();
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

    /// Removes `m` from its object, if it has one (`vm_page_remove`). The pmap is not touched.
    /// Locks: the object's.
    pub fn vm_page_remove(&self, _: &PageQueues<'_, M>, m: KPtr<VmPage>) {
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

    /// Frees `m` (`vm_page_free`). Panics when it is free, busy or wired. Locks: the object's.
    pub fn vm_page_free(&self, queues: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        self.vm_page_free_toq(queues, m, Contents::Unknown);
    }

    /// Frees `m`, which holds zeros only (`vm_page_free_zero`). Locks: the object's.
    pub fn vm_page_free_zero(&self, queues: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        self.vm_page_free_toq(queues, m, Contents::Zero);
    }

    fn vm_page_free_toq(&self, queues: &PageQueues<'_, M>, m: KPtr<VmPage>, contents: Contents) {
        self.vm_page_free_prep(queues, m);
        self.vm_page_remove(queues, m);
        self.vm_page_free_finish(queues, m, contents);
    }

    /// Notes that all of `m` may differ from its copy in swap (`vm_page_dirty`). Locks: the
    /// object's.
    pub(in crate::vm) fn vm_page_dirty(&self, m: KPtr<VmPage>) {
        self.page(m).dirty.set(VM_PAGE_BITS_ALL);
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

    /// Whether a thread works on `m`. Locks: the object's.
    pub(crate) fn vm_page_is_busy(&self, m: KPtr<VmPage>) -> bool {
        self.page(m).oflags.get().contains(PageOflags::BUSY) || self.page(m).busy.get() != 0
    }

    /// Waits until no thread works on `m` (`vm_page_sleep_if_busy`, with the wait message `wmesg`).
    /// After a sleep its object `object` may have changed in any way, because it is unlocked during
    /// the sleep.
    pub(crate) fn vm_page_sleep_if_busy(
        &self,
        object: &mut LockedObject<'_, M>,
        m: KPtr<VmPage>,
        wmesg: &'static str,
    ) -> Slept {
        if !self.vm_page_is_busy(m) {
            return Slept::No;
        }
        let page = self.page(m);
        page.oflags.update_locked(|flags| flags | PageOflags::WANTED);
        let interlock = object.interlock();
        // The page may be busy again, freed, or of another object: the caller looks it up again.
        let (Sleep::Woken | Sleep::TimedOut) =
            self.msleep(WaitChannel::of(m), interlock, PVM, wmesg, 0, Relock::Yes);
        Slept::Yes
    }
}
