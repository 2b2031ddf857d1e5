//! The virtual memory system: the counterpart of FreeBSD's `sys/vm`, and the pmap.
//!
//! Its structures live in the machine's memory, where the host reads them; the types here only hold
//! the address of the roots. Methods carry the names of FreeBSD's functions, and each file adds
//! those of one FreeBSD file.
//!
//! # Layers
//!
//! The system is a stack of seven layers, each a type that holds the one below:
//!
//! | layer | has |
//! |---|---|
//! | [`Globals`](crate::kern::Globals) | the machine, global variables, structures as references |
//! | [`Kern`](crate::kern::Kern) | threads, locks, sleep, time, points for interrupts |
//! | [`Phys`](phys::Phys) | pages, their lists, caches and queues, waiting for pages, zones |
//! | [`Object`](object::Object) | objects and the pages in them |
//! | [`Pmap`](pmap::Pmap) | page tables |
//! | [`Map`] | maps, their entries, and what these lie in |
//! | [`Vm`] | `vm_kern.c`, faults, kernel stacks, making threads, the daemons, the boot |
//!
//! A function belongs to the lowest layer that has everything it needs, and cannot call up: the
//! types ensure that. The bounds state what a layer needs from its machine: only
//! [`Pmap`](pmap::Pmap) and the layers above need an MMU, and only [`Vm`] knows the type with which
//! threads and handlers are called.
//!
//! **Why `Deref`.** Each layer derefs to the one below, so `self.wakeup(..)` is FreeBSD's
//! `wakeup(..)` on every layer. The API guidelines want `Deref` only for smart pointers (C-DEREF),
//! because a method of the outer type may hide a method of the inner. That cannot happen here: the
//! names are FreeBSD's, which are unique, and no two layers have a method of the same name. Nor is
//! a layer passed in place of the one below. The alternatives cost more: accessors make calls five
//! words deep (`self.pmap().object().phys().kern().wakeup(..)`), and a trait for each layer hides
//! where a method is defined, and must name every method twice.

pub mod balloon;
pub mod boot;
pub mod eventhandler;
pub mod fault;
pub mod glue;
mod init;
pub mod kern;
pub mod map;
pub mod object;
pub mod page;
mod pagecache;
pub mod pageout;
mod pageq;
pub mod phys;
pub mod pmap;
pub mod seized;
pub mod taskqueue;
pub mod thread;
pub mod wait;
mod wire;
mod zeroidle;
pub mod zone;

use core::ops::Deref;

pub use self::boot::{BootMemory, PhysRange, Zeroed};
use self::map::Map;
pub use self::page::{Shortage, Wait};
use crate::machine::Machine;

/// A machine on which a whole [`Vm`] runs: its threads and event handlers are called with that.
pub trait VmMachine: Machine<System = Vm<Self>> {}

impl<M: Machine<System = Vm<M>>> VmMachine for M {}

/// The memory system over a machine: the top layer.
#[derive(Debug)]
pub struct Vm<M> {
    map: Map<M>,
}

impl<M> Deref for Vm<M> {
    type Target = Map<M>;

    #[inline]
    fn deref(&self) -> &Map<M> {
        &self.map
    }
}
