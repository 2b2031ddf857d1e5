//! The virtual memory system: what stands under `sys/vm` in FreeBSD, and the pmap.
//!
//! [`Vm`] is all of it. Its structures live in the machine's memory, where the host reads them;
//! [`Vm`] itself only knows where they begin. Methods carry the names of FreeBSD's functions, and
//! each file adds those of one FreeBSD file.

pub mod boot;
pub mod fault;
pub mod glue;
mod init;
pub mod kern;
pub mod map;
mod maps;
pub mod object;
pub mod page;
mod pagecache;
pub mod pageout;
mod pageq;
pub mod phys;
pub mod pmap;
pub mod point;
mod zeroidle;
pub mod zone;

use core::fmt;

use vmkern_abi::addr::{GuestPhys, KPtr};
use vmkern_abi::kva::{dmap_to_phys, phys_to_dmap};
use vmkern_abi::layout::{KernelRoots, VmMeter};

pub use self::boot::{BootMemory, PhysRange, Zeroed};
use crate::machine::Machine;
use crate::window::{self, Shared};

/// Pages ran out: nothing was changed, and the caller decides whether to fail or to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage;

/// Whether a function may sleep for pages (`M_WAITOK`, `M_NOWAIT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may not: a shortage is an error.
    No,
    /// It may: it sleeps until it has what it needs.
    Yes,
}

/// The memory system over a machine.
#[derive(Debug)]
pub struct Vm<M: Machine> {
    machine: M,
    roots: GuestPhys,
    vm_page_array: GuestPhys,
    first_page: u64,
}

impl<M: Machine> Vm<M> {
    /// Where everything begins, for the host.
    #[must_use]
    pub fn roots(&self) -> KPtr<KernelRoots> {
        KPtr::new(phys_to_dmap(self.roots))
    }

    /// A system of which only the global variables exist, zero, at `roots`.
    #[cfg(all(test, loom))]
    pub(crate) fn over(machine: M, roots: GuestPhys) -> Self {
        Self::over_pages(machine, roots, roots)
    }

    /// A system as [`Vm::over`] makes it, with a page array at `vm_page_array`, which begins with
    /// page 0.
    #[cfg(all(test, loom))]
    pub(crate) fn over_pages(machine: M, roots: GuestPhys, vm_page_array: GuestPhys) -> Self {
        Self { machine, roots, vm_page_array, first_page: 0 }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The kernel's global variables.
    #[inline]
    pub fn state(&self) -> &KernelRoots {
        window::at(&self.machine, self.roots)
    }

    /// Counters (FreeBSD's `cnt`).
    #[inline]
    pub fn cnt(&self) -> &VmMeter {
        &self.state().meter
    }

    /// The structure behind `pointer`, which must not be null.
    #[inline]
    pub fn get<T: Shared>(&self, pointer: KPtr<T>) -> &T {
        window::get(&self.machine, pointer)
    }

    /// The structure that begins at `pa`.
    #[inline]
    pub(crate) fn at<T: Shared>(&self, pa: GuestPhys) -> &T {
        window::at(&self.machine, pa)
    }

    /// Pointer to the field `of(roots)` of the kernel's global variables.
    pub(crate) fn global<T: Shared>(&self, offset: usize) -> KPtr<T> {
        KPtr::new(phys_to_dmap(self.roots.add(offset as u64)))
    }

    /// Stops the system (`panic`).
    #[cold]
    pub fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        self.machine.panic(message)
    }
}

/// Physical address of a structure in the direct map.
pub(crate) fn phys_of<T>(pointer: KPtr<T>) -> Option<GuestPhys> {
    dmap_to_phys(pointer.addr())
}
