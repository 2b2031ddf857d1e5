//! Entries in transition: those that a thread works on while the map may be unlocked.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{EntryFlags, VmMap, VmMapEntry};

use super::{Lookup, Map, header};
use crate::machine::Machine;

/// Whether somebody waits for the end of a transition.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::vm) enum Waiters {
    /// Nobody.
    None,
    /// Somebody, who is to be woken.
    Some,
}

impl<M: Machine> Map<M> {
    /// Waits for the end of the transition of `entry`, with the map unlocked meanwhile. Gives the
    /// entry that holds `resume` then, with what two cuts need in reserve.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] when nothing is there any more,
    /// [`KernReturn::ResourceShortage`] when there is no page for the entries of the cuts.
    pub(in crate::vm) fn map_await_transition(
        &self,
        map: KPtr<VmMap>,
        entry: KPtr<VmMapEntry>,
        resume: GuestVirt,
    ) -> Result<KPtr<VmMapEntry>, KernReturn> {
        self.map_wait_for_transition(map, entry);
        let Lookup::Inside(entry) = self.vm_map_lookup_entry(map, resume) else {
            return Err(KernReturn::InvalidAddress);
        };
        self.map_reserve(self.get(map), 2).map_err(|_| KernReturn::ResourceShortage)?;
        Ok(entry)
    }

    /// Whether the address at which `entry` ends is in no entry.
    pub(in crate::vm) fn map_hole_follows(&self, map: KPtr<VmMap>, entry: &VmMapEntry) -> bool {
        let next = entry.next.get();
        next == header(map) || self.get(next).start.get() > entry.end.get()
    }

    /// Ends the transition of `entry`. Says whether somebody waits for that.
    pub(in crate::vm) fn map_transition_end(&self, entry: &VmMapEntry) -> Waiters {
        let waited_for = entry.eflags.get().contains(EntryFlags::NEEDS_WAKEUP);
        entry.eflags.update_locked(|eflags| eflags - EntryFlags::PASSING);
        if waited_for { Waiters::Some } else { Waiters::None }
    }
}
