//! Objects (`vm_object.c`) and the index of their pages.
//!
//! kernel_object and kmem_object hold the wired pages of the kernel, and are never destroyed.
//! Ranges of pageable maps get anonymous objects (OBJT_DEFAULT) when they are first touched or cut;
//! such an object is destroyed with its last reference, and its pages with it.
//!
//! The pages of an object are linked through themselves in the order of their indices
//! (`object/index.rs`), so entering a page needs no other memory and cannot fail.

mod index;
mod page;

use core::mem::offset_of;
use core::ops::Deref;

use vmkern_abi::addr::{KPtr, PAGE_SHIFT};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{KernelRoots, ObjectFlags, ObjectType, VmObject, VmPage};

pub(in crate::vm) use self::page::Slept;
use super::page::Shortage;
use super::phys::Phys;
use crate::kern::guard::{Guard, Lock};
use crate::kern::lock::{Interlock, LockClass};
use crate::machine::{Cpu, PhysMem};

/// The outcome for one page of a range that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// It is gone, or wired and stays.
    Done,
    /// It was busy: the caller must look again.
    Again,
}

/// Whether an object could be extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coalesced {
    /// It was extended.
    Yes,
    /// It is unchanged.
    No,
}

/// The kind of an object's mutex.
#[derive(Debug)]
enum ObjectLock {}

impl Lock for ObjectLock {
    const CLASS: LockClass = LockClass::Object;
}

/// A locked object: dropping this releases the lock.
#[derive(Debug)]
pub struct LockedObject<'a, M: PhysMem + Cpu> {
    guard: Guard<'a, M, ObjectLock>,
    object: KPtr<VmObject>,
}

impl<'a, M: PhysMem + Cpu> LockedObject<'a, M> {
    /// The object.
    #[inline]
    pub fn pointer(&self) -> KPtr<VmObject> {
        self.object
    }

    /// The lock as the interlock of a sleep that acquires it again.
    fn interlock(&mut self) -> Interlock<'a> {
        self.guard.interlock()
    }

    /// Calls `f` with the lock released. Pages may have come and gone afterwards.
    pub(in crate::vm) fn unlocked<R>(&mut self, f: impl FnOnce() -> R) -> R {
        // The object itself stays: the caller, or an entry of a map, has a reference to it.
        self.guard.unlocked(f)
    }
}

/// Objects, over the pages that they hold: the layer below [`super::pmap::Pmap`].
#[derive(Debug)]
pub struct Object<M> {
    phys: Phys<M>,
}

impl<M> Deref for Object<M> {
    type Target = Phys<M>;

    #[inline]
    fn deref(&self) -> &Phys<M> {
        &self.phys
    }
}

impl<M: PhysMem + Cpu> Object<M> {
    /// Objects over `phys`, none so far.
    pub(in crate::vm) const fn new(phys: Phys<M>) -> Self {
        Self { phys }
    }

    /// kernel_object, which holds the pages of `kmem_alloc`.
    #[must_use]
    pub fn kernel_object(&self) -> KPtr<VmObject> {
        self.global(offset_of!(KernelRoots, kernel_object))
    }

    /// kmem_object, which holds the pages of `kmem_malloc`.
    #[must_use]
    pub fn kmem_object(&self) -> KPtr<VmObject> {
        self.global(offset_of!(KernelRoots, kmem_object))
    }

    /// Whether `object` is kernel_object or kmem_object.
    pub(super) fn is_kernels(&self, object: KPtr<VmObject>) -> bool {
        object == self.kernel_object() || object == self.kmem_object()
    }

    /// Makes kernel_object and kmem_object (`vm_object_init`).
    pub(crate) fn vm_object_init(&self) {
        let size = VM_MAX_KERNEL_ADDRESS.since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT;
        for object in [self.kernel_object(), self.kmem_object()] {
            let object = self.get(object);
            object.ref_count.set(1);
            object.kind.put(ObjectType::Phys);
            object.size.set(size);
            object.generation.set(1);
        }
    }

    /// An anonymous object of `size` pages with one reference (`vm_object_allocate` for
    /// OBJT_DEFAULT). Takes the zone's lock.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the object.
    pub(crate) fn vm_object_allocate(&self, size: u64) -> Result<KPtr<VmObject>, Shortage> {
        if self.fails(FailSite::VmObjectReserve) {
            return Err(Shortage);
        }
        let pointer = self.zone_alloc::<VmObject>().ok_or(Shortage)?;
        let object = self.get(pointer);
        object.ref_count.set(1);
        object.kind.put(ObjectType::Default);
        object.flags.set(ObjectFlags::ONEMAPPING);
        object.size.set(size);
        object.generation.set(1);
        Ok(pointer)
    }

