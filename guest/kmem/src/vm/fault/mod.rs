//! Page faults on kernel addresses (`vm_fault.c`, and `trap_pfault` of `trap.c`).
//!
//! Most kernel memory is wired: its pages and translations exist from the allocation to the free,
//! so a fault is an exception. In a hole it is fatal. Inside a NOFAULT entry it is a panic with
//! FreeBSD's text. In an entry with an object the translation is entered again, and a missing page
//! is allocated zeroed. In this way ranges of exec_map and pipe_map, which are pageable, get all
//! their pages, at the first touch. A range without an object in a system map cannot get pages, so
//! a fault there is fatal too.
//!
//! A fault may sleep, so it is fatal where its thread may not ([`Kern::no_sleep`](crate::kern)),
//! whatever the address: in an interrupt handler, with a mutex held, and in a critical section.
//!
//! **Protocol.** The map stays locked while a fault is resolved, with two exceptions. A fault that
//! has to wait, for a page on which another thread works or for free pages, releases everything and
//! starts over (`RetryFault`). And a new page of a pageable map is cleared with map and object
//! unlocked: the page is busy, so another thread that faults on it waits in `vmpfw`. The look-up is
//! repeated afterwards if the map's timestamp shows that the map has changed (`fill`).

mod fill;
mod wire;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::{EntryFlags, HeldLocks, PageFlags, Protection, VmMap, VmPage};

pub use super::map::Allowed;
use super::map::FaultPlace;
use super::object::{LockedObject, Slept};
use super::page::AllocFlags;
use super::pmap::Wired;
use super::{Vm, VmMachine};
pub use crate::kern::context::NoSleep;
use crate::machine::AllocClass;

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

/// The access that faulted.
#[derive(Clone, Copy)]
struct Fault {
    /// Its page.
    va: GuestVirt,
    /// The permissions that it needs.
    access: Protection,
    /// Why the fault is resolved.
    reason: FaultReason,
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
    /// A new page, busy for this fault, that must be cleared.
    New(KPtr<VmPage>),
    /// The page, busy for another thread.
    Busy(KPtr<VmPage>),
    /// The object has no place for a page.
    Nothing(KernReturn),
    /// There is no free page.
    Shortage,
}

impl<M: VmMachine> Vm<M> {
    /// Resolves a kernel-mode page fault at `va` (`trap_pfault`), and panics where the running
    /// thread may not sleep. Otherwise as [`trap_pfault_in_thread`](Self::trap_pfault_in_thread).
    ///
    /// # Errors
    /// Those of that function.
    pub fn trap_pfault(&self, va: GuestVirt, fault_type: FaultType) -> Result<(), KernReturn> {
        if let Some(why) = self.no_sleep(HeldLocks::empty()) {
            self.panic(format_args!("page fault at {va:#x} {why}"));
        }
        self.trap_pfault_in_thread(va, fault_type)
    }

    /// Resolves a kernel-mode page fault at `va`, for a caller that has asked
    /// [`Kern::no_sleep`](crate::kern::Kern::no_sleep) itself, as a trap handler must: it reports
    /// such a fault as the fatal trap that it is. On `Ok` the access should be retried. May not
    /// return: a fault inside a NOFAULT entry panics. May sleep. Locks: none may be held.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] in a hole, below the kernel's maps and in the direct
    /// map, [`KernReturn::ProtectionFailure`] for an instruction fetch and other forbidden
    /// accesses: a fatal trap.
    pub fn trap_pfault_in_thread(
        &self,
        va: GuestVirt,
        fault_type: FaultType,
    ) -> Result<(), KernReturn> {
        let map = self.kernel_map();
        if va < VM_MIN_KERNEL_ADDRESS || map.is_null() {
            return Err(KernReturn::InvalidAddress);
        }
        self.vm_fault(map, va.page(), fault_type.protection(), FaultReason::Normal)?;
        if fault_type == FaultType::Execute { Err(KernReturn::ProtectionFailure) } else { Ok(()) }
    }

