//! Unwiring a range.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{VmMap, VmMapEntry};

use super::Map;
use crate::machine::Machine;

impl<M: Machine> Map<M> {
    /// Removes one of the system's wirings of `[start, end)`, page aligned and confined to the map
    /// (`vm_map_unwire` with `VM_MAP_WIRE_SYSTEM | VM_MAP_WIRE_NOHOLES`). When the last wiring is
    /// removed, a range keeps its pages and translations, but the pages of an anonymous object can
    /// be paged out again. Takes the map's lock, which it keeps while it unwires; waits, with the
    /// map unlocked, for entries in transition. On failure everything is as before, except for
    /// entries that stay cut.
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
        let begin = |entry, end| {
            let e = self.get(entry);
            let result =
                self.map_hole_check(map, e, end).and_then(|()| match e.wired_count.get() {
                    0 => Err(KernReturn::InvalidArgument),
                    _ => Ok(()),
                });
            (entry, result)
        };
        let unwire = |e: &VmMapEntry, result: Result<(), KernReturn>| {
            if result.is_ok() {
                e.wired_count.dec();
                if e.wired_count.get() == 0 {
                    self.vm_map_entry_unwire(e);
                }
            }
        };
        self.map_transition_range(map, (start, end), "vm_map_unwire", begin, unwire)
    }
}
