//! Wiring ranges of a map by faulting their pages in (the half of `vm_map.c` that needs
//! `vm_fault.c`).

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{EntryFlags, VmMap, VmMapEntry};

use super::map::{Lookup, Waiters, header};
use super::{Vm, VmMachine};

impl<M: VmMachine> Vm<M> {
    /// Wires `[start, end)`, page aligned and confined to the map, for the system (`vm_map_wire`
    /// with `VM_MAP_WIRE_SYSTEM | VM_MAP_WIRE_NOHOLES`). Takes the map's lock, and drops it while
    /// pages are brought in; may sleep then. On failure everything is as before, but for entries
    /// that stay cut.
    ///
    /// The entries of the range are in transition meanwhile: nobody merges, cuts away or deletes
    /// them.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] when the range has a hole,
    /// [`KernReturn::ResourceShortage`] when there is no page for the entries of the cuts, and
    /// those of `vm_fault_wire`.
    pub fn vm_map_wire(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<(), KernReturn> {
        self.vm_map_lock(map);
        let (start, end) = self.map_range_clamp(self.get(map), start, end);
        let (result, waiters) = self.map_wire_locked(map, start, end);
        self.vm_map_unlock(map);
        if waiters == Waiters::Some {
            self.vm_map_wakeup(map);
        }
        result
    }

    fn map_wire_locked(
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
        let (end, result) = self.map_wire_entries(map, first, start, end);
        let waiters =
            if end > start { self.map_wire_finish(map, start, end, result) } else { Waiters::None };
        (result, waiters)
    }

    /// The first pass: wires entry after entry. Gives the end of what was begun, and how it went.
    fn map_wire_entries(
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
                    // What was begun below is undone.
                    Err(code) => return (resume, Err(code)),
                };
                continue;
            }
            entry = self.vm_map_clip_start(map, entry, start);
            self.vm_map_clip_end(map, entry, end);
            let e = self.get(entry);
            e.eflags.update_locked(|eflags| eflags | EntryFlags::IN_TRANSITION);
            let entry_end = e.end.get();
            let mut last = entry;
            if e.wired_count.get() == 0 {
                e.wired_count.set(1);
                let result;
                (last, result) = self.map_fault_in(map, entry);
                if result.is_err() {
                    return (entry_end, result);
                }
            } else {
                e.wired_count.inc();
            }
            if entry_end < end && self.map_hole_follows(map, self.get(last)) {
                return (entry_end, Err(KernReturn::InvalidAddress));
            }
            entry = self.get(last).next.get();
        }
        (end, Ok(()))
    }

    /// Brings in and wires the pages of `entry`, in transition, with the map unlocked meanwhile.
    /// The entry may be in pieces afterwards: gives the last one. On failure every piece is marked
    /// [`VmMapEntry::WIRE_FAILED`].
    fn map_fault_in(
        &self,
        map: KPtr<VmMap>,
        entry: KPtr<VmMapEntry>,
    ) -> (KPtr<VmMapEntry>, Result<(), KernReturn>) {
        let (start, end) = (self.get(entry).start.get(), self.get(entry).end.get());
        let timestamp = self.get(map).timestamp.get();
        self.vm_map_unlock(map);
        let result = self.vm_fault_wire(map, start, end);
        self.vm_map_lock(map);
        let mut piece = entry;
        if self.get(map).timestamp.get() != timestamp.wrapping_add(1) {
            piece = match self.vm_map_lookup_entry(map, start) {
                Lookup::Inside(piece) => piece,
                Lookup::After(_) => self.panic(format_args!("vm_map_wire: lookup failed")),
            };
        }
        loop {
            let p = self.get(piece);
            if result.is_err() {
                p.wired_count.set(VmMapEntry::WIRE_FAILED);
            }
            if p.end.get() >= end {
                return (piece, result);
            }
            piece = p.next.get();
        }
    }

    /// The second pass over `[start, end)`: ends the transitions, and undoes this call's wirings if
    /// it failed. Says whether somebody waits for that.
    fn map_wire_finish(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
        result: Result<(), KernReturn>,
    ) -> Waiters {
        let mut waiters = Waiters::None;
        let mut entry = match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(entry) => entry,
            Lookup::After(_) => self.panic(format_args!("vm_map_wire: lookup failed")),
        };
        while entry != header(map) && self.get(entry).start.get() < end {
            let e = self.get(entry);
            if result.is_err() {
                self.map_wire_undo(map, e);
            }
            waiters = waiters.max(self.map_transition_end(e));
            entry = self.vm_map_simplify_entry(map, entry);
            entry = self.get(entry).next.get();
        }
        waiters
    }

    /// Takes this call's wiring of `entry` back.
    fn map_wire_undo(&self, map: KPtr<VmMap>, entry: &VmMapEntry) {
        match entry.wired_count.get() {
            // `vm_fault_wire` has undone its pages itself.
            VmMapEntry::WIRE_FAILED => entry.wired_count.set(0),
            1 => {
                self.vm_fault_unwire(map, entry.start.get(), entry.end.get());
                entry.wired_count.set(0);
            }
            count => entry.wired_count.set(count - 1),
        }
    }
}
