//! Page faults on kernel addresses (`vm_fault.c`, and `trap_pfault` of `trap.c`).
//!
//! Kernel memory is wired: its pages and translations are there from the allocation to the free, so that a fault is an
//! exception that says something. In a hole it is fatal; inside a NOFAULT entry it is a panic with FreeBSD's text; in
//! an entry with an object the translation is entered again, and a page that is missing is brought in zeroed.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::control::KernReturn;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::{EntryFlags, PageFlags, PageOflags, Protection, VM_PAGE_BITS_ALL, VmMap, VmPage};

use super::Vm;
use super::map::FaultPlace;
use super::page::{AllocClass, AllocFlags};
use super::pmap::Wired;
use crate::machine::Machine;

/// What the CPU wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultType {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Fetch an instruction. No kernel map is executable, whatever an entry's protection says.
    Execute,
}

impl FaultType {
    const fn protection(self) -> Protection {
        match self {
            Self::Read => Protection::READ,
            Self::Write => Protection::WRITE,
            Self::Execute => Protection::EXECUTE,
        }
    }
}

/// Why `vm_fault` is called (`VM_FAULT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// A CPU faulted (`VM_FAULT_NORMAL`).
    Normal,
    /// The kernel wires the page (`VM_FAULT_CHANGE_WIRING`).
    ChangeWiring,
}

impl<M: Machine> Vm<M> {
    /// Resolves a kernel-mode page fault at `va` (`trap_pfault`). On `Ok` the access is to be tried again. May not
    /// return: a fault inside a NOFAULT entry panics. Locks: none may be held.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] in a hole, below the kernel's maps and in the direct map,
    /// [`KernReturn::ProtectionFailure`] for an instruction fetch and other forbidden accesses: a fatal trap.
    pub fn trap_pfault(&self, va: GuestVirt, fault_type: FaultType) -> Result<(), KernReturn> {
        let map = self.kernel_map();
        if va < VM_MIN_KERNEL_ADDRESS || map.is_null() {
            return Err(KernReturn::InvalidAddress);
        }
        self.assert_no_locks("page fault");
        self.vm_fault(map, va.page(), fault_type.protection(), FaultReason::Normal)?;
        if fault_type == FaultType::Execute { Err(KernReturn::ProtectionFailure) } else { Ok(()) }
    }

    /// Brings in the page for `va` and enters it in the pmap (`vm_fault`). Takes the map's lock and the object's.
    ///
    /// # Errors
    /// Those of [`Vm::vm_map_lookup`]; [`KernReturn::Failure`] for a range without an object, where FreeBSD follows a
    /// null pointer; [`KernReturn::ProtectionFailure`] past the object's end.
    pub fn vm_fault(
        &self,
        map: KPtr<VmMap>,
        va: GuestVirt,
        fault_type: Protection,
        reason: FaultReason,
    ) -> Result<(), KernReturn> {
        self.cnt().v_faults.update(|n| n + 1);
        let place = self.vm_map_lookup(map, va, fault_type)?;
        if self.get(place.entry).eflags.get().contains(EntryFlags::NOFAULT) {
            self.panic(format_args!("vm_fault: fault on nofault entry, addr: {:x}", va.page().get()));
        }
        let result = self.vm_fault_at(&place, va.page(), fault_type, reason);
        self.vm_map_lookup_done(&place);
        result
    }

    fn vm_fault_at(
        &self,
        place: &FaultPlace,
        va: GuestVirt,
        fault_type: Protection,
        reason: FaultReason,
    ) -> Result<(), KernReturn> {
        let object = place.object.non_null().ok_or(KernReturn::Failure)?;
        // The index first: it cannot be made while the object is locked.
        let reservation = self.vm_object_reserve(object, place.pindex, 1);
        self.vm_object_lock(object);
        let result = match self.vm_page_lookup(object, place.pindex) {
            Some(m) => {
                if self.page(m).oflags.get().contains(PageOflags::BUSY) {
                    self.would_sleep(format_args!("vm_fault: page at {va:#x} is busy"), "vmpfw");
                }
                self.vm_page_busy(m);
                Ok(m)
            }
            None if place.pindex >= self.get(object).size.get() => Err(KernReturn::ProtectionFailure),
            None if reservation.is_err() || self.vm_page_count_severe() => self.vm_waitpfault(va),
            None => match self.vm_page_alloc(Some(object), place.pindex, AllocClass::Normal, AllocFlags::ZERO) {
                Some(m) => {
                    self.vm_fault_zero_fill(m);
                    Ok(m)
                }
                None => self.vm_waitpfault(va),
            },
        };
        let result = result.map(|m| {
            let wired = if place.wired_count != 0 { Wired::Yes } else { Wired::No };
            let access = if wired == Wired::Yes { place.prot } else { fault_type };
            self.pmap_enter(va, access, m, place.prot, wired);
            if reason == FaultReason::ChangeWiring {
                self.vm_page_lock_queues();
                match wired {
                    Wired::Yes => self.vm_page_wire(m),
                    Wired::No => self.vm_page_unwire(m),
                }
                self.vm_page_unlock_queues();
            }
            self.vm_page_wakeup(m);
        });
        self.vm_object_unlock(object);
        if let Ok(reservation) = reservation {
            self.vm_object_unreserve(reservation);
        }
        result
    }

    /// What the pager of a kernel object does for a page that was not there.
    fn vm_fault_zero_fill(&self, m: KPtr<VmPage>) {
        if !self.page(m).flags.get().contains(PageFlags::ZERO) {
            self.pmap_zero_page(m);
        }
        self.page(m).valid.set(VM_PAGE_BITS_ALL);
        self.cnt().v_zfod.update(|n| n + 1);
    }

    /// Waits for pages on behalf of a fault (`VM_WAITPFAULT`).
    fn vm_waitpfault(&self, va: GuestVirt) -> ! {
        self.would_sleep(format_args!("vm_fault: no page for {va:#x}"), "pfault")
    }

    /// Wires the pages of `[start, end)`, of an entry that is marked wired (`vm_fault_wire`). Takes the map's lock.
    ///
    /// # Errors
    /// Those of [`Vm::vm_fault`]; what had been wired is unwired again.
    pub fn vm_fault_wire(&self, map: KPtr<VmMap>, start: GuestVirt, end: GuestVirt) -> Result<(), KernReturn> {
        let mut va = start;
        while va < end {
            let access = Protection::READ | Protection::WRITE;
            if let Err(code) = self.vm_fault(map, va, access, FaultReason::ChangeWiring) {
                if va != start {
                    self.vm_fault_unwire(map, start, va);
                }
                return Err(code);
            }
            va = va.add(PAGE_SIZE);
        }
        Ok(())
    }

    /// Unwires the pages of `[start, end)` (`vm_fault_unwire`). Addresses without a translation are passed over.
    /// Locks: the map's is held; takes the page queues' and the pmap's.
    pub fn vm_fault_unwire(&self, _map: KPtr<VmMap>, start: GuestVirt, end: GuestVirt) {
        let mut va = start;
        while va < end {
            if let Some(m) = self.pmap_extract(va).and_then(|pa| self.phys_to_vm_page(pa)) {
                self.pmap_change_wiring(va, Wired::No);
                self.vm_page_lock_queues();
                self.vm_page_unwire(m);
                self.vm_page_unlock_queues();
            }
            va = va.add(PAGE_SIZE);
        }
    }
}
