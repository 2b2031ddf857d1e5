//! Page faults on kernel addresses (`vm_fault.c`, and `trap_pfault` of `trap.c`).
//!
//! Most kernel memory is wired: its pages and translations exist from the allocation to the free,
//! so a fault is an exception. In a hole it is fatal. Inside a NOFAULT entry it is a panic with
//! FreeBSD's text. In an entry with an object the translation is entered again, and a missing page
//! is allocated zeroed. In this way ranges of exec_map and pipe_map, which are pageable, get all
//! their pages, at the first touch. A range without an object in a system map cannot get pages, so
//! a fault there is fatal too.
//!
//! The map stays locked while a fault is resolved. If it has to wait, it releases everything and
//! starts over.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT, PAGE_SIZE};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::{
    EntryFlags, PageFlags, Protection, VM_PAGE_BITS_ALL, VmMap, VmMapEntry, VmObject, VmPage,
};

pub use super::map::Allowed;
use super::map::{FaultPlace, Map};
use super::object::{LockedObject, Slept};
use super::page::AllocFlags;
use super::pmap::Wired;
use super::{Vm, VmMachine};
use crate::machine::{AllocClass, Machine};
use crate::num::to_usize;

/// The kind of access that faulted.
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

/// The outcome of an attempt at a fault.
enum Resolution {
    /// The page is mapped.
    Resolved,
    /// The page cannot be mapped.
    Failed(KernReturn),
    /// There was a wait, during which everything may have changed.
    Again,
}

/// The result of the search for the page of a fault.
#[derive(Clone, Copy)]
enum Found {
    /// The page, busy for this fault.
    Page(KPtr<VmPage>),
    /// The page, busy for another thread.
    Busy(KPtr<VmPage>),
    /// The object has no place for a page.
    Nothing(KernReturn),
    /// There is no free page.
    Shortage,
}

/// Pages that are unwired under one hold of the page-queue lock.
const UNWIRE_BATCH: u64 = 64;

impl<M: VmMachine> Vm<M> {
    /// Resolves a kernel-mode page fault at `va` (`trap_pfault`). On `Ok` the access should be
    /// retried. May not return: a fault inside a NOFAULT entry panics. Locks: none may be held.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] in a hole, below the kernel's maps and in the direct
    /// map, [`KernReturn::ProtectionFailure`] for an instruction fetch and other forbidden
    /// accesses: a fatal trap.
    pub fn trap_pfault(&self, va: GuestVirt, fault_type: FaultType) -> Result<(), KernReturn> {
        let map = self.kernel_map();
        if va < VM_MIN_KERNEL_ADDRESS || map.is_null() {
            return Err(KernReturn::InvalidAddress);
        }
        self.assert_no_locks("page fault");
        self.vm_fault(map, va.page(), fault_type.protection(), FaultReason::Normal)?;
        if fault_type == FaultType::Execute { Err(KernReturn::ProtectionFailure) } else { Ok(()) }
    }

    /// Brings in the page for `va` and enters it in the pmap (`vm_fault`). Takes the map's lock and
    /// the object's. Sleeps while pages are short (`pfault`), or while another thread works on the
    /// page (`vmpfw`).
    ///
    /// # Errors
    /// Those of [`Map::vm_map_lookup`], except for a shortage; [`KernReturn::Failure`] for
    /// a range without an object in a system map, where FreeBSD follows a null pointer;
    /// [`KernReturn::ProtectionFailure`] past the object's end.
    pub fn vm_fault(
        &self,
        map: KPtr<VmMap>,
        va: GuestVirt,
        fault_type: Protection,
        reason: FaultReason,
    ) -> Result<(), KernReturn> {
        self.cnt().v_faults.fetch_add(1);
        loop {
            // 1. The entry and the place in its object. The map is locked from here on.
            let place = match self.vm_map_lookup(map, va, fault_type) {
                Ok(place) => place,
                Err(KernReturn::ResourceShortage) => {
                    // No lock is held: the entry may be gone afterwards.
                    self.vm_waitpfault();
                    continue;
                }
                Err(code) => return Err(code),
            };
            if self.get(place.entry).eflags.get().contains(EntryFlags::NOFAULT) {
                self.panic(format_args!(
                    "vm_fault: fault on nofault entry, addr: {:x}",
                    va.page().get()
                ));
            }
            // 2. The page there. After a wait everything may be different: the fault starts over.
            match self.vm_fault_at(&place, va.page(), fault_type, reason) {
                Resolution::Resolved => return Ok(()),
                Resolution::Failed(code) => return Err(code),
                Resolution::Again => {}
            }
        }
    }

