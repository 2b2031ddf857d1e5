//! Kernel memory management (`vm_kern.c`), in the order of the original.
//!
//! | function | address space | pages | fails |
//! |---|---|---|---|
//! | [`Vm::kmem_alloc_nofault`] | yes | none | no room |
//! | [`Vm::kmem_alloc`] | yes | zeroed, NORMAL class; waits for them | no room |
//! | [`Vm::kmem_free`] | | | never |
//! | [`Vm::kmem_suballoc`] | a map of it | waits for its own | by a panic |
//! | [`Vm::kmem_malloc`] | yes | INTERRUPT or SYSTEM class | `NOWAIT` only; else waits, panics |
//! | [`Vm::kmem_alloc_wait`] | waits for it | at the first touch, pageable | larger than the map |
//! | [`Vm::kmem_free_wakeup`] | | | never |
//!
//! Pages of `kmem_alloc_wait` are zeroed, those of `kmem_malloc` with `ZERO` only.
//!
//! Code that the original has inline and that is a function of its own here is at the end.
//!
//! Three rules are stricter than in 2008. First, for a size of 0, or one that wraps to 0 when it is
//! rounded up to pages, every function allocates nothing and leaks nothing. Second, everything that
//! an allocation needs besides its pages (page tables, a map entry) is allocated before the map is
//! changed, so a shortage leaves no trace. A caller that may sleep waits for these pages as for
//! others, unless there are more of them than managed pages: such a request can never succeed, and
//! fails at once, without taking a page or waking a thread. Third, a sleep lasts at least one tick,
//! while FreeBSD's division of `hz` by four yields 0 for `kern.hz` below 4.

