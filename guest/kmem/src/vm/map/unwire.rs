//! Taking the wiring of a range back.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{EntryFlags, VmMap, VmMapEntry};

use super::transition::Waiters;
use super::{Lookup, Map, header};
use crate::machine::Machine;

impl<M: Machine> Map<M> {
    /// Takes one of the system's wirings of `[start, end)`, page aligned and confined to the map,
    /// back (`vm_map_unwire` with `VM_MAP_WIRE_SYSTEM | VM_MAP_WIRE_NOHOLES`). With its last wiring
    /// a range keeps its pages and translations, but the pages of an anonymous object can be paged
    /// out again. Takes the map's lock, which it keeps while it unwires; waits, with the map
    /// unlocked, for entries in transition. On failure everything is as before, but for entries
    /// that stay cut.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] when the range has a hole,
    /// [`KernReturn::InvalidArgument`] when part of it is not wired,
    /// [`KernReturn::ResourceShortage`] when there is no page for the entries of the cuts.
    pub fn vm_map_unwire(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<(), KernReturn> {
        self.vm_map_lock(map);
        let (start, end) = self.map_range_clamp(self.get(map), start, end);
        let (result, waiters) = self.map_unwire_locked(map, start, end);
        self.vm_map_unlock(map);
        if waiters == Waiters::Some {
            self.vm_map_wakeup(map);
        }
        result
    }

    fn map_unwire_locked(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
    ) -> (Result<(), KernReturn>, Waiters) {
        let Lookup::Inside(first) = self.vm_map_lookup_entry(map, start) else {
            return (Err(KernReturn::InvalidAddress), Waiters::None);
        };
        if self.map_reserve(self.get(map), 2).is_err() {
            return (Err(KernReturn::ResourceShortage), Waiters::None);
        }
        let (end, result) = self.map_unwire_begin(map, first, start, end);
        let waiters = if end > start {
            self.map_unwire_finish(map, start, end, result)
        } else {
            Waiters::None
        };
        (result, waiters)
    }

    /// The first pass: marks entry after entry as in transition. Gives the end of what was marked,
    /// and whether all of it can be unwired.
    fn map_unwire_begin(
        &self,
        map: KPtr<VmMap>,
        first: KPtr<VmMapEntry>,
        start: GuestVirt,
        end: GuestVirt,
    ) -> (GuestVirt, Result<(), KernReturn>) {
        let mut entry = first;
        while entry != header(map) && self.get(entry).start.get() < end {
            let e = self.get(entry);
            if e.eflags.get().contains(EntryFlags::IN_TRANSITION) {
                let resume = e.start.get().max(start);
                entry = match self.map_await_transition(map, entry, resume) {
                    Ok(entry) => entry,
                    // What was marked below is let go.
                    Err(code) => return (resume, Err(code)),
                };
                continue;
            }
            entry = self.vm_map_clip_start(map, entry, start);
            self.vm_map_clip_end(map, entry, end);
            let e = self.get(entry);
            e.eflags.update_locked(|eflags| eflags | EntryFlags::IN_TRANSITION);
            if e.end.get() < end && self.map_hole_follows(map, e) {
                return (e.end.get(), Err(KernReturn::InvalidAddress));
            }
            if e.wired_count.get() == 0 {
                return (e.end.get(), Err(KernReturn::InvalidArgument));
            }
            entry = e.next.get();
        }
        (end, Ok(()))
    }

    /// The second pass over `[start, end)`: unwires, if the first one found no fault, and ends the
    /// transitions. Says whether somebody waits for that.
    fn map_unwire_finish(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
        result: Result<(), KernReturn>,
    ) -> Waiters {
        let mut waiters = Waiters::None;
        let mut entry = match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(entry) => entry,
            Lookup::After(_) => self.panic(format_args!("vm_map_unwire: lookup failed")),
        };
        while entry != header(map) && self.get(entry).start.get() < end {
            let e = self.get(entry);
            if result.is_ok() {
                e.wired_count.dec();
                if e.wired_count.get() == 0 {
                    self.vm_fault_unwire(map, e.start.get(), e.end.get());
                }
            }
            waiters = waiters.max(self.map_transition_end(e));
            entry = self.vm_map_simplify_entry(map, entry);
            entry = self.get(entry).next.get();
        }
        waiters
    }
}