    /// One attempt at the page of `place`. Unlocks the map.
    fn vm_fault_at(
        &self,
        place: &FaultPlace,
        va: GuestVirt,
        fault_type: Protection,
        reason: FaultReason,
    ) -> Resolution {
        let Some(object) = place.object.non_null() else {
            self.vm_map_lookup_done(place);
            return Resolution::Failed(KernReturn::Failure);
        };
        // 1. The page, found or allocated.
        let mut locked = self.vm_object_lock(object);
        let found = self.vm_fault_page(&locked, place.pindex);

        // 2. Its mapping, or the wait for the thread that works on it.
        match found {
            Found::Page(m) => self.vm_fault_enter(place, va, fault_type, reason, m),
            // The map is not locked during the sleep, so a reference must keep the object.
            Found::Busy(m) => {
                self.get(object).ref_count.inc();
                self.vm_map_lookup_done(place);
                // Map and object may change in any way. The fault starts over: only the object is
                // sure to exist, by the reference.
                let (Slept::Yes | Slept::No) = self.vm_page_sleep_if_busy(&mut locked, m, "vmpfw");
            }
            Found::Nothing(_) | Found::Shortage => {}
        }
        // 3. The page, if there is one, is mapped by now. Others may work on it, or remove it.
        drop(locked);
        if matches!(found, Found::Busy(_)) {
            self.vm_object_deallocate(object);
            return Resolution::Again;
        }
        self.vm_map_lookup_done(place);
        match found {
            Found::Nothing(code) => Resolution::Failed(code),
            Found::Page(_) => Resolution::Resolved,
            Found::Busy(_) | Found::Shortage => {
                // The map is unlocked too: everything may change.
                self.vm_waitpfault();
                Resolution::Again
            }
        }
    }

    /// The page at `pindex` of the locked object, busy: the resident page, or a new zeroed one.
    fn vm_fault_page(&self, locked: &LockedObject<'_, M>, pindex: u64) -> Found {
        let object = locked.pointer();
        match self.vm_page_lookup(locked, pindex) {
            Some(m) if self.vm_page_is_busy(m) => Found::Busy(m),
            Some(m) => {
                self.vm_page_busy(m);
                Found::Page(m)
            }
            None if pindex >= self.get(object).size.get() => {
                Found::Nothing(KernReturn::ProtectionFailure)
            }
            None if self.vm_page_count_severe() => Found::Shortage,
            None => {
                match self.vm_page_alloc(locked, pindex, AllocClass::Normal, AllocFlags::ZERO) {
                    Some(m) => {
                        self.vm_fault_zero_fill(object, m);
                        Found::Page(m)
                    }
                    None => Found::Shortage,
                }
            }
        }
    }

    /// Maps the busy page `m` for the fault, and ends its busy state. Locks: its object's is held.
    fn vm_fault_enter(
        &self,
        place: &FaultPlace,
        va: GuestVirt,
        fault_type: Protection,
        reason: FaultReason,
        m: KPtr<VmPage>,
    ) {
        let wired = if place.wired_count != 0 { Wired::Yes } else { Wired::No };
        let access = if wired == Wired::Yes { place.prot } else { fault_type };
        self.pmap_enter(va, access, m, place.prot, wired);
        let queues = self.page_queues();
        match (reason, wired) {
            (FaultReason::ChangeWiring, Wired::Yes) => self.vm_page_wire(&queues, m),
            (FaultReason::ChangeWiring, Wired::No) => self.vm_page_unwire(&queues, m),
            (FaultReason::Normal, _) => self.vm_page_activate(&queues, m),
        }
        // The page does not change: it is busy until the next line.
        drop(queues);
        self.vm_page_wakeup(m);
    }

    /// Does the work of FreeBSD's pager for a missing page of a kernel object, and of `vm_fault`
    /// itself for a missing page of an anonymous object. Only the latter is counted.
    fn vm_fault_zero_fill(&self, object: KPtr<VmObject>, m: KPtr<VmPage>) {
        if !self.page(m).flags.get().contains(PageFlags::ZERO) {
            self.pmap_zero_page(m);
        }
        self.page(m).valid.set(VM_PAGE_BITS_ALL);
        if !self.is_kernels(object) {
            self.cnt().v_zfod.fetch_add(1);
        }
    }

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
