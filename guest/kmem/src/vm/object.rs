//! Objects (`vm_object.c`) and the index of their pages.
//!
//! kernel_object and kmem_object hold the wired pages of the kernel, and live for ever. Ranges of pageable maps get
//! anonymous objects (OBJT_DEFAULT) when they are first touched or cut; such an object goes with its last reference,
//! and its pages with it.
//!
//! The index of an object is a radix tree of whole pages from page index to page number (see [`IndexNode`]). Nodes
//! for a range are made by [`Vm::vm_object_reserve`] before anything else is changed, so that entering a page cannot
//! fail; the reservation pins the leaves, and a node that neither a page nor a pin needs any more is given back. As an
//! empty node holds zeros only, it goes back as a zeroed page.

use core::mem::offset_of;

use vmkern_abi::addr::{KPtr, PAGE_SHIFT};
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{
    INDEX_LEVELS, INDEX_SHIFT, IndexNode, KernelRoots, ObjectFlags, ObjectType, PageFlags, VmObject, VmPage,
};

use super::page::{AllocClass, AllocFlags, Contents, Slept, phys_of_number};
use super::{Shortage, Vm};
use crate::kern::lock::LockClass;
use crate::machine::{Machine, Supply};
use crate::num::to_usize;

/// What became of one page of a range that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// It is gone, or wired and stays.
    Done,
    /// It was busy: look again.
    Again,
}

/// Whether an object could be extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coalesced {
    /// It has been.
    Yes,
    /// It is as it was.
    No,
}

/// Pages behind one leaf.
const LEAF_SPAN: u64 = 1 << INDEX_SHIFT;

/// Pins on the index of an object over a range of pages, made by [`Vm::vm_object_reserve`].
#[must_use = "the index stays pinned until the reservation is given to vm_object_unreserve"]
#[derive(Debug)]
pub struct IndexReservation {
    object: KPtr<VmObject>,
    first: u64,
    count: u64,
}

/// Most nodes that the index of an object can need for `count` pages that follow each other.
pub(super) const fn index_pages(count: u64) -> u64 {
    let (mut nodes, mut below, mut level) = (0, count, 0);
    while level < INDEX_LEVELS {
        below = below.div_ceil(LEAF_SPAN) + 1;
        nodes += below;
        level += 1;
    }
    nodes
}

/// Slot of the node of `level` (0 for leaves) on the way to `pindex`.
const fn slot(pindex: u64, level: u32) -> usize {
    to_usize((pindex >> (INDEX_SHIFT * level)) % LEAF_SPAN)
}

