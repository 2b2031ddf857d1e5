//! The look-up of an address for a fault.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::{EntryFlags, Protection, VmMap, VmMapEntry, VmObject};

use super::{Lookup, Map};
use crate::machine::Machine;

/// Where the page for an address belongs. The map stays locked until [`Map::vm_map_lookup_done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlace {
    /// The map, or the submap, that has the entry.
    pub map: KPtr<VmMap>,
    /// The entry.
    pub entry: KPtr<VmMapEntry>,
    /// Its object; null for a range without one.
    pub object: KPtr<VmObject>,
    /// The page's index in the object.
    pub pindex: u64,
    /// The accesses that the translation may allow.
    pub prot: Protection,
    /// How often the entry is wired.
    pub wired_count: u32,
}

/// What the entry of an address allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// First address of the entry.
    pub start: GuestVirt,
    /// The address behind it.
    pub end: GuestVirt,
    /// The accesses that it allows now.
    pub protection: Protection,
}

impl<M: Machine> Map<M> {
    /// What the entry of `va` in kernel_map or a submap allows, for the report of a fault that was
    /// refused: `None` if there is no entry, or if the running thread holds a mutex. Takes the
    /// locks of the maps, one after the other.
    pub fn vm_fault_allowed(&self, va: GuestVirt) -> Option<Allowed> {
        if va < VM_MIN_KERNEL_ADDRESS || !self.held_locks().is_empty() {
            return None;
        }
        let mut map = self.kernel_map().non_null()?;
        loop {
            let _locked = self.vm_map_locked_read(map);
            let Lookup::Inside(entry) = self.vm_map_lookup_entry(map, va) else { return None };
            let e = self.get(entry);
            if !e.eflags.get().contains(EntryFlags::IS_SUB_MAP) {
                let (start, end) = (e.start.get(), e.end.get());
                return Some(Allowed { start, end, protection: e.protection.get() });
            }
            // The map is unlocked: the submap may be gone, but no map is ever freed.
            map = KPtr::new(e.object.get().addr());
        }
    }

    /// Finds the page for an access of kind `fault_type` at `va`, through submaps
    /// (`vm_map_lookup`). Takes the lock of `map`; on success the lock of [`FaultPlace::map`] is
    /// held, otherwise none.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] in a hole, [`KernReturn::ProtectionFailure`] when the entry
    /// forbids the access, [`KernReturn::ResourceShortage`] when there is no page for the object
    /// that an entry of a pageable map needs now.
    pub fn vm_map_lookup(
        &self,
        map: KPtr<VmMap>,
        va: GuestVirt,
        fault_type: Protection,
    ) -> Result<FaultPlace, KernReturn> {
        let mut map = map;
        loop {
            // 1. The entry, in this map or in the submap that it stands for.
            let locked = self.vm_map_locked_read(map);
            let entry = self.map_fault_entry(map, va)?;
            let e = self.get(entry);
            if e.eflags.get().contains(EntryFlags::IS_SUB_MAP) {
                // The map's lock guards the entry, which may be gone or elsewhere once it is
                // released.
                map = KPtr::new(e.object.get().addr());
                continue;
            }
            // 2. Its permission, and its object, which an entry of a pageable map gets at the first
            // fault.
            if !e.protection.get().contains(fault_type) {
                return Err(KernReturn::ProtectionFailure);
            }
            let is_pageable =
                !self.get(map).system_map.is_set() && !e.eflags.get().contains(EntryFlags::NOFAULT);
            if e.object.get().is_null() && is_pageable && self.map_object_make(e).is_err() {
                return Err(KernReturn::ResourceShortage);
            }
            // 3. The place, which stays valid while the map is locked.
            locked.leave_locked();
            return Ok(self.map_fault_place(map, entry, va));
        }
    }

    /// Finds the page for an access of kind `fault_type` at `va` once more, in a map that was
    /// unlocked for a time (`vm_map_lookup_locked`). Locks: the map's is held, and stays so. Never
    /// sleeps.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] and [`KernReturn::ProtectionFailure`] as for
    /// [`Map::vm_map_lookup`]; [`KernReturn::Failure`] for a submap, and for an entry without an
    /// object: the caller starts over with the map unlocked.
    pub fn vm_map_lookup_locked(
        &self,
        map: KPtr<VmMap>,
        va: GuestVirt,
        fault_type: Protection,
    ) -> Result<FaultPlace, KernReturn> {
        let entry = self.map_fault_entry(map, va)?;
        let e = self.get(entry);
        if e.eflags.get().contains(EntryFlags::IS_SUB_MAP) {
            return Err(KernReturn::Failure);
        }
        if !e.protection.get().contains(fault_type) {
            return Err(KernReturn::ProtectionFailure);
        }
        if e.object.get().is_null() {
            return Err(KernReturn::Failure);
        }
        Ok(self.map_fault_place(map, entry, va))
    }

    /// The entry that has `va`, unless another thread deletes it.
    fn map_fault_entry(
        &self,
        map: KPtr<VmMap>,
        va: GuestVirt,
    ) -> Result<KPtr<VmMapEntry>, KernReturn> {
        match self.vm_map_lookup_entry(map, va) {
            Lookup::Inside(entry)
                if !self.get(entry).eflags.get().contains(EntryFlags::DELETING) =>
            {
                Ok(entry)
            }
            Lookup::Inside(_) | Lookup::After(_) => Err(KernReturn::InvalidAddress),
        }
    }

    /// The place of `va` in `entry`, which has it.
    fn map_fault_place(
        &self,
        map: KPtr<VmMap>,
        entry: KPtr<VmMapEntry>,
        va: GuestVirt,
    ) -> FaultPlace {
        let e = self.get(entry);
        FaultPlace {
            map,
            entry,
            object: e.object.get(),
            pindex: (va.page().since(e.start.get()) + e.offset.get()) >> PAGE_SHIFT,
            prot: e.protection.get(),
            wired_count: e.wired_count.get(),
        }
    }

    /// Ends what [`Map::vm_map_lookup`] began (`vm_map_lookup_done`).
    pub fn vm_map_lookup_done(&self, place: &FaultPlace) {
        self.vm_map_unlock(place.map);
    }
}
