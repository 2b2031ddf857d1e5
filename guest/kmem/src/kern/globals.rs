//! The ground under [`Kern`](super::Kern): the machine, the kernel's global variables, and every
//! structure of the kernel as a reference.
//!
//! Nothing here has a state of its own. What can be reached begins at the roots, which the host
//! reads, too.

use core::fmt;

use vmkern_abi::addr::{GuestPhys, KPtr};
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::{KernelRoots, VmMeter};

use crate::machine::{Cpu, PhysMem};
use crate::window::{self, Shared};

/// The kernel's global variables over a machine.
#[derive(Debug)]
pub struct Globals<M> {
    machine: M,
    roots: GuestPhys,
}

impl<M> Globals<M> {
    /// Global variables that lie at `roots`.
    pub(crate) const fn new(machine: M, roots: GuestPhys) -> Self {
        Self { machine, roots }
    }
}

impl<M: PhysMem + Cpu> Globals<M> {
    /// The address of the roots, for the host.
    #[must_use]
    pub fn roots(&self) -> KPtr<KernelRoots> {
        KPtr::new(phys_to_dmap(self.roots))
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

    /// Pointer to the field at `offset` of the kernel's global variables.
    pub(crate) fn global<T: Shared>(&self, offset: usize) -> KPtr<T> {
        KPtr::new(phys_to_dmap(self.roots.add(offset as u64)))
    }

    /// Stops the system (`panic`).
    #[cold]
    pub fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        self.machine.panic(message)
    }
}
