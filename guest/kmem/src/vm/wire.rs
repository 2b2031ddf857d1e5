//! Wiring ranges of a map by faulting their pages in (the half of `vm_map.c` that needs
//! `vm_fault.c`).

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{VmMap, VmMapEntry};

use super::map::{Begun, Lookup};
use super::{Vm, VmMachine};

impl<M: VmMachine> Vm<M> {
    /// Wires `[start, end)`, page aligned and confined to the map, for the system (`vm_map_wire`
    /// with `VM_MAP_WIRE_SYSTEM | VM_MAP_WIRE_NOHOLES`). Takes the map's lock, and releases it
    /// while pages are faulted in; may sleep then. On failure everything is as before, except for
    /// entries that stay cut.
    ///
    /// During this the entries of the range are in transition: no other thread merges, cuts away or
    /// deletes them.
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
        if let Some(code) = self.fail_point_sleepable(FailSite::VmMapWire) {
            return Err(code_of(code));
        }
        let range = (start, end);
        let begin = |entry, end| self.map_wire_begin(map, entry, end);
        let undo = |entry: &VmMapEntry, result: Result<(), KernReturn>| {
            if result.is_err() {
                self.map_wire_undo(entry);
            }
        };
        self.map_transition_range(map, range, "vm_map_wire", begin, undo)
    }

    /// Wires `entry`, in transition, once more: the first time by faulting its pages in, with the
    /// map unlocked. Returns the last of its pieces. The range continues behind that piece, unless
    /// it ends at `end`.
    fn map_wire_begin(&self, map: KPtr<VmMap>, entry: KPtr<VmMapEntry>, end: GuestVirt) -> Begun {
        let e = self.get(entry);
        let mut last = entry;
        if e.wired_count.get() == 0 {
            e.wired_count.set(1);
            let result;
            (last, result) = self.map_fault_in(map, entry);
            if result.is_err() {
                return (last, result);
            }
        } else {
            e.wired_count.inc();
        }
        (last, self.map_hole_check(map, self.get(last), end))
    }

    /// Faults in and wires the pages of `entry`, in transition, with the map unlocked. The entry
    /// may be in pieces afterwards: returns the last one. On failure every piece is marked
    /// [`VmMapEntry::WIRE_FAILED`].
    fn map_fault_in(&self, map: KPtr<VmMap>, entry: KPtr<VmMapEntry>) -> Begun {
        let (start, end) = (self.get(entry).start.get(), self.get(entry).end.get());
        let timestamp = self.get(map).timestamp.get();
        // Entries of others may come and go. This one stays, because it is in transition, but it
        // may move, or be in pieces.
        self.vm_map_unlock(map);
        self.intr_window();
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

    /// Undoes this call's wiring of `entry`.
    fn map_wire_undo(&self, entry: &VmMapEntry) {
        match entry.wired_count.get() {
            // `vm_fault_wire` has undone its pages itself.
            VmMapEntry::WIRE_FAILED => entry.wired_count.set(0),
            1 => {
                self.vm_map_entry_unwire(entry);
                entry.wired_count.set(0);
            }
            count => entry.wired_count.set(count - 1),
        }
    }
}

/// The result that a fail point asks for.
fn code_of(value: u64) -> KernReturn {
    u32::try_from(value).ok().and_then(KernReturn::from_code).unwrap_or(KernReturn::Failure)
}
