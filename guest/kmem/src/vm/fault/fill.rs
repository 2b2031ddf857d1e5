//! Clearing a new page while map and object are unlocked.
//!
//! In FreeBSD a fault unlocks the map around the pager, which may sleep, and afterwards makes sure
//! that the map has not changed: the map's timestamp counts its exclusive acquisitions, and if it
//! has moved, the address is looked up again (`vm_map_lookup_locked`). Here the clearing of a page
//! has the place of the pager. The page is busy for that time: other threads that fault on it wait
//! in `vmpfw`, and a thread that frees it waits in `vmopar`. That thread may own the map's lock, so
//! the fault only tries to lock the map again, and starts over when it cannot.
//!
//! Only pageable maps are unlocked. The mutex of a system map would be free for a thread that
//! frees the range, and that thread could not sleep for the page, as it owns the mutex.

use vmkern_abi::addr::KPtr;
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{PageFlags, VM_PAGE_BITS_ALL, VmObject, VmPage};

use super::{Fault, Resolution};
use crate::vm::map::FaultPlace;
use crate::vm::object::LockedObject;
use crate::vm::{Vm, VmMachine};

impl<M: VmMachine> Vm<M> {
    /// Clears `m`, a new busy page of the locked object, and maps it if it still belongs at the
    /// address of the fault. Unlocks object and map. Never sleeps.
    pub(super) fn vm_fault_fill(
        &self,
        place: &FaultPlace,
        fault: &Fault,
        locked: LockedObject<'_, M>,
        m: KPtr<VmPage>,
    ) -> Resolution {
        // 1. What stays: the object by the reference, and the page as it is busy.
        let object = locked.pointer();
        let generation = self.get(place.map).timestamp.get();
        self.get(object).ref_count.inc();
        // Map and object may change in any other way until they are locked again.
        drop(locked);
        self.vm_map_lookup_done(place);
        self.vm_fault_zero_fill(object, m);
        // 2. Does the page still belong there? If so, the map is locked.
        let place = self.vm_fault_place_again(place, fault, generation);
        // 3. It is mapped, or left in its object for the next fault.
        let locked = self.vm_object_lock(object);
        match &place {
            Ok(place) => self.vm_fault_enter(place, fault, m),
            Err(_) => self.vm_fault_release_page(m),
        }
        // The page is an ordinary one from here on: others may remove it.
        drop(locked);
        if let Ok(place) = &place {
            self.vm_map_lookup_done(place);
        }
        self.vm_object_deallocate(object);
        place.map_or_else(|resolution| resolution, |_| Resolution::Resolved)
    }

    /// Locks the map of `place` again, which had `generation` as its timestamp when it was
    /// unlocked. Returns the place of the fault if its page is the same as before: with less
    /// permission, if the range was protected. Otherwise the map is not locked.
    fn vm_fault_place_again(
        &self,
        place: &FaultPlace,
        fault: &Fault,
        generation: u32,
    ) -> Result<FaultPlace, Resolution> {
        if !self.vm_map_trylock_read(place.map) {
            return Err(Resolution::Again);
        }
        if self.get(place.map).timestamp.get() == generation {
            return Ok(*place);
        }
        let changed = match self.vm_map_lookup_locked(place.map, fault.va, fault.access) {
            Ok(now) if (now.object, now.pindex) == (place.object, place.pindex) => {
                // What was allowed in the meantime is left to the next fault.
                return Ok(FaultPlace { prot: place.prot & now.prot, ..now });
            }
            // The fault starts over there.
            Ok(_) | Err(KernReturn::Failure) => Resolution::Again,
            Err(code) => Resolution::Failed(code),
        };
        self.vm_map_unlock(place.map);
        Err(changed)
    }

    /// Ends the busy state of `m`, which is not mapped (`release_page`). Locks: its object's is
    /// held.
    fn vm_fault_release_page(&self, m: KPtr<VmPage>) {
        let queues = self.page_queues();
        self.vm_page_activate(&queues, m);
        // The page does not change: it is busy until the next line.
        drop(queues);
        self.vm_page_wakeup(m);
    }

    /// Does the work of FreeBSD's pager for a missing page of a kernel object, and of `vm_fault`
    /// itself for a missing page of an anonymous object. Only the latter is counted.
    pub(super) fn vm_fault_zero_fill(&self, object: KPtr<VmObject>, m: KPtr<VmPage>) {
        if !self.page(m).flags.get().contains(PageFlags::ZERO) {
            self.pmap_zero_page(m);
        }
        self.page(m).valid.set(VM_PAGE_BITS_ALL);
        if !self.is_kernels(object) {
            self.cnt().v_zfod.fetch_add(1);
        }
    }
}
