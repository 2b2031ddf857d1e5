//! The counterpart of FreeBSD's `sys/kern`, and the lowest layer of the system, [`Kern`]: threads,
//! locks, sleep and time.
//!
//! Nothing here allocates, and nothing here depends on [`crate::vm`]. Threads, CPUs, sleep queues
//! and event handlers are structures that a layer above has allocated: [`Kern`] puts them on its
//! lists, runs them and takes them off again. The machine names the type with which a thread or a
//! handler is called ([`Cpu::System`]).

pub mod callout;
pub mod eventhandler;
pub mod func;
pub mod guard;
pub mod idle;
pub mod lock;
pub mod mp;
pub mod point;
pub(crate) mod queue;
pub mod sched;
pub mod shootdown;
pub mod sleepq;
pub mod sx;
pub mod synch;
pub mod thread;

use core::fmt;

use vmkern_abi::addr::{GuestPhys, KPtr};
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::{KernelRoots, VmMeter};

use crate::machine::{Cpu, PhysMem};
use crate::window::{self, Shared};

/// Threads, locks and time over a machine: the layer on which [`crate::vm::phys::Phys`] stands.
#[derive(Debug)]
pub struct Kern<M> {
    machine: M,
    roots: GuestPhys,
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// A system whose global variables are at `roots`, and are zero until they are set.
    pub(crate) const fn new(machine: M, roots: GuestPhys) -> Self {
        Self { machine, roots }
    }

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
