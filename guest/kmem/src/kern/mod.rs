//! The counterpart of FreeBSD's `sys/kern`, and the lowest layer of the system, [`Kern`]: threads,
//! locks, sleep and time.
//!
//! Nothing here allocates, and nothing here depends on [`crate::vm`]. Threads, CPUs, sleep queues
//! and event handlers are structures that a layer above has allocated: [`Kern`] puts them on its
//! lists, runs them and takes them off again. The machine names the type with which a thread or a
//! handler is called ([`Cpu::System`]).

pub mod callout;
pub mod context;
pub mod eventhandler;
mod fail;
pub mod func;
mod globals;
pub mod guard;
pub mod idle;
pub mod lock;
pub mod mp;
pub mod point;
pub(crate) mod queue;
pub mod sched;
pub(crate) mod seeded;
pub mod shootdown;
pub mod sleepq;
mod stall;
pub mod sx;
pub mod synch;
pub mod thread;

use core::ops::Deref;

use vmkern_abi::addr::GuestPhys;

pub use self::globals::Globals;
use crate::machine::{Cpu, PhysMem};

/// Threads, locks and time over a machine: the layer on which [`crate::vm::phys::Phys`] stands.
#[derive(Debug)]
pub struct Kern<M> {
    globals: Globals<M>,
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// A system whose global variables are at `roots`, and are zero until they are set.
    pub(crate) const fn new(machine: M, roots: GuestPhys) -> Self {
        Self { globals: Globals::new(machine, roots) }
    }
}

impl<M> Deref for Kern<M> {
    type Target = Globals<M>;

    #[inline]
    fn deref(&self) -> &Globals<M> {
        &self.globals
    }
}
