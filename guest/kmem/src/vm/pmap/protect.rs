//! Taking permissions away from mappings that exist.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::layout::{PageFlags, Protection};
use vmkern_abi::pte::PteFlags;

use super::{Pmap, TlbFlush};
use crate::machine::Machine;
use crate::num::to_usize;

impl<M: Machine> Pmap<M> {
    /// Takes from all mappings in `[start, end)`, page aligned, what `prot` does not allow
    /// (`pmap_protect` for kernel_pmap): without READ they are removed, without WRITE they become
    /// read-only. It gives nothing: a range that may be written again gets its permission by the
    /// fault of the first write. Mappings of `pmap_kenter` are treated alike, and their pages stay
    /// the caller's; no fault gives them anything back.
    ///
    /// The caller flushes what is returned before it relies on the change. Panics on a mapping of
    /// the kernel image. Locks: that of the object behind the range is held, if it has one; takes
    /// the pmap's.
    pub fn pmap_protect(&self, start: GuestVirt, end: GuestVirt, prot: Protection) -> TlbFlush {
        match (prot.contains(Protection::READ), prot.contains(Protection::WRITE)) {
            (true, true) => TlbFlush::NONE,
            (true, false) => self.pmap_write_protect(start, end),
            // No CPU can set M in a mapping that is read-only, so none is lost with the mapping.
            (false, _) => self.pmap_write_protect(start, end).merge(self.pmap_remove(start, end)),
        }
    }

    /// Makes all mappings in `[start, end)` read-only, and notes which of their pages are dirty.
    fn pmap_write_protect(&self, start: GuestVirt, end: GuestVirt) -> TlbFlush {
        let mut flush = TlbFlush::NONE;
        let pmap = self.pmap_lock();
        for va in (start.get()..end.get()).step_by(to_usize(PAGE_SIZE)).map(GuestVirt::new) {
            self.page_point();
            let Some((entry, _)) = self.pmap_pte(va) else { continue };
            if !entry.get().flags().contains(PteFlags::V | PteFlags::RW) {
                continue;
            }
            if self.is_image(va) {
                self.panic(format_args!("pmap_protect: va {va:#x} belongs to the kernel image"));
            }
            // A CPU may set A and M at any time before the flush: the rest of the entry is changed
            // by one instruction, and M is taken over as it then is.
            let old = entry.fetch_clear(PteFlags::RW | PteFlags::M);
            if old.flags() & (PteFlags::M | PteFlags::KENTER) == PteFlags::M {
                let m = self.phys_to_vm_page(old.frame());
                let managed = |m: &_| !self.page(*m).flags.get().contains(PageFlags::UNMANAGED);
                m.filter(managed).into_iter().for_each(|m| self.vm_page_dirty(m));
            }
            flush.add(va);
            self.page_worked();
        }
        drop(pmap);
        flush
    }
}