    /// Acquires the object's lock (`VM_OBJECT_LOCK`), until the result is dropped.
    pub fn vm_object_lock(&self, object: KPtr<VmObject>) -> LockedObject<'_, M> {
        LockedObject { guard: self.mtx_guard(&self.get(object).lock), object }
    }

    pub(crate) fn vm_object_assert_locked(&self, object: KPtr<VmObject>) {
        self.mtx_assert_owned(LockClass::Object, &self.get(object).lock.owner);
    }

    /// Adds a reference (`vm_object_reference`); does nothing when `object` is null. Locks: takes
    /// the object's.
    pub fn vm_object_reference(&self, object: KPtr<VmObject>) {
        if object.is_null() {
            return;
        }
        let _locked = self.vm_object_lock(object);
        self.get(object).ref_count.inc();
    }

    /// Drops a reference (`vm_object_deallocate`); does nothing when `object` is null. With the
    /// last reference an anonymous object is destroyed, and its pages, on which no thread works any
    /// more, are freed. Locks: takes the object's.
    pub fn vm_object_deallocate(&self, object: KPtr<VmObject>) {
        if object.is_null() {
            return;
        }
        self.vm_object_deallocate_locked(self.vm_object_lock(object));
    }

    /// [`Object::vm_object_deallocate`] for a locked object. Unlocks it.
    pub(super) fn vm_object_deallocate_locked(&self, object: LockedObject<'_, M>) {
        let o = self.get(object.pointer());
        match o.ref_count.get() {
            0 => self
                .panic(format_args!("vm_object_deallocate: object deallocated too many times: 0")),
            1 if o.kind.is(ObjectType::Phys) => self.panic(format_args!(
                "vm_object_deallocate: the last reference to a kernel object is gone"
            )),
            1 => {
                o.ref_count.set(0);
                return self.vm_object_terminate(object);
            }
            count => o.ref_count.set(count - 1),
        }
        // One mapping is left, so pages that it does not map are unreachable.
        if o.ref_count.get() == 1 && o.kind.is(ObjectType::Default) {
            o.flags.update_locked(|flags| flags | ObjectFlags::ONEMAPPING);
        }
    }

    /// Destroys `object`, anonymous, without references and locked (`vm_object_terminate`): its
    /// pages are freed.
    fn vm_object_terminate(&self, mut locked: LockedObject<'_, M>) {
        let object = locked.pointer();
        let o = self.get(object);
        o.flags.update_locked(|flags| flags | ObjectFlags::DEAD);
        self.vm_object_page_remove(&mut locked, 0, u64::MAX);
        if o.resident_page_count.get() != 0 || o.root.get() != 0 {
            self.panic(format_args!(
                "vm_object_terminate: object {} still has wired pages",
                object.addr()
            ));
        }
        o.kind.put(ObjectType::Dead);
        // Nothing refers to the object any more, so no thread can lock it again.
        drop(locked);
        self.zone_free(object);
    }

    /// Makes `object` (or nothing: null) hold `next_size` bytes more behind the `prev_size` bytes
    /// from `prev_offset` on, if it can (`vm_object_coalesce`): it is anonymous, and nothing else
    /// maps the part behind. Locks: takes the object's.
    #[must_use]
    pub(crate) fn vm_object_coalesce(
        &self,
        object: KPtr<VmObject>,
        prev_offset: u64,
        prev_size: u64,
        next_size: u64,
    ) -> Coalesced {
        if object.is_null() {
            return Coalesced::Yes;
        }
        let o = self.get(object);
        let mut locked = self.vm_object_lock(object);
        let next_pindex = (prev_offset + prev_size) >> PAGE_SHIFT;
        let end = next_pindex + (next_size >> PAGE_SHIFT);
        let extensible = o.kind.is(ObjectType::Default)
            && (o.ref_count.get() <= 1 || o.size.get() == next_pindex);
        if extensible {
            // Pages that an earlier, larger mapping may have left there.
            if next_pindex < o.size.get() {
                self.vm_object_page_remove(&mut locked, next_pindex, end);
            }
            o.size.set(o.size.get().max(end));
        }
        if extensible { Coalesced::Yes } else { Coalesced::No }
    }

    /// Frees the pages of `object` with `first <= pindex < end` (`vm_object_page_remove`,
    /// `clean_only` FALSE). Their mappings are gone already. A page that is still wired becomes
    /// invalid and stays, as in FreeBSD. Locks: takes the page queues'. Sleeps on a busy page, with
    /// the object unlocked.
    pub fn vm_object_page_remove(&self, object: &mut LockedObject<'_, M>, first: u64, end: u64) {
        let obj = self.get(object.pointer());
        let mut pindex = first;
        // The page may be another one, or none, after a sleep.
        while let Some(pfn) = self.index_from(obj, pindex) {
            self.page_point();
            let found = self.page_by_number(pfn).pindex.get();
            if found >= end {
                break;
            }
            pindex = match self.vm_object_page_remove_one(object, self.vm_page_pointer(pfn)) {
                Removal::Done => found + 1,
                Removal::Again => found,
            };
        }
    }

    fn vm_object_page_remove_one(
        &self,
        object: &mut LockedObject<'_, M>,
        m: KPtr<VmPage>,
    ) -> Removal {
        let page = self.page(m);
        if page.wire_count.get() != 0 {
            page.valid.set(0);
            return Removal::Done;
        }
        // After a sleep the page may be gone, and others may have come: the caller looks again.
        if self.vm_page_sleep_if_busy(object, m, "vmopar") == Slept::Yes {
            return Removal::Again;
        }
        self.vm_page_free(&self.page_queues(), m);
        Removal::Done
    }
}
