//! Wiring and unwiring pages (`vm_fault_wire`, `vm_fault_unwire`).
//!
//! Wiring a range is a fault for each page, with the order to wire it. Other threads may fault on
//! the same pages at the same time: the map is unlocked, and the entry is marked wired already.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT, PAGE_SIZE};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{Protection, VmMap, VmMapEntry, VmObject};

use super::FaultReason;
use crate::machine::Machine;
use crate::num::to_usize;
use crate::vm::map::Map;
use crate::vm::{Vm, VmMachine};

/// Pages that are unwired under one hold of the page-queue lock.
const UNWIRE_BATCH: u64 = 64;

impl<M: VmMachine> Vm<M> {
    /// Wires the pages of `[start, end)`, of an entry that is marked wired (`vm_fault_wire`). Takes
    /// the map's lock.
    ///
    /// # Errors
    /// Those of [`Vm::vm_fault`]; the pages that had been wired are unwired again.
    pub fn vm_fault_wire(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<(), KernReturn> {
        let mut va = start;
        while va < end {
            let access = Protection::READ | Protection::WRITE;
            if let Err(code) = self.vm_fault(map, va, access, FaultReason::ChangeWiring) {
                if va != start {
                    // The range is in transition: no thread has taken a translation away.
                    self.vm_fault_unwire(KPtr::NULL, 0, (start, va));
                }
                return Err(code);
            }
            va = va.add(PAGE_SIZE);
        }
        Ok(())
    }
}

impl<M: Machine> Map<M> {
    /// Unwires the pages of `entry`. Locks: the map's is held; takes the object's, the page queues'
    /// and the pmap's.
    pub(in crate::vm) fn vm_map_entry_unwire(&self, entry: &VmMapEntry) {
        let range = (entry.start.get(), entry.end.get());
        self.vm_fault_unwire(entry.object.get(), entry.offset.get(), range);
    }

    /// Unwires the pages of `[start, end)`, of an entry or part of one whose page at `start` is at
    /// `offset` of `object` (`vm_fault_unwire`). The pages are found by their translations and,
    /// where there is none because [`Map::vm_map_protect`] has removed it, in the object; FreeBSD
    /// of 2008 leaks such pages. Locks: the map's is held; takes the object's, the page queues' and
    /// the pmap's.
    fn vm_fault_unwire(
        &self,
        object: KPtr<VmObject>,
        offset: u64,
        (start, end): (GuestVirt, GuestVirt),
    ) {
        let mut va = start;
        while va < end {
            let stop = va.checked_add(UNWIRE_BATCH * PAGE_SIZE).map_or(end, |stop| stop.min(end));
            let queues = self.page_queues();
            let missing = self.pmap_unwire(va, stop, |m| self.vm_page_unwire(&queues, m));
            // The map is locked, and the pages are wired: the range and its pages stay.
            drop(queues);
            if let Some(object) = object.non_null().filter(|_| missing != 0) {
                self.vm_fault_unwire_unmapped(object, offset + va.since(start), (va, stop));
            }
            va = stop;
        }
    }

    /// Unwires the wired pages of `[start, end)` that have no translation.
    fn vm_fault_unwire_unmapped(
        &self,
        object: KPtr<VmObject>,
        offset: u64,
        (start, end): (GuestVirt, GuestVirt),
    ) {
        let object = self.vm_object_lock(object);
        let queues = self.page_queues();
        for at in (0..end.since(start)).step_by(to_usize(PAGE_SIZE)) {
            if self.pmap_extract(start.add(at)).is_some() {
                continue;
            }
            let m = self.vm_page_lookup(&object, (offset + at) >> PAGE_SHIFT);
            if let Some(m) = m.filter(|&m| self.page(m).wire_count.get() != 0) {
                self.vm_page_unwire(&queues, m);
            }
        }
    }
}