    /// Brings in the page for `va` and enters it in the pmap (`vm_fault`). Takes the map's lock and
    /// the object's. Sleeps while pages are short (`pfault`), or while another thread works on the
    /// page (`vmpfw`).
    ///
    /// # Errors
    /// Those of [`Map::vm_map_lookup`](super::map::Map::vm_map_lookup), except for a shortage;
    /// [`KernReturn::Failure`] for a range without an object in a system map, where FreeBSD follows
    /// a null pointer; [`KernReturn::ProtectionFailure`] past the object's end.
    pub fn vm_fault(
        &self,
        map: KPtr<VmMap>,
        va: GuestVirt,
        access: Protection,
        reason: FaultReason,
    ) -> Result<(), KernReturn> {
        let fault = Fault { va: va.page(), access, reason };
        self.cnt().v_faults.fetch_add(1);
        loop {
            // 1. The entry and the place in its object. The map is locked from here on.
            let place = match self.vm_map_lookup(map, va, access) {
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
                    fault.va.get()
                ));
            }
            // 2. The page there. After a wait everything may be different: the fault starts over.
            match self.vm_fault_at(&place, &fault) {
                Resolution::Resolved => return Ok(()),
                Resolution::Failed(code) => return Err(code),
                Resolution::Again => {}
            }
        }
    }

    /// One attempt at the page of `place`. Unlocks the map.
    fn vm_fault_at(&self, place: &FaultPlace, fault: &Fault) -> Resolution {
        let Some(object) = place.object.non_null() else {
            self.vm_map_lookup_done(place);
            return Resolution::Failed(KernReturn::Failure);
        };
        // 1. The page, found or allocated.
        self.intr_window();
        let locked = self.vm_object_lock(object);
        let found = self.vm_fault_page(&locked, place.pindex);

        // 2. Its mapping, or the wait for the thread that works on it.
        match found {
            Found::New(m) if self.get(place.map).system_map.is_set() => {
                self.vm_fault_zero_fill(object, m);
                self.vm_fault_enter(place, fault, m);
            }
            Found::Page(m) => self.vm_fault_enter(place, fault, m),
            Found::New(m) => return self.vm_fault_fill(place, fault, locked, m),
            Found::Busy(m) => return self.vm_fault_wait(place, locked, m),
            Found::Nothing(_) | Found::Shortage => {}
        }
        // 3. The page, if there is one, is mapped by now. Others may work on it, or remove it.
        drop(locked);
        self.vm_map_lookup_done(place);
        match found {
            Found::Nothing(code) => Resolution::Failed(code),
            Found::Shortage => {
                // The map is unlocked too: everything may change.
                self.vm_waitpfault();
                Resolution::Again
            }
            Found::Page(_) | Found::New(_) | Found::Busy(_) => Resolution::Resolved,
        }
    }

    /// Waits for the thread that works on `m`, a page of the locked object. Unlocks map and object.
    fn vm_fault_wait(
        &self,
        place: &FaultPlace,
        mut locked: LockedObject<'_, M>,
        m: KPtr<VmPage>,
    ) -> Resolution {
        let object = locked.pointer();
        // The map is not locked during the sleep, so a reference must keep the object.
        self.get(object).ref_count.inc();
        self.vm_map_lookup_done(place);
        // Map and object may change in any way. The fault starts over: only the object is sure to
        // exist, by the reference.
        let (Slept::Yes | Slept::No) = self.vm_page_sleep_if_busy(&mut locked, m, "vmpfw");
        // Nothing is known of the page from here on.
        drop(locked);
        self.vm_object_deallocate(object);
        Resolution::Again
    }

    /// The page at `pindex` of the locked object, busy: the resident page, or a new one.
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
            None if self.vm_page_count_severe() || self.fails(FailSite::VmFaultAlloc) => {
                Found::Shortage
            }
            None => {
                match self.vm_page_alloc(locked, pindex, AllocClass::Normal, AllocFlags::ZERO) {
                    Some(m) if self.page(m).flags.get().contains(PageFlags::ZERO) => {
                        self.vm_fault_zero_fill(object, m);
                        Found::Page(m)
                    }
                    Some(m) => Found::New(m),
                    None => Found::Shortage,
                }
            }
        }
    }

    /// Maps the busy page `m` for the fault, and ends its busy state. Locks: its object's is held.
    fn vm_fault_enter(&self, place: &FaultPlace, fault: &Fault, m: KPtr<VmPage>) {
        let wired = if place.wired_count != 0 { Wired::Yes } else { Wired::No };
        let access = if wired == Wired::Yes { place.prot } else { fault.access };
        self.pmap_enter(fault.va, access, m, place.prot, wired);
        let queues = self.page_queues();
        match (fault.reason, wired) {
            (FaultReason::ChangeWiring, Wired::Yes) => self.vm_page_wire(&queues, m),
            (FaultReason::ChangeWiring, Wired::No) => self.vm_page_unwire(&queues, m),
            (FaultReason::Normal, _) => self.vm_page_activate(&queues, m),
        }
        // The page does not change: it is busy until the next line.
        drop(queues);
        self.vm_page_wakeup(m);
    }
}
