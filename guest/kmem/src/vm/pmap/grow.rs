//! Page tables for more of the kernel's address space.

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, NBPDR};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kva::VM_MAX_KERNEL_ADDRESS;
use vmkern_abi::layout::{PageFlags, VmPage};
use vmkern_abi::pte::{Level, Pte, PteFlags};

use super::Pmap;
use crate::machine::{AllocClass, Machine};
use crate::vm::page::{AllocFlags, Contents, Shortage};
use crate::window::PageTable;

impl<M: Machine> Pmap<M> {
    /// Provides page tables up to `end` (`pmap_growkernel`), before the change of the map that
    /// needs them. Tables that exist, such as the image's, are kept as they are. Locks: the kernel
    /// map's is held; takes the pmap's.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page (FreeBSD panics); then nothing has changed.
    pub fn pmap_growkernel(&self, end: GuestVirt) -> Result<(), Shortage> {
        let old = self.state().kernel_vm_end.get();
        let end = grow_end(end);
        if end <= old {
            return Ok(());
        }
        let mut va = old;
        while va < end {
            self.page_point();
            if self.pmap_make_table(va).is_err() {
                self.pmap_ungrow(old, va);
                return Err(Shortage);
            }
            va = grow_end(va.add(1));
            self.state().kernel_vm_end.set(va);
        }
        Ok(())
    }

    /// Pages that [`Pmap::pmap_growkernel`] takes for `end`: page tables of every level. Locks: the
    /// kernel map's is held.
    pub(in crate::vm) fn pmap_growkernel_pages(&self, end: GuestVirt) -> u64 {
        let end = grow_end(end);
        let mut va = self.state().kernel_vm_end.get();
        let mut pages = 0;
        while va < end {
            let (lowest, next) = self.pmap_next_table(va);
            let stop = next.min(end);
            let below = |level: Level| stop.get().div_ceil(level.span()) - va.get() / level.span();
            pages += match lowest {
                Level::Pt => 0,
                Level::Pd => below(Level::Pd),
                Level::Pdpt => below(Level::Pd) + below(Level::Pdpt),
                Level::Pml4 => below(Level::Pd) + below(Level::Pdpt) + below(Level::Pml4),
            };
            va = stop;
        }
        pages
    }

    /// Makes the missing tables on the way to `va`.
    fn pmap_make_table(&self, va: GuestVirt) -> Result<(), Shortage> {
        for level in [Level::Pml4, Level::Pdpt, Level::Pd] {
            let Some(entry) = self.pmap_entry(va, level) else { return Ok(()) };
            if entry.get().is_valid() {
                continue;
            }
            if self.fails(FailSite::PmapPtAlloc) {
                return Err(Shortage);
            }
            let flags = AllocFlags::WIRED | AllocFlags::ZERO;
            let m = self.vm_page_alloc_noobj(AllocClass::Interrupt, flags).ok_or(Shortage)?;
            if !self.page(m).flags.get().contains(PageFlags::ZERO) {
                self.pmap_zero_page(m);
            }
            let _pmap = self.pmap_lock();
            entry.set(self.pmap_entry_of_table(self.vm_page_to_phys(m)));
            self.state().kernel_pmap.table_count.inc();
        }
        Ok(())
    }

    /// The entry that points to the table at `table`.
    pub(super) fn pmap_entry_of_table(&self, table: GuestPhys) -> Pte {
        let flags = PteFlags::V | PteFlags::RW | PteFlags::A | PteFlags::M;
        Pte::new(table, flags | self.machine().pte_flags_base())
    }

    /// Undoes the growth from `old` on, including the half-made path to `failed`. Tables made for
    /// it are still empty. Tables of the boot lie before `old`, and not in managed pages.
    fn pmap_ungrow(&self, old: GuestVirt, failed: GuestVirt) {
        let mut va = failed;
        let mut tables = KPtr::NULL;
        loop {
            self.pmap_unmake_table(va, old, &mut tables);
            self.page_worked();
            self.page_point();
            if va <= old {
                break;
            }
            va = GuestVirt::new(va.get() - NBPDR);
        }
        self.machine().invalidate_range(old, grow_end(failed.add(1)));
        self.state().kernel_vm_end.set(old);
        // Not before the flush: a CPU that caches a table would read the page's next contents as
        // entries.
        while let Some(m) = tables.non_null() {
            tables = self.vm_page_unchain(m);
            self.vm_page_free_wired(m, Contents::Zero);
            self.page_point();
        }
    }

    /// Removes the tables on the way to `va` that map nothing and lie wholly past `old`, and chains
    /// their pages before `tables`.
    fn pmap_unmake_table(&self, va: GuestVirt, old: GuestVirt, tables: &mut KPtr<VmPage>) {
        for level in [Level::Pd, Level::Pdpt] {
            let base = va.get() & !(level.span() - 1);
            let Some(entry) = self.pmap_entry(va, level) else { continue };
            let pte = entry.get();
            if base < old.get() || !pte.is_valid() || pte.is_large() {
                continue;
            }
            let empty =
                self.at::<PageTable>(pte.frame()).iter().all(|entry| !entry.get().is_valid());
            let Some(m) = self.phys_to_vm_page(pte.frame()).filter(|_| empty) else { continue };
            let pmap = self.pmap_lock();
            entry.set(Pte::EMPTY);
            self.state().kernel_pmap.table_count.dec();
            drop(pmap);
            self.vm_page_chain(m, *tables);
            *tables = m;
        }
    }
}

/// `va` rounded up to what one page table maps, but not past the kernel's address space.
fn grow_end(va: GuestVirt) -> GuestVirt {
    va.get()
        .checked_next_multiple_of(NBPDR)
        .map_or(VM_MAX_KERNEL_ADDRESS, |end| GuestVirt::new(end).min(VM_MAX_KERNEL_ADDRESS))
}