impl<M: Machine> Vm<M> {
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
            object.kind.set(ObjectType::Phys as u32);
            object.size.set(size);
            object.generation.set(1);
            object.index_levels.set(INDEX_LEVELS);
        }
    }

    /// An anonymous object of `size` pages with one reference (`vm_object_allocate` for OBJT_DEFAULT). Takes the zone's
    /// lock.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the object.
    pub(crate) fn vm_object_allocate(&self, size: u64) -> Result<KPtr<VmObject>, Shortage> {
        let pointer = self.zone_alloc::<VmObject>().ok_or(Shortage)?;
        let object = self.get(pointer);
        object.ref_count.set(1);
        object.kind.set(ObjectType::Default as u32);
        object.flags.set(ObjectFlags::ONEMAPPING);
        object.size.set(size);
        object.generation.set(1);
        object.index_levels.set(1);
        Ok(pointer)
    }

    /// Acquires the object's lock (`VM_OBJECT_LOCK`).
    pub fn vm_object_lock(&self, object: KPtr<VmObject>) {
        self.mtx_lock(LockClass::Object, &self.get(object).lock.owner);
    }

    /// Releases the object's lock (`VM_OBJECT_UNLOCK`).
    pub fn vm_object_unlock(&self, object: KPtr<VmObject>) {
        self.mtx_unlock(LockClass::Object, &self.get(object).lock.owner);
    }

    pub(crate) fn vm_object_assert_locked(&self, object: KPtr<VmObject>) {
        self.mtx_assert_owned(LockClass::Object, &self.get(object).lock.owner);
    }

    /// One more reference (`vm_object_reference`); nothing when `object` is null. Locks: takes the object's.
    pub fn vm_object_reference(&self, object: KPtr<VmObject>) {
        if object.is_null() {
            return;
        }
        self.vm_object_lock(object);
        self.get(object).ref_count.update(|n| n + 1);
        self.vm_object_unlock(object);
    }

    /// One reference less (`vm_object_deallocate`); nothing when `object` is null. The last one takes an anonymous
    /// object and its pages, which nobody works on any more, along. Locks: takes the object's.
    pub fn vm_object_deallocate(&self, object: KPtr<VmObject>) {
        if object.is_null() {
            return;
        }
        self.vm_object_lock(object);
        self.vm_object_deallocate_locked(object);
    }

    /// [`Vm::vm_object_deallocate`] of an object that is locked. Unlocks it.
    pub(super) fn vm_object_deallocate_locked(&self, object: KPtr<VmObject>) {
        let o = self.get(object);
        match o.ref_count.get() {
            0 => self.panic(format_args!("vm_object_deallocate: object deallocated too many times: 0")),
            1 if o.kind.get() == ObjectType::Phys as u32 => {
                self.panic(format_args!("vm_object_deallocate: the last reference to a kernel object is gone"))
            }
            1 => {
                o.ref_count.set(0);
                return self.vm_object_terminate(object);
            }
            count => o.ref_count.set(count - 1),
        }
        // One mapping is left, which makes the pages that it does not show unreachable.
        if o.ref_count.get() == 1 && o.kind.get() == ObjectType::Default as u32 {
            o.flags.update(|flags| flags | ObjectFlags::ONEMAPPING);
        }
        self.vm_object_unlock(object);
    }

    /// Destroys `object`, anonymous, without references and locked (`vm_object_terminate`): its pages are freed.
    fn vm_object_terminate(&self, object: KPtr<VmObject>) {
        let o = self.get(object);
        o.flags.update(|flags| flags | ObjectFlags::DEAD);
        self.vm_object_page_remove(object, 0, u64::MAX);
        if o.resident_page_count.get() != 0 || o.root.get() != 0 {
            self.panic(format_args!("vm_object_terminate: object {} still has wired pages", object.addr()));
        }
        o.kind.set(ObjectType::Dead as u32);
        self.vm_object_unlock(object);
        self.zone_free(object);
    }

    /// Makes `object` (or nothing: null) hold `next_size` bytes more behind the `prev_size` bytes from `prev_offset`
    /// on, if it can (`vm_object_coalesce`): it is anonymous, and nobody else maps what is behind.
    /// Locks: takes the object's.
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
        self.vm_object_lock(object);
        let next_pindex = (prev_offset + prev_size) >> PAGE_SHIFT;
        let end = next_pindex + (next_size >> PAGE_SHIFT);
        let extensible = o.kind.get() == ObjectType::Default as u32
            && (o.ref_count.get() <= 1 || o.size.get() == next_pindex)
            && end <= 1 << (INDEX_SHIFT * INDEX_LEVELS);
        if extensible {
            // What an earlier, larger mapping may have left there.
            if next_pindex < o.size.get() {
                self.vm_object_page_remove(object, next_pindex, end);
            }
            o.size.set(o.size.get().max(end));
        }
        self.vm_object_unlock(object);
        if extensible { Coalesced::Yes } else { Coalesced::No }
    }

    /// Frees the pages of `object` with `first <= pindex < end` (`vm_object_page_remove`, `clean_only` FALSE). Their
    /// mappings are gone already. A page that is still wired loses its validity and stays, as in FreeBSD.
    /// Locks: the object's is held; takes the page queues'. Sleeps on a busy page.
    pub fn vm_object_page_remove(&self, object: KPtr<VmObject>, first: u64, end: u64) {
        self.vm_object_assert_locked(object);
        let obj = self.get(object);
        let mut pindex = first;
        while pindex < end && obj.resident_page_count.get() != 0 {
            let Some((leaf, span)) = self.index_leaf(obj, pindex) else {
                pindex = self.index_skip(obj, pindex);
                continue;
            };
            let stop = end.min(span);
            // The pin keeps the leaf while its last page goes.
            let node_page = self.page_by_number(leaf);
            node_page.private.update(|n| n + 1);
            let node = self.at::<IndexNode>(phys_of_number(leaf));
            for index in pindex..stop {
                let entry = &node.slots[slot(index, 0)];
                // The page may be another one, or none, after a sleep.
                while entry.get() != 0
                    && self.vm_object_page_remove_one(self.vm_page_pointer(entry.get())) == Removal::Again
                {
                }
            }
            node_page.private.update(|n| n - 1);
            self.index_prune(obj, pindex);
            pindex = stop;
        }
    }

    fn vm_object_page_remove_one(&self, m: KPtr<VmPage>) -> Removal {
        let page = self.page(m);
        if page.wire_count.get() != 0 {
            page.valid.set(0);
            return Removal::Done;
        }
        if self.vm_page_sleep_if_busy(m, "vmopar") == Slept::Yes {
            return Removal::Again;
        }
        self.vm_page_lock_queues();
        self.vm_page_free(m);
        self.vm_page_unlock_queues();
        Removal::Done
    }

    /// Makes the index nodes for pages `[first, first + count)` and pins them, so that entering pages there cannot
    /// fail. Locks: the object's is held.
    ///
    /// # Errors
    /// [`Shortage`] when a page for a node was not to be had; nothing has changed then.
    pub fn vm_object_reserve(
        &self,
        object: KPtr<VmObject>,
        first: u64,
        count: u64,
    ) -> Result<IndexReservation, Shortage> {
        let leaves = (first + count).div_ceil(LEAF_SPAN) - first / LEAF_SPAN;
        self.vm_object_assert_locked(object);
        let obj = self.get(object);
        self.index_raise(obj, first + count - 1)?;
        for done in 0..leaves {
            let pindex = (first / LEAF_SPAN + done) * LEAF_SPAN;
            match self.index_make_leaf(obj, pindex) {
                Ok(leaf) => self.page_by_number(leaf).private.update(|n| n + 1),
                Err(Shortage) => {
                    self.index_prune(obj, pindex);
                    self.index_unpin(obj, first, done);
                    return Err(Shortage);
                }
            }
        }
        Ok(IndexReservation { object, first, count })
    }

    /// Ends a reservation: nodes that no page needs are given back. Locks: the object's is held.
    pub fn vm_object_unreserve(&self, reservation: IndexReservation) {
        let IndexReservation { object, first, count } = reservation;
        let leaves = (first + count).div_ceil(LEAF_SPAN) - first / LEAF_SPAN;
        self.vm_object_assert_locked(object);
        self.index_unpin(self.get(object), first, leaves);
    }

    /// Keeps the index of the reserved range for ever: the range is a submap's, whose allocations then need no node.
    pub(crate) fn vm_object_keep(&self, reservation: IndexReservation) {
        let IndexReservation { .. } = reservation;
    }

    fn index_unpin(&self, obj: &VmObject, first: u64, leaves: u64) {
        for leaf in 0..leaves {
            let pindex = (first / LEAF_SPAN + leaf) * LEAF_SPAN;
            if let Some((leaf, _)) = self.index_leaf(obj, pindex) {
                self.page_by_number(leaf).private.update(|n| n - 1);
                self.index_prune(obj, pindex);
            }
        }
    }

    /// Page number of the node of `level` on the way to `pindex`, or 0.
    fn index_node(&self, obj: &VmObject, pindex: u64, level: u32) -> u32 {
        let levels = obj.index_levels.get();
        if pindex >> (INDEX_SHIFT * levels) != 0 || level >= levels {
            return 0;
        }
        let mut pfn = obj.root.get();
        let mut at = levels - 1;
        while pfn != 0 && at > level {
            pfn = self.at::<IndexNode>(phys_of_number(pfn)).slots[slot(pindex, at)].get();
            at -= 1;
        }
        pfn
    }

    /// The leaf for `pindex`, with the first index past it.
    fn index_leaf(&self, obj: &VmObject, pindex: u64) -> Option<(u32, u64)> {
        match self.index_node(obj, pindex, 0) {
            0 => None,
            leaf => Some((leaf, (pindex / LEAF_SPAN + 1) * LEAF_SPAN)),
        }
    }

    /// The first index past the largest missing subtree that holds `pindex`.
    fn index_skip(&self, obj: &VmObject, pindex: u64) -> u64 {
        let levels = obj.index_levels.get();
        if pindex >> (INDEX_SHIFT * levels) != 0 {
            return u64::MAX;
        }
        let level = (0..levels).rev().find(|&level| self.index_node(obj, pindex, level) == 0).unwrap_or(0);
        let span = 1 << (INDEX_SHIFT * (level + 1));
        (pindex / span + 1) * span
    }

    pub(crate) fn index_lookup(&self, obj: &VmObject, pindex: u64) -> Option<u32> {
        let (leaf, _) = self.index_leaf(obj, pindex)?;
        let pfn = self.at::<IndexNode>(phys_of_number(leaf)).slots[slot(pindex, 0)].get();
        (pfn != 0).then_some(pfn)
    }

    pub(crate) fn index_insert(&self, obj: &VmObject, pindex: u64, pfn: u32) {
        let Some((leaf, _)) = self.index_leaf(obj, pindex) else {
            self.panic(format_args!("vm_page_insert: no index node was reserved for {pindex:#x}"));
        };
        let entry = &self.at::<IndexNode>(phys_of_number(leaf)).slots[slot(pindex, 0)];
        if entry.get() != 0 {
            self.panic(format_args!("vm_page_insert: offset already allocated"));
        }
        entry.set(pfn);
        self.page_by_number(leaf).private.update(|n| n + 1);
    }

    pub(crate) fn index_remove(&self, obj: &VmObject, pindex: u64) {
        let Some((leaf, _)) = self.index_leaf(obj, pindex) else {
            self.panic(format_args!("vm_page_remove: page {pindex:#x} is not in its object"));
        };
        self.at::<IndexNode>(phys_of_number(leaf)).slots[slot(pindex, 0)].set(0);
        self.page_by_number(leaf).private.update(|n| n - 1);
        self.index_prune(obj, pindex);
    }

    /// The leaf for `pindex`, made with its parents if need be. On a shortage the caller prunes the path.
    fn index_make_leaf(&self, obj: &VmObject, pindex: u64) -> Result<u32, Shortage> {
        let mut link = &obj.root;
        let mut parent: Option<&VmPage> = None;
        for level in (0..obj.index_levels.get()).rev() {
            if link.get() == 0 {
                link.set(self.index_node_alloc(obj)?);
                if let Some(parent) = parent {
                    parent.private.update(|n| n + 1);
                }
            }
            if level != 0 {
                parent = Some(self.page_by_number(link.get()));
                link = &self.at::<IndexNode>(phys_of_number(link.get())).slots[slot(pindex, level)];
            }
        }
        Ok(link.get())
    }

    /// Puts levels on top of the index until it can hold a page at `pindex`.
    fn index_raise(&self, obj: &VmObject, pindex: u64) -> Result<(), Shortage> {
        while pindex >> (INDEX_SHIFT * obj.index_levels.get()) != 0 {
            let below = obj.root.get();
            if below != 0 {
                let root = self.index_node_alloc(obj)?;
                self.at::<IndexNode>(phys_of_number(root)).slots[0].set(below);
                self.page_by_number(root).private.set(1);
                obj.root.set(root);
            }
            obj.index_levels.update(|levels| levels + 1);
        }
        Ok(())
    }

    fn index_node_alloc(&self, obj: &VmObject) -> Result<u32, Shortage> {
        if self.machine().refuses(Supply::IndexNode) {
            return Err(Shortage);
        }
        let flags = AllocFlags::WIRED | AllocFlags::ZERO;
        let m = self.vm_page_alloc(None, 0, AllocClass::Interrupt, flags).ok_or(Shortage)?;
        if !self.page(m).flags.get().contains(PageFlags::ZERO) {
            self.pmap_zero_page(m);
        }
        obj.index_pages.update(|n| n + 1);
        Ok(self.vm_page_number(m))
    }

    /// Gives back the nodes on the way to `pindex` that have nothing in them, from the leaf up.
    fn index_prune(&self, obj: &VmObject, pindex: u64) {
        let levels = obj.index_levels.get();
        for level in 0..levels {
            let pfn = self.index_node(obj, pindex, level);
            if pfn == 0 {
                continue;
            }
            if self.page_by_number(pfn).private.get() != 0 {
                return;
            }
            if level == levels - 1 {
                obj.root.set(0);
            } else {
                let parent = self.index_node(obj, pindex, level + 1);
                self.at::<IndexNode>(phys_of_number(parent)).slots[slot(pindex, level + 1)].set(0);
                self.page_by_number(parent).private.update(|n| n - 1);
            }
            obj.index_pages.update(|n| n - 1);
            self.vm_page_free_wired(self.vm_page_pointer(pfn), Contents::Zero);
        }
    }
}
