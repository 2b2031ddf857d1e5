//! Kernel memory management (`vm_kern.c`), in the order of the original.
//!
//! | function | address space | pages | fails |
//! |---|---|---|---|
//! | [`Vm::kmem_alloc_nofault`] | yes | none | no room |
//! | [`Vm::kmem_alloc`] | yes | zeroed, NORMAL class; waits for them | no room |
//! | [`Vm::kmem_free`] | | | never |
//! | [`Vm::kmem_malloc`] | yes | INTERRUPT or SYSTEM class, zeroed on demand | `NOWAIT` only |
//!
//! Two rules are stricter than in 2008. A size of 0, and one that wraps to 0 when it is rounded up to pages, gives
//! nothing and leaks nothing, from every function. And what an allocation needs besides its pages (page tables, a map
//! entry, nodes of the object's index) is had before the map is changed: a shortage leaves no trace.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT, PAGE_SIZE, round_page};
use vmkern_abi::control::{KernReturn, MallocFlags, MapId};
use vmkern_abi::kva::{KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{PageFlags, Protection, VM_PAGE_BITS_ALL, VmMap, VmObject};

use super::map::{EntrySpec, FindSpace, Lookup};
use super::object::IndexReservation;
use super::page::{AllocClass, AllocFlags};
use super::pmap::Wired;
use super::{Shortage, Vm};
use crate::machine::Machine;
use crate::num::to_usize;

/// Bytes of whole pages for a request of `size` bytes, or `None` when there are none or too many.
fn request(size: u64) -> Option<u64> {
    round_page(size).filter(|&size| size != 0)
}

/// The pages of an allocation in their object: the address decides the index (`OFF_TO_IDX`).
fn indices(addr: GuestVirt, size: u64) -> core::ops::Range<u64> {
    let first = addr.since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT;
    first..first + (size >> PAGE_SHIFT)
}

impl<M: Machine> Vm<M> {
    /// kernel_map, or null before `kmem_init`.
    #[must_use]
    pub fn kernel_map(&self) -> KPtr<VmMap> {
        self.state().maps[MapId::KERNEL.0 as usize].get()
    }

    /// kmem_map, or null before `kmeminit`.
    #[must_use]
    pub fn kmem_map(&self) -> KPtr<VmMap> {
        self.state().maps[MapId::KMEM.0 as usize].get()
    }

    /// The map with this number, if there is one.
    #[must_use]
    pub fn map_by_id(&self, id: MapId) -> Option<KPtr<VmMap>> {
        self.state().maps.get(id.0 as usize)?.get().non_null()
    }

    /// Allocates `size` bytes of address space, rounded up to pages, with no object and no mappings
    /// (`kmem_alloc_nofault`). A fault inside is a panic: mappings are made by `pmap_qenter`.
    ///
    /// `None` when there is no room, no page for the page tables, or `size` is 0 or wraps.
    /// Locks: takes the map's. Never sleeps.
    #[must_use]
    pub fn kmem_alloc_nofault(&self, map: KPtr<VmMap>, size: u64) -> Option<GuestVirt> {
        let size = request(size)?;
        let min = self.get(map).min_offset();
        self.vm_map_find(map, &EntrySpec::NOFAULT, min, size, FindSpace::Any).ok()
    }

    /// Allocates `size` bytes, rounded up to pages, of wired zeroed memory (`kmem_alloc`).
    ///
    /// `None` when there is no room, no page for what describes it, or `size` is 0 or wraps; for the memory's own
    /// pages it waits. Locks: takes the map's and kernel_object's. Sleeps.
    #[must_use]
    pub fn kmem_alloc(&self, map: KPtr<VmMap>, size: u64) -> Option<GuestVirt> {
        let size = request(size)?;
        let kernel_object = self.kernel_object();

        // Room in the map gives the address, and the address the place in the object.
        self.vm_map_lock(map);
        let Ok((addr, reservation)) = self.kmem_space(map, size, kernel_object) else {
            self.vm_map_unlock(map);
            return None;
        };
        self.kmem_enter(map, addr, size, kernel_object);
        self.vm_map_unlock(map);

        // The pages are there before vm_map_wire, whose faults then only map and wire them.
        self.vm_object_lock(kernel_object);
        for pindex in indices(addr, size) {
            let flags = AllocFlags::NOBUSY | AllocFlags::ZERO | AllocFlags::RETRY;
            if let Some(mem) = self.vm_page_grab(kernel_object, pindex, flags) {
                self.page(mem).valid.set(VM_PAGE_BITS_ALL);
                if !self.page(mem).flags.get().contains(PageFlags::UNMANAGED) {
                    self.panic(format_args!("kmem_alloc: page {} is managed", mem.addr()));
                }
            }
        }
        self.vm_object_unlock(kernel_object);
        self.vm_object_unreserve(reservation);

        // And finally, the data is wired. The range is the entry just made, so that this finds no hole.
        if let Err(code) = self.vm_map_wire(map, addr, addr.add(size)) {
            self.panic(format_args!("kmem_alloc: wiring {addr} failed: {code}"));
        }
        Some(addr)
    }

    /// Releases what [`Vm::kmem_alloc`], [`Vm::kmem_alloc_nofault`] or [`Vm::kmem_malloc`] allocated in `map`
    /// (`kmem_free`): every page that `[addr, addr + size)` touches, with its contents.
    ///
    /// A range that wraps is nothing, and so is what is not allocated. Locks: takes the map's. Never fails.
    pub fn kmem_free(&self, map: KPtr<VmMap>, addr: GuestVirt, size: u64) {
        let end = addr.checked_add(size).and_then(|end| round_page(end.get()));
        if let Some(end) = end {
            self.vm_map_remove(map, addr.page(), GuestVirt::new(end));
        }
    }

    /// Makes a map of its own over `size` bytes of `parent` (`kmem_suballoc`); its ends are the map's. It is not a
    /// system map until the caller says so. Panics when there is no room or no memory.
    /// Locks: takes the parent's. Sleeps.
    #[must_use]
    pub fn kmem_suballoc(&self, parent: KPtr<VmMap>, size: u64) -> KPtr<VmMap> {
        let size = round_page(size).unwrap_or(0);
        let min = self.get(parent).min_offset();
        let min = match self.vm_map_find(parent, &EntrySpec::EMPTY, min, size, FindSpace::Any) {
            Ok(min) => min,
            Err(code) => self.panic(format_args!("kmem_suballoc: bad status return of {}", code as u32)),
        };
        let max = min.add(size);
        let Ok(result) = self.vm_map_create(min, max) else {
            self.panic(format_args!("kmem_suballoc: cannot create submap"));
        };
        if self.vm_map_submap(parent, min, max, result).is_err() {
            self.panic(format_args!("kmem_suballoc: unable to change range to submap"));
        }
        result
    }

    /// Allocates `size` bytes, rounded up to pages, of wired memory for the higher allocators (`kmem_malloc`), from
    /// kmem_map or another system submap. The memory is zeroed with `ZERO` only.
    ///
    /// `NOWAIT` never sleeps, and takes the very last page unless `USE_RESERVE` is given, too; without `NOWAIT` it
    /// waits for pages, and a lack of address space is a panic.
    /// `None` with `NOWAIT` when there is no room or too few pages, and always when `size` is 0 or wraps.
    /// Locks: takes the map's and kmem_object's. Sleeps unless `NOWAIT`.
    #[must_use]
    pub fn kmem_malloc(&self, map: KPtr<VmMap>, size: u64, flags: MallocFlags) -> Option<GuestVirt> {
        let size = request(size)?;
        let nowait = flags.contains(MallocFlags::NOWAIT);
        let kmem_object = self.kmem_object();

        // Room in the map gives the address, and the address the place in the object.
        self.vm_map_lock(map);
        let (addr, reservation) = match self.kmem_space(map, size, kmem_object) {
            Ok(space) => space,
            Err(code) => {
                self.vm_map_unlock(map);
                if nowait {
                    return None;
                }
                self.kmem_malloc_no_space(map, size, code);
            }
        };
        self.kmem_enter(map, addr, size, kmem_object);

        // NOWAIT alone may come from an interrupt, which gets what it can; all others leave it the last pages.
        let class = match flags & (MallocFlags::NOWAIT | MallocFlags::USE_RESERVE) {
            MallocFlags::NOWAIT => AllocClass::Interrupt,
            _ => AllocClass::System,
        };
        let mut pflags = AllocFlags::WIRED;
        pflags.set(AllocFlags::ZERO, flags.contains(MallocFlags::ZERO));

        self.vm_object_lock(kmem_object);
        for pindex in indices(addr, size) {
            let m = loop {
                if let Some(m) = self.vm_page_alloc(Some(kmem_object), pindex, class, pflags) {
                    break m;
                }
                if nowait {
                    self.kmem_malloc_undo(map, addr, size, pindex, reservation);
                    return None;
                }
                self.vm_object_unlock(kmem_object);
                self.vm_map_unlock(map);
                self.vm_wait(format_args!("kmem_malloc({size}): too few pages"));
                self.vm_map_lock(map);
                self.vm_object_lock(kmem_object);
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
        self.vm_object_unlock(kmem_object);
        self.vm_object_unreserve(reservation);

        // The entry is still exactly this range: nothing merges with it while it is not wired and its neighbours are.
        let entry = match self.vm_map_lookup_entry(map, addr) {
            Lookup::Inside(entry) => entry,
            Lookup::After(_) => self.panic(format_args!("kmem_malloc: entry not found or misaligned")),
        };
        let e = self.get(entry);
        if e.start.get() != addr || e.end.get() != addr.add(size) || e.wired_count.get() != 0 {
            self.panic(format_args!("kmem_malloc: entry not found or misaligned"));
        }
        e.wired_count.set(1);

        // The object is unlocked here, because the merge takes its lock to drop a reference.
        self.vm_map_simplify_entry(map, entry);

        self.vm_object_lock(kmem_object);
        for (pindex, offset) in indices(addr, size).zip((0..).step_by(to_usize(PAGE_SIZE))) {
            if let Some(m) = self.vm_page_lookup(kmem_object, pindex) {
                // The kernel's page tables are there, so that this does not block.
                self.pmap_enter(addr.add(offset), Protection::ALL, m, Protection::ALL, Wired::Yes);
                self.vm_page_wakeup(m);
            }
        }
        self.vm_object_unlock(kmem_object);
        self.vm_map_unlock(map);
        Some(addr)
    }

    /// Gives back what a `kmem_malloc` has got before pages ran out at index `reached`: the pages first, last to
    /// first, as they are busy and deleting the entry would wait for them; then the entry.
    fn kmem_malloc_undo(
        &self,
        map: KPtr<VmMap>,
        addr: GuestVirt,
        size: u64,
        reached: u64,
        reservation: IndexReservation,
    ) {
        let kmem_object = self.kmem_object();
        for pindex in (indices(addr, size).start..reached).rev() {
            if let Some(m) = self.vm_page_lookup(kmem_object, pindex) {
                self.vm_page_lock_queues();
                self.vm_page_unwire(m);
                self.vm_page_free(m);
                self.vm_page_unlock_queues();
            }
        }
        self.vm_object_unlock(kmem_object);
        self.vm_map_delete(map, addr, addr.add(size));
        self.vm_object_unreserve(reservation);
        self.vm_map_unlock(map);
    }

    /// Where `kmem_malloc` may wait: FreeBSD asks everybody to give memory back, eight times, and then panics. Nobody
    /// has any to give yet.
    fn kmem_malloc_no_space(&self, map: KPtr<VmMap>, size: u64, code: KernReturn) -> ! {
        if code == KernReturn::ResourceShortage {
            self.would_sleep(format_args!("kmem_malloc({size}): too few pages to describe the range"), "vmwait");
        }
        let total = self.get(map).size.get();
        self.panic(format_args!("kmem_malloc({size}): kmem_map too small: {total} total allocated"))
    }

    /// Finds room for `size` bytes in the locked `map` and pins the object's index for it.
    fn kmem_space(
        &self,
        map: KPtr<VmMap>,
        size: u64,
        object: KPtr<VmObject>,
    ) -> Result<(GuestVirt, IndexReservation), KernReturn> {
        let addr = self.vm_map_findspace(map, self.get(map).min_offset(), size)?;
        let range = indices(addr, size);
        match self.vm_object_reserve(object, range.start, range.end - range.start) {
            Ok(reservation) => Ok((addr, reservation)),
            Err(Shortage) => Err(KernReturn::ResourceShortage),
        }
    }

    /// Enters the room that [`Vm::kmem_space`] found: a reference to the object, and an entry that owns it.
    fn kmem_enter(&self, map: KPtr<VmMap>, addr: GuestVirt, size: u64, object: KPtr<VmObject>) {
        self.vm_object_reference(object);
        let spec = EntrySpec::object(object, addr.since(VM_MIN_KERNEL_ADDRESS));
        if let Err(code) = self.vm_map_insert(map, &spec, addr, addr.add(size)) {
            self.panic(format_args!("vm_map_insert: room just found at {addr} is gone: {code}"));
        }
    }

    /// Makes kernel_map, from [`VM_MIN_KERNEL_ADDRESS`] to `end`, and enters the kernel image's range, from
    /// [`KERNBASE`] to `start`, as taken (`kmem_init`).
    pub(crate) fn kmem_init(&self, start: GuestVirt, end: GuestVirt) {
        let Ok(m) = self.vm_map_create(VM_MIN_KERNEL_ADDRESS, end) else {
            self.panic(format_args!("kmem_init: no memory for kernel_map"));
        };
        self.get(m).system_map.set(1);
        self.vm_map_lock(m);
        // From here on the map is kernel_map, whose growth provides page tables.
        self.state().maps[MapId::KERNEL.0 as usize].set(m);
        if let Err(code) = self.vm_map_insert(m, &EntrySpec::NOFAULT, KERNBASE, start) {
            self.panic(format_args!("kmem_init: cannot enter the kernel image: {code}"));
        }
        // The image is never given back, in one piece or in several.
        self.map_plain_leave(self.get(m), start.since(KERNBASE));
        self.vm_map_unlock(m);
    }
}