use core::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT, PAGE_SIZE, round_page};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kmem::{KernReturn, MallocFlags, MapId};
use vmkern_abi::kva::{KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{
    PageFlags, Protection, Thread, VM_PAGE_BITS_ALL, VmMap, VmMapEntry, VmObject,
};

use super::map::{EntrySpec, FindSpace, Lookup, NoRange};
use super::object::LockedObject;
use super::page::AllocFlags;
use super::pmap::Wired;
use super::{Shortage, Vm, VmMachine};
use crate::kern::seeded;
use crate::kern::sleepq::WaitChannel;
use crate::machine::AllocClass;
use crate::num::to_usize;

/// Bytes of whole pages for a request of `size` bytes, or `None` when there are none or too many.
fn request(size: u64) -> Option<u64> {
    round_page(size).filter(|&size| size != 0)
}

/// The pages of an allocation in their object: the address determines the index (`OFF_TO_IDX`).
fn indices(addr: GuestVirt, size: u64) -> core::ops::Range<u64> {
    let first = addr.since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT;
    first..first + (size >> PAGE_SHIFT)
}

impl<M: VmMachine> Vm<M> {
    /// Allocates `size` bytes of address space, rounded up to pages, with no object and no mappings
    /// (`kmem_alloc_nofault`). A fault inside it is a panic: `pmap_qenter` makes its mappings.
    ///
    /// `None` when there is no room, no page for the page tables, or `size` is 0 or wraps.
    /// Locks: takes the map's. Never sleeps.
    #[must_use]
    pub fn kmem_alloc_nofault(&self, map: KPtr<VmMap>, size: u64) -> Option<GuestVirt> {
        let size = request(size)?;
        let min = self.get(map).min_offset();
        self.vm_map_find(map, &EntrySpec::NOFAULT, min, size, FindSpace::Any).ok()
    }

    /// [`Vm::kmem_alloc_nofault`] for a caller that may sleep: it waits for the pages that describe
    /// the range. Locks: takes the map's. Sleeps.
    pub(super) fn kmem_alloc_nofault_wait(&self, map: KPtr<VmMap>, size: u64) -> Option<GuestVirt> {
        let size = request(size)?;
        let min = self.get(map).min_offset();
        loop {
            match self.vm_map_find(map, &EntrySpec::NOFAULT, min, size, FindSpace::Any) {
                // The map is not locked, and may change in any way: the search for room starts
                // over.
                Err(NoRange::Pages(pages)) if self.vm_can_wait() => self.vm_wait_for(pages),
                result => return result.ok(),
            }
        }
    }

    /// Allocates `size` bytes, rounded up to pages, of wired zeroed memory (`kmem_alloc`).
    ///
    /// `None` when there is no room, when the page tables and entry for the range take more pages
    /// than are managed, or when `size` is 0 or wraps; it waits for pages. Locks: takes the map's
    /// and kernel_object's. Sleeps.
    #[must_use]
    pub fn kmem_alloc(&self, map: KPtr<VmMap>, size: u64) -> Option<GuestVirt> {
        let size = request(size)?;
        let kernel_object = self.kernel_object();

        // 1. Room in the map determines the address, and the address the place in the object.
        let locked = self.vm_map_locked(map);
        let addr = self.kmem_space_wait(map, size, kernel_object).ok()?;
        self.kmem_enter(map, addr, size, kernel_object);
        // The entry may merge with a neighbour now. It stays, unless a thread frees a range that
        // has not been returned yet.
        drop(locked);
        self.intr_window();

        // 2. The pages are allocated before vm_map_wire, whose faults then only map and wire them.
        let mut object = self.vm_object_lock(kernel_object);
        for pindex in indices(addr, size) {
            self.page_point();
            let flags = AllocFlags::NOBUSY | AllocFlags::ZERO | AllocFlags::RETRY;
            if let Some(mem) = self.vm_page_grab(&mut object, pindex, flags) {
                self.page(mem).valid.set(VM_PAGE_BITS_ALL);
                if !self.page(mem).flags.get().contains(PageFlags::UNMANAGED) {
                    self.panic(format_args!("kmem_alloc: page {} is managed", mem.addr()));
                }
            }
        }
        // The pages are neither busy nor wired: a free of the range would free them.
        drop(object);
        self.intr_window();

        // 3. Finally, the data is wired. The range is the entry just made: only a free of it while
        // the map was unlocked can leave a hole.
        while let Err(code) = self.vm_map_wire(map, addr, addr.add(size)) {
            if code != KernReturn::ResourceShortage {
                self.kmem_alloc_abandon(map, addr, size);
                self.panic(format_args!("kmem_alloc: wiring {addr} failed: {code}"));
            }
            // Nothing is wired, and no lock is held: the wiring starts over.
            self.vm_wait();
        }
        Some(addr)
    }

    /// Frees an allocation that [`Vm::kmem_alloc`], [`Vm::kmem_alloc_nofault`] or
    /// [`Vm::kmem_malloc`] made in `map` (`kmem_free`): every page that `[addr, addr + size)`
    /// touches, with its contents.
    ///
    /// A range that wraps is ignored, and so are parts that are not allocated. Locks: takes the
    /// map's. Never fails.
    pub fn kmem_free(&self, map: KPtr<VmMap>, addr: GuestVirt, size: u64) {
        let end = addr.checked_add(size).and_then(|end| round_page(end.get()));
        if let Some(end) = end {
            self.vm_map_remove(map, addr.page(), GuestVirt::new(end));
        }
    }

    /// Makes a map of its own over `size` bytes of `parent` (`kmem_suballoc`); its ends are the
    /// map's. It is not a system map until the caller says so. Panics when there is no room, when
    /// its page tables take more pages than are managed, or when `size` is 0 or wraps; it waits for
    /// pages, once there is a pagedaemon. Locks: takes the parent's. Sleeps.
    #[must_use]
    pub fn kmem_suballoc(&self, parent: KPtr<VmMap>, size: u64) -> KPtr<VmMap> {
        // 1. The range of the parent, which determines the ends of the map.
        let size = round_page(size).unwrap_or(0);
        let min = self.get(parent).min_offset();
        let min = loop {
            match self.vm_map_find(parent, &EntrySpec::EMPTY, min, size, FindSpace::Any) {
                Ok(min) => break min,
                // As in `kmem_alloc_nofault_wait`: the search for room starts over.
                Err(NoRange::Pages(pages)) if self.vm_can_wait() => self.vm_wait_for(pages),
                Err(why) => self.panic(format_args!(
                    "kmem_suballoc: bad status return of {}",
                    why.code() as u32
                )),
            }
        };
        // 2. The map itself.
        let max = min.add(size);
        let result = loop {
            let created = if self.fail_point_sleepable(FailSite::KmemSuballocMap).is_some() {
                Err(Shortage)
            } else {
                self.vm_map_create(min, max)
            };
            match created {
                Ok(result) => break result,
                // The range of the parent stays taken.
                Err(Shortage) if self.vm_can_wait() => self.vm_wait(),
                Err(Shortage) => self.panic(format_args!("kmem_suballoc: cannot create submap")),
            }
        };
        // 3. The range becomes the map's: from now on faults in it go through the map.
        while let Err(code) = self.vm_map_submap(parent, min, max, result) {
            if code != KernReturn::ResourceShortage || !self.vm_can_wait() {
                self.panic(format_args!("kmem_suballoc: unable to change range to submap"));
            }
            // The parent may change during the wait, but not this range.
            self.vm_wait();
        }
        result
    }

    /// Allocates `size` bytes, rounded up to pages, of wired memory for the higher allocators
    /// (`kmem_malloc`), from kmem_map or another system submap. The memory is zeroed only with
    /// `ZERO`.
    ///
    /// With `NOWAIT` it never sleeps, and may take the very last page unless `USE_RESERVE` is also
    /// set. Without `NOWAIT` it waits for pages without a limit, and for address space at most nine
    /// seconds, in which it asks eight times for some to be freed; then it panics. It returns
    /// `None` with `NOWAIT` when there is no room or too few pages, and always when the page tables
    /// and entry for the range take more pages than are managed, or `size` is 0 or wraps. Locks:
    /// takes the map's and kmem_object's. Sleeps unless `NOWAIT`.
    #[must_use]
    pub fn kmem_malloc(
        &self,
        map: KPtr<VmMap>,
        size: u64,
        flags: MallocFlags,
    ) -> Option<GuestVirt> {
        let size = request(size)?;
        let kmem_object = self.kmem_object();

        // 1. Room in the map determines the address, and the address the place in the object. The
        // map is locked from here on.
        let addr = self.kmem_malloc_space(map, size, flags)?;

        // 2. The entry keeps others out of the range if the map is unlocked to wait for pages.
        self.kmem_enter(map, addr, size, kmem_object);

        // 3. The pages, busy so that no other thread works on them before they are mapped.
        self.kmem_malloc_pages(map, addr, size, flags)?;

        // 4. The entry is wired, and may merge with its neighbours, which are also wired. The
        // object is unlocked here, because the merge takes its lock to drop a reference.
        let entry = self.kmem_malloc_entry(map, addr, size);
        self.get(entry).wired_count.set(1);
        self.vm_map_simplify_entry(map, entry);

        // 5. The mappings. A page is no longer busy once it is mapped.
        self.intr_window();
        let object = self.vm_object_lock(kmem_object);
        for (pindex, offset) in indices(addr, size).zip((0..).step_by(to_usize(PAGE_SIZE))) {
            self.page_point();
            if let Some(m) = self.vm_page_lookup(&object, pindex) {
                // The kernel's page tables exist, so this does not block.
                self.pmap_enter(addr.add(offset), Protection::ALL, m, Protection::ALL, Wired::Yes);
                self.vm_page_wakeup(m);
            }
        }
        // No thread removes a page while the map is locked. Once it is unlocked, neighbours may
        // merge with the entry.
        drop(object);
        self.vm_map_unlock(map);
        Some(addr)
    }

    /// The first step of [`Vm::kmem_malloc`]: room, with a reference to kmem_object. The map is
    /// locked afterwards, or unlocked when there is no room. Without `NOWAIT` it panics when eight
    /// calls for memory have made no room.
    fn kmem_malloc_space(
        &self,
        map: KPtr<VmMap>,
        size: u64,
        flags: MallocFlags,
    ) -> Option<GuestVirt> {
        let nowait = flags.contains(MallocFlags::NOWAIT);
        let kmem_object = self.kmem_object();

        // 1. Free room. A caller that may sleep waits for the pages for its entry and page tables.
        self.vm_map_lock(map);
        let mut space = if nowait {
            self.kmem_space(map, size, kmem_object)
        } else {
            self.kmem_space_wait(map, size, kmem_object)
        };
        if let Err(why) = space {
            if !(seeded::LEAVES_A_LOCK && nowait) {
                // Room may come and go from here on: the search starts over.
                self.vm_map_unlock(map);
            }
            if nowait || !matches!(why, NoRange::Refused(_)) {
                return None;
            }
            // 2. Room that others free when they are asked.
            for i in 0..8 {
                self.vm_lowmem();
                self.uma_reclaim();
                self.vm_map_lock(map);
                space = self.kmem_space_wait(map, size, kmem_object);
                if space.is_ok() {
                    break;
                }
                // As above: a free in the meantime may make room.
                self.vm_map_unlock(map);
                let timo = ((self.hz() / 4) * (i + 1)).max(1);
                // No other thread knows this channel: the sleep always times out.
                let _ = self.tsleep(self.nokva_channel(), 0, "nokva", timo);
            }
        }
        let Ok(addr) = space else {
            // FreeBSD prints both as `long`.
            let (size, total) = (size.cast_signed(), self.get(map).size.get().cast_signed());
            self.panic(format_args!(
                "kmem_malloc({size}): kmem_map too small: {total} total allocated"
            ))
        };
        Some(addr)
    }

    /// The third step of [`Vm::kmem_malloc`]: a wired, busy page for each index of the range.
    /// `None` with `NOWAIT` when pages run out: then everything is freed again, and the map is
    /// unlocked. Locks: the map is locked, and unlocked while it waits; takes kmem_object's.
    fn kmem_malloc_pages(
        &self,
        map: KPtr<VmMap>,
        addr: GuestVirt,
        size: u64,
        flags: MallocFlags,
    ) -> Option<()> {
        // 1. A request with NOWAIT alone may come from an interrupt, and may take the last pages;
        // all others leave them.
        let nowait = flags.contains(MallocFlags::NOWAIT);
        let class = match flags & (MallocFlags::NOWAIT | MallocFlags::USE_RESERVE) {
            MallocFlags::NOWAIT => AllocClass::Interrupt,
            _ => AllocClass::System,
        };
        let mut pflags = AllocFlags::WIRED;
        pflags.set(AllocFlags::ZERO, flags.contains(MallocFlags::ZERO));

        // 2. The pages one by one, with as many waits as they need.
        let mut object = self.vm_object_lock(self.kmem_object());
        for pindex in indices(addr, size) {
            self.page_point();
            let m = loop {
                if let Some(m) = self.vm_page_alloc(&object, pindex, class, pflags) {
                    break m;
                }
                if nowait {
                    self.kmem_malloc_undo(map, addr, size, (object, pindex));
                    return None;
                }
                // Map and object may change until both are locked again. The range does not, unless
                // a thread frees it before it has been returned: then `kmem_malloc_entry` panics.
                object.unlocked(|| {
                    self.vm_map_unlock(map);
                    // No lock is held here.
                    self.vm_wait();
                    self.vm_map_lock(map);
                });
            };
            let page = self.page(m);
            if flags.contains(MallocFlags::ZERO) && !page.flags.get().contains(PageFlags::ZERO) {
                self.pmap_zero_page(m);
            }
            page.valid.set(VM_PAGE_BITS_ALL);
            if !page.flags.get().contains(PageFlags::UNMANAGED) {
                self.panic(format_args!("kmem_malloc: page {} is managed", m.addr()));
            }
        }
        Some(())
    }

    /// The entry that [`Vm::kmem_malloc`] has made. It is still exactly this range: nothing merges
    /// with it while it is not wired and its neighbours are. Panics when a thread has freed the
    /// range, or a part of it, while the map was unlocked. Locks: the map is locked.
    fn kmem_malloc_entry(&self, map: KPtr<VmMap>, addr: GuestVirt, size: u64) -> KPtr<VmMapEntry> {
        let entry = match self.vm_map_lookup_entry(map, addr) {
            Lookup::Inside(entry) => entry,
            Lookup::After(_) => {
                self.panic(format_args!("kmem_malloc: entry not found or misaligned"))
            }
        };
        let e = self.get(entry);
        if e.start.get() != addr || e.end.get() != addr.add(size) || e.wired_count.get() != 0 {
            self.panic(format_args!("kmem_malloc: entry not found or misaligned"));
        }
        entry
    }

    /// Allocates `size` bytes, rounded up to pages, of pageable memory from a submap that is not a
    /// system map (`kmem_alloc_wait`). Its pages are allocated at the first touch, zeroed. While
    /// the map has no room the caller sleeps (`vmmaps`); [`Vm::kmem_free_wakeup`] ends the sleep.
    ///
    /// `None` when the map is too small for the request, or `size` is 0 or wraps.
    /// Locks: none may be held; takes the map's. Sleeps.
    #[must_use]
    pub fn kmem_alloc_wait(&self, map: KPtr<VmMap>, size: u64) -> Option<GuestVirt> {
        let size = request(size)?;
        // 1. Room. Sleep, again and again, until there is some.
        let m = self.get(map);
        let addr = loop {
            // The map's lock keeps sleepers and wakers apart.
            self.vm_map_lock(map);
            match self.vm_map_findspace(map, m.min_offset(), size) {
                Ok(addr) => break addr,
                Err(NoRange::Pages(pages)) => {
                    // Room may come and go: the search starts over.
                    self.vm_map_unlock(map);
                    self.vm_wait_for(pages);
                    continue;
                }
                Err(_) => {}
            }
            // No space now; see if we can ever get space.
            if m.max_offset().since(m.min_offset()) < size {
                self.vm_map_unlock(map);
                return None;
            }
            m.needs_wakeup.raise();
            // The map may have changed in any way: the search starts over.
            self.vm_map_unlock_and_wait(map);
        };
        // 2. The range is taken before the map is unlocked.
        if let Err(code) = self.vm_map_insert(map, &EntrySpec::EMPTY, addr, addr.add(size)) {
            self.panic(format_args!("vm_map_insert: room just found at {addr} is gone: {code}"));
        }
        self.vm_map_unlock(map);
        Some(addr)
    }

    /// Frees an allocation that [`Vm::kmem_alloc_wait`] made in `map`, like [`Vm::kmem_free`], and
    /// wakes all threads that wait for room there (`kmem_free_wakeup`). Locks: takes the map's.
    /// Never fails.
    pub fn kmem_free_wakeup(&self, map: KPtr<VmMap>, addr: GuestVirt, size: u64) {
        let m = self.get(map);
        let _locked = self.vm_map_locked(map);
        if let Some(end) = addr.checked_add(size).and_then(|end| round_page(end.get())) {
            self.vm_map_delete(map, addr.page(), GuestVirt::new(end));
        }
        if m.needs_wakeup.is_set() {
            m.needs_wakeup.lower();
            self.vm_map_wakeup(map);
        }
    }

    /// Creates kernel_map, from [`VM_MIN_KERNEL_ADDRESS`] to `end`, and enters the kernel image's
    /// range, from [`KERNBASE`] to `start`, as taken (`kmem_init`).
    pub(crate) fn kmem_init(&self, start: GuestVirt, end: GuestVirt) {
        let Ok(m) = self.vm_map_create(VM_MIN_KERNEL_ADDRESS, end) else {
            self.panic(format_args!("kmem_init: no memory for kernel_map"));
        };
        self.get(m).system_map.raise();
        let _locked = self.vm_map_locked(m);
        // From here on the map is kernel_map, whose growth provides page tables.
        self.named_map(MapId::KERNEL).set(m);
        if let Err(code) = self.vm_map_insert(m, &EntrySpec::NOFAULT, KERNBASE, start) {
            self.panic(format_args!("kmem_init: cannot enter the kernel image: {code}"));
        }
        // The image's range is never freed, whole or in parts.
        self.map_plain_leave(self.get(m), start.since(KERNBASE));
    }

    /// Frees what a `kmem_malloc` has allocated in `object` before pages ran out at index
    /// `reached`: first the pages, last to first, because they are busy and a deletion of the entry
    /// would wait for them; then the entry. Unlocks object and map.
    fn kmem_malloc_undo(
        &self,
        map: KPtr<VmMap>,
        addr: GuestVirt,
        size: u64,
        (object, reached): (LockedObject<'_, M>, u64),
    ) {
        for pindex in (indices(addr, size).start..reached).rev() {
            self.page_point();
            if seeded::KEEPS_A_PAGE && pindex + 1 == reached {
                continue;
            }
            if let Some(m) = self.vm_page_lookup(&object, pindex) {
                let queues = self.page_queues();
                self.vm_page_unwire(&queues, m);
                self.vm_page_free(&queues, m);
            }
        }
        // The map is still locked: no thread can use the range before its entry is gone.
        drop(object);
        self.vm_map_delete(map, addr, addr.add(size));
        self.vm_map_unlock(map);
    }

    /// Frees the pages of a `kmem_alloc` that no longer belong to an entry, because a thread freed
    /// the range, or a part of it, during the allocation.
    fn kmem_alloc_abandon(&self, map: KPtr<VmMap>, addr: GuestVirt, size: u64) {
        let kernel_object = self.kernel_object();
        let _locked = self.vm_map_locked(map);
        let mut object = self.vm_object_lock(kernel_object);
        for (pindex, offset) in indices(addr, size).zip((0..).step_by(to_usize(PAGE_SIZE))) {
            let is_behind = match self.vm_map_lookup_entry(map, addr.add(offset)) {
                Lookup::Inside(entry) => self.get(entry).object.get() == kernel_object,
                Lookup::After(_) => false,
            };
            if !is_behind {
                self.vm_object_page_remove(&mut object, pindex, pindex + 1);
            }
        }
    }

    /// A channel that no other thread knows (FreeBSD's is the address of a local variable): a field
    /// of this thread.
    fn nokva_channel(&self) -> WaitChannel {
        WaitChannel::from(self.current_thread().addr().add(offset_of!(Thread, wmesg) as u64))
    }

    /// Finds room for `size` bytes in the locked `map`, and takes a reference to the object.
    fn kmem_space(
        &self,
        map: KPtr<VmMap>,
        size: u64,
        object: KPtr<VmObject>,
    ) -> Result<GuestVirt, NoRange> {
        let addr = self.vm_map_findspace(map, self.get(map).min_offset(), size)?;
        self.vm_object_reference(object);
        Ok(addr)
    }

    /// Enters the room that [`Vm::kmem_space`] found: an entry that owns the reference to the
    /// object.
    fn kmem_enter(&self, map: KPtr<VmMap>, addr: GuestVirt, size: u64, object: KPtr<VmObject>) {
        let spec = EntrySpec::object(object, addr.since(VM_MIN_KERNEL_ADDRESS));
        if let Err(code) = self.vm_map_insert(map, &spec, addr, addr.add(size)) {
            self.panic(format_args!("vm_map_insert: room just found at {addr} is gone: {code}"));
        }
    }

    /// [`Vm::kmem_space`] for a caller that may sleep: waits with the map unlocked while pages are
    /// short. The map is locked again afterwards.
    fn kmem_space_wait(
        &self,
        map: KPtr<VmMap>,
        size: u64,
        object: KPtr<VmObject>,
    ) -> Result<GuestVirt, NoRange> {
        loop {
            match self.kmem_space(map, size, object) {
                Err(NoRange::Pages(pages)) if self.vm_can_wait() => {
                    // The map may change in any way: the search for room starts over.
                    self.vm_map_unlock(map);
                    self.vm_wait_for(pages);
                    self.vm_map_lock(map);
                }
                result => return result,
            }
        }
    }
}
