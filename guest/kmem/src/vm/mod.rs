//! The virtual memory system: what stands under `sys/vm` in FreeBSD, and the pmap.
//!
//! Its structures live in the machine's memory, where the host reads them; the types here only know
//! where they begin. Methods carry the names of FreeBSD's functions, and each file adds those of
//! one FreeBSD file.
//!
//! # Layers
//!
//! The system is a stack of six layers, each a type that holds the one below:
//!
//! | layer | has |
//! |---|---|
//! | [`Kern`](crate::kern::Kern) | threads, locks, sleep, time, points for interrupts |
//! | [`Phys`](phys::Phys) | pages, their lists, caches and queues, waiting for pages, zones |
//! | [`Object`](object::Object) | objects and the pages in them |
//! | [`Pmap`](pmap::Pmap) | page tables |
//! | [`Map`] | maps, their entries, and what these lie in |
//! | [`Vm`] | `vm_kern.c`, faults, kernel stacks, making threads, the daemons, the boot |
//!
//! A function stands on the lowest layer that has all it needs, and cannot call up: the types see
//! to that. What a layer needs of its machine stands in the bounds: only [`Pmap`](pmap::Pmap) and
//! above know of an MMU, and only [`Vm`] knows what threads and handlers are called with.
//!
//! **Why `Deref`.** Each layer derefs to the one below, so that `self.wakeup(..)` is FreeBSD's
//! `wakeup(..)` from wherever it is called. The API guidelines want `Deref` for smart pointers only
//! (C-DEREF), because a method of the outer type may hide one of the inner. That cannot happen
//! here: the names are FreeBSD's, of which there is one each, and no method of a layer has the name
//! of another's. Nor is a layer a kind of the one below that is passed in its place. What the other
//! ways cost: accessors make calls five words deep
//! (`self.pmap().object().phys().kern().wakeup(..)`), and a trait for each layer hides where a
//! method has its home, and must name all of them twice.

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
