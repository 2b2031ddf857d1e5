//! Entries in transition: a thread works on them while the map may be unlocked.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{EntryFlags, VmMap, VmMapEntry};

use super::{Lookup, Map, header};
use crate::machine::Machine;

/// Whether a thread waits for the end of a transition.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiters {
    /// Nobody.
    None,
    /// Some thread, which must be woken.
    Some,
}

/// The result of the first pass for an entry: the last piece of the entry, which may have been cut
/// while the map was unlocked, and whether the work succeeded.
pub(in crate::vm) type Begun = (KPtr<VmMapEntry>, Result<(), KernReturn>);

impl<M: Machine> Map<M> {
    /// Works on the entries of `[start, end)`, page aligned and confined to the map, while they are
    /// in transition, in which no other thread merges, cuts away or deletes them. Takes the map's
    /// lock; waits, with the map unlocked, for entries in the transition of another thread. A panic
    /// names `caller`.
    ///
    /// `begin` is called for entry after entry, in transition and cut to the range, with the end of
    /// the range. It may unlock the map. It checks for a hole behind the entry itself
    /// ([`Map::map_hole_check`]), because its other checks come before or after that one. When all
    /// entries are begun, or one has failed, `finish` is called for each piece, with its result,
    /// and the transition of the piece ends.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] when the range has a hole,
    /// [`KernReturn::ResourceShortage`] when there is no page for the entries of the cuts, and
    /// those of `begin`. Entries that were cut stay cut.
    pub(in crate::vm) fn map_transition_range(
        &self,
        map: KPtr<VmMap>,
        (start, end): (GuestVirt, GuestVirt),
        caller: &str,
        begin: impl FnMut(KPtr<VmMapEntry>, GuestVirt) -> Begun,
        finish: impl Fn(&VmMapEntry, Result<(), KernReturn>),
    ) -> Result<(), KernReturn> {
        let locked = self.vm_map_locked(map);
        let (start, end) = self.map_range_clamp(self.get(map), start, end);
        let mut waiters = Waiters::None;
        let result = self.map_transition_first(map, start).and_then(|first| {
            let (end, result) = self.map_transition_begin(map, first, (start, end), begin);
            if end > start {
                let finish = |entry: &VmMapEntry| finish(entry, result);
                waiters = self.map_transition_finish(map, (start, end), caller, finish);
            }
            result
        });
        // No entry is in this call's transition any more: others may change the entries in any way.
        drop(locked);
        if waiters == Waiters::Some {
            self.vm_map_wakeup(map);
        }
        result
    }

    /// The entry at `start`, once the reserve has what two cuts need.
    fn map_transition_first(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
    ) -> Result<KPtr<VmMapEntry>, KernReturn> {
        let Lookup::Inside(first) = self.vm_map_lookup_entry(map, start) else {
            return Err(KernReturn::InvalidAddress);
        };
        self.map_reserve(self.get(map), 2).map_err(|_| KernReturn::ResourceShortage)?;
        Ok(first)
    }

    /// The first pass: begins entry after entry. Returns the end of the part that was begun, and
    /// the result.
    fn map_transition_begin(
        &self,
        map: KPtr<VmMap>,
        first: KPtr<VmMapEntry>,
        (start, end): (GuestVirt, GuestVirt),
        mut begin: impl FnMut(KPtr<VmMapEntry>, GuestVirt) -> Begun,
    ) -> (GuestVirt, Result<(), KernReturn>) {
        let mut entry = first;
        while entry != header(map) && self.get(entry).start.get() < end {
            // 1. An entry in the transition of another thread is waited for.
            let e = self.get(entry);
            if e.eflags.get().contains(EntryFlags::IN_TRANSITION) {
                let resume = e.start.get().max(start);
                // The map is unlocked during the wait: only entries in this call's transition are
                // unchanged.
                entry = match self.map_await_transition(map, entry, resume) {
                    Ok(entry) => entry,
                    // The entries begun so far are undone.
                    Err(code) => return (resume, Err(code)),
                };
                continue;
            }
            // 2. Its part of the range is marked, and stays as it is until the second pass.
            entry = self.vm_map_clip_start(map, entry, start);
            self.vm_map_clip_end(map, entry, end);
            let e = self.get(entry);
            e.eflags.update_locked(|eflags| eflags | EntryFlags::IN_TRANSITION);
            // 3. `begin` may unlock the map, and others may cut the entry in the meantime: `last`
            // is the last piece of it.
            let entry_end = e.end.get();
            let (last, result) = begin(entry, end);
            if result.is_err() {
                return (entry_end, result);
            }
            entry = self.get(last).next.get();
        }
        (end, Ok(()))
    }

    /// The second pass over `[start, end)`: finishes the entries, and ends their transitions.
    /// Returns whether a thread waits for that.
    fn map_transition_finish(
        &self,
        map: KPtr<VmMap>,
        (start, end): (GuestVirt, GuestVirt),
        caller: &str,
        finish: impl Fn(&VmMapEntry),
    ) -> Waiters {
        let mut waiters = Waiters::None;
        let mut entry = match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(entry) => entry,
            Lookup::After(_) => self.panic(format_args!("{caller}: lookup failed")),
        };
        while entry != header(map) && self.get(entry).start.get() < end {
            let e = self.get(entry);
            finish(e);
            waiters = waiters.max(self.map_transition_end(e));
            entry = self.vm_map_simplify_entry(map, entry);
            entry = self.get(entry).next.get();
        }
        waiters
    }

    /// Checks that the range continues behind `entry`, which may be followed by a hole only if it
    /// ends at `end`.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] when there is a hole.
    pub(in crate::vm) fn map_hole_check(
        &self,
        map: KPtr<VmMap>,
        entry: &VmMapEntry,
        end: GuestVirt,
    ) -> Result<(), KernReturn> {
        let is_last = entry.end.get() >= end;
        if is_last || !self.map_hole_follows(map, entry) {
            return Ok(());
        }
        Err(KernReturn::InvalidAddress)
    }

    /// Waits, with the map unlocked, for the end of the transition of `entry`. Returns the entry
    /// that then holds `resume`, once the reserve has what two cuts need.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] when no entry is there any more,
    /// [`KernReturn::ResourceShortage`] when there is no page for the entries of the cuts.
    fn map_await_transition(
        &self,
        map: KPtr<VmMap>,
        entry: KPtr<VmMapEntry>,
        resume: GuestVirt,
    ) -> Result<KPtr<VmMapEntry>, KernReturn> {
        // The map was unlocked: the entry may be gone, cut, or part of another one.
        self.map_wait_for_transition(map, entry);
        let Lookup::Inside(entry) = self.vm_map_lookup_entry(map, resume) else {
            return Err(KernReturn::InvalidAddress);
        };
        self.map_reserve(self.get(map), 2).map_err(|_| KernReturn::ResourceShortage)?;
        Ok(entry)
    }

    /// Whether the address at which `entry` ends is in no entry.
    fn map_hole_follows(&self, map: KPtr<VmMap>, entry: &VmMapEntry) -> bool {
        let next = entry.next.get();
        next == header(map) || self.get(next).start.get() > entry.end.get()
    }

    /// Ends the transition of `entry`. Returns whether a thread waits for that.
    pub(super) fn map_transition_end(&self, entry: &VmMapEntry) -> Waiters {
        let waited_for = entry.eflags.get().contains(EntryFlags::NEEDS_WAKEUP);
        entry.eflags.update_locked(|eflags| eflags - EntryFlags::PASSING);
        if waited_for { Waiters::Some } else { Waiters::None }
    }
}
