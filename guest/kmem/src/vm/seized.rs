//! Pages that the host has taken, and gives back ([`vmkern_abi::seize`]).
//!
//! The host changes the free lists by itself, while all CPUs stand still, as an allocation or a
//! free under the free queue's lock would. Two things are left to the kernel. As after any
//! allocation, the next one below a threshold wakes the pagedaemon. And threads that wait for pages
//! must be woken when pages come back: the host sends an interrupt, whose handler calls
//! [`Phys::vm_pages_returned`].

use super::phys::Phys;
use crate::machine::{Cpu, PhysMem};

impl<M: PhysMem + Cpu> Phys<M> {
    /// Wakes the threads for which the pages that the host has given back are enough, as a free
    /// does. Never sleeps; may be called in an interrupt handler. Locks: takes the free queue's.
    pub fn vm_pages_returned(&self) {
        let queue = self.free_queue();
        self.vm_page_free_wakeup(&queue);
        self.vm_page_zero_idle_wakeup(&queue);
    }
}

/// The structures as the host finds them in the guest's memory.
#[cfg(test)]
impl<M: PhysMem + Cpu> vmkern_abi::seize::Structures for Phys<M> {
    fn structure<T: zerocopy::FromBytes + vmkern_abi::field::Atomics>(
        &self,
        at: vmkern_abi::addr::GuestPhys,
    ) -> Option<&T> {
        Some(self.at(at))
    }
}
