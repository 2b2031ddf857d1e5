//! The kernel's page tables (`amd64/pmap.c`), reached through the direct map.
//!
//! Kernel mappings are global, so a CPU drops one only by an explicit invalidation. A function that
//! removes mappings returns a [`TlbFlush`] with the addresses that have to be invalidated; one
//! flush serves a whole range, and an entry that was not valid before needs none. The pages behind
//! removed mappings may be reused only after the flush.
//!
//! Every mapping is NX: nothing on the kernel's heap is ever executed (FreeBSD mapped it executable
//! in 2008). The kernel image's own mappings exist before and are never changed here. The boot
//! makes the first page tables, outside of managed memory (`pmap_init`). Only
//! [`Pmap::pmap_growkernel`] makes others. None is ever freed.

mod grow;
mod protect;

use core::ops::Deref;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, NBPDR, PAGE_SIZE};
use vmkern_abi::field::Field;
use vmkern_abi::kva::{KERNBASE, VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS, dmap_to_phys};
use vmkern_abi::layout::{BootRegion, Protection, VmPage};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::{Level, Pte, PteFlags};
use vmkern_abi::walk::{self, TableReader};

use super::object::Object;
use crate::kern::guard::{Guard, Lock};
use crate::kern::lock::LockClass;
use crate::machine::Machine;
use crate::num::to_usize;
use crate::window::PageTable;

/// Addresses whose translations CPUs may still cache.
#[must_use = "translations that were taken away stay in use until Pmap::tlb_flush"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlbFlush(Option<(GuestVirt, GuestVirt)>);

impl TlbFlush {
    /// Nothing to flush.
    pub const NONE: Self = Self(None);

    /// Adds the page at `va`.
    fn add(&mut self, va: GuestVirt) {
        self.0 = Some(match self.0 {
            None => (va, va.add(PAGE_SIZE)),
            Some((start, end)) => (start.min(va), end.max(va.add(PAGE_SIZE))),
        });
    }

    /// One flush for both.
    pub fn merge(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some((a, b)), Some((c, d))) => Self(Some((a.min(c), b.max(d)))),
            (some, None) | (None, some) => Self(some),
        }
    }
}

/// Whether a mapping counts as wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wired {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// The kernel's page tables, over the pages that they map: the layer below [`super::map::Map`].
#[derive(Debug)]
pub struct Pmap<M> {
    object: Object<M>,
}

impl<M> Deref for Pmap<M> {
    type Target = Object<M>;

    #[inline]
    fn deref(&self) -> &Object<M> {
        &self.object
    }
}

/// The kind of the pmap's mutex.
enum PmapLock {}

impl Lock for PmapLock {
    const CLASS: LockClass = LockClass::Pmap;
}

/// kernel_pmap, locked.
type LockedPmap<'a, M> = Guard<'a, M, PmapLock>;

/// Reads page tables through the direct map.
struct Tables<'a, M: Machine>(&'a Pmap<M>);

impl<M: Machine> TableReader for Tables<'_, M> {
    type Error = core::convert::Infallible;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, Self::Error> {
        Ok(self.0.at::<PageTable>(table)[index].get())
    }

    #[inline]
    fn paging(&self) -> Paging {
        self.0.machine().paging()
    }
}

/// The bits that a CPU sets in an entry itself.
const USED: PteFlags = PteFlags::A.union(PteFlags::M);

impl<M: Machine> Pmap<M> {
    /// The page tables over the pages of `object`.
    pub(in crate::vm) const fn new(object: Object<M>) -> Self {
        Self { object }
    }

    fn pmap_lock(&self) -> LockedPmap<'_, M> {
        self.mtx_guard(&self.state().kernel_pmap.lock)
    }

    /// Makes all CPUs flush the translations in `flush`.
    pub fn tlb_flush(&self, flush: TlbFlush) {
        if let Some((start, end)) = flush.0 {
            self.machine().invalidate_range(start, end);
        }
    }

    /// The entry of `level` for `va`, if the tables above exist and no larger page is in the way.
    fn pmap_entry(&self, va: GuestVirt, level: Level) -> Option<&Field<Pte>> {
        let Ok(found) =
            walk::find_entry(&Tables(self), self.state().kernel_pmap.pml4.get(), va, level);
        let (table, index) = found?;
        Some(&self.at::<PageTable>(table)[index])
    }

    /// The page-table entry for `va` (`pmap_pte`), and the count of its table's valid entries.
    fn pmap_pte(&self, va: GuestVirt) -> Option<(&Field<Pte>, Option<&Field<u32>>)> {
        let Ok(found) =
            walk::find_entry(&Tables(self), self.state().kernel_pmap.pml4.get(), va, Level::Pt);
        let (table, index) = found?;
        Some((&self.at::<PageTable>(table)[index], self.pmap_table_count(table)))
    }

    /// The count of valid entries of the page table at `table`: beside the roots for a table of the
    /// boot, in its page for one made since. The image's tables have none.
    fn pmap_table_count(&self, table: GuestPhys) -> Option<&Field<u32>> {
        let boots = self.state().boot_tables.count(table);
        boots.or_else(|| self.phys_to_vm_page(table).map(|m| &self.page(m).private))
    }

    /// Whether `va` belongs to the kernel image's own mapping.
    fn is_image(&self, va: GuestVirt) -> bool {
        va >= KERNBASE && va < self.state().virtual_avail.get()
    }

    /// Physical address behind `va`, if a valid mapping is there (`pmap_extract` for kernel_pmap).
    #[must_use]
    pub fn pmap_extract(&self, va: GuestVirt) -> Option<GuestPhys> {
        let Ok(walk) = walk::walk(&Tables(self), self.state().kernel_pmap.pml4.get(), va);
        walk.mapping.map(|mapping| mapping.phys)
    }

    /// Whether the tables let the kernel write at `va`, at every level.
    #[must_use]
    pub fn pmap_is_writable(&self, va: GuestVirt) -> bool {
        let Ok(walk) = walk::walk(&Tables(self), self.state().kernel_pmap.pml4.get(), va);
        walk.mapping.is_some_and(|mapping| mapping.flags.contains(PteFlags::RW))
    }

    /// Physical address behind a kernel address (`pmap_kextract`): of the direct map by arithmetic.
    #[must_use]
    pub fn pmap_kextract(&self, va: GuestVirt) -> Option<GuestPhys> {
        dmap_to_phys(va).or_else(|| self.pmap_extract(va))
    }

    /// Maps the page `m` at `va` (`pmap_enter` for kernel_pmap). `access` is the access that needs
    /// the mapping now: a write marks it modified. Never sleeps; replaces and flushes an old
    /// mapping.
    ///
    /// Panics when there is no page table for `va` or a 2 MiB page is in the way.
    /// Locks: the object's is held; takes the pmap's.
    pub fn pmap_enter(
        &self,
        va: GuestVirt,
        access: Protection,
        m: KPtr<VmPage>,
        prot: Protection,
        wired: Wired,
    ) {
        // 1. The translation.
        let va = va.page();
        let mut flags = self.machine().pte_flags_base()
            | PteFlags::V
            | PteFlags::G
            | PteFlags::A
            | PteFlags::NX;
        flags.set(PteFlags::RW, prot.contains(Protection::WRITE));
        flags.set(PteFlags::M, access.contains(Protection::WRITE));
        flags.set(PteFlags::W, wired == Wired::Yes);
        let pa = self.vm_page_to_phys(m);
        // 2. The old one may be the same: two CPUs have faulted on one page. What the CPUs have
        // noted in it stays.
        let mut flush = TlbFlush::NONE;
        let pmap = self.pmap_lock();
        let (entry, count) = self.pmap_pte_for_enter(&pmap, va);
        let old = entry.get();
        self.page_worked();
        let is_same_page = old.is_valid() && old.frame() == pa;
        if is_same_page {
            flags |= old.flags() & USED;
            if old.flags() == flags {
                return;
            }
        }
        // 3. Otherwise it is replaced. CPUs that may cache a different translation flush it.
        self.pmap_account(&pmap, old, -1);
        if !old.is_valid() {
            count_entry(count, 1);
        } else if !is_same_page || old.flags() | USED != flags | USED {
            flush.add(va);
        }
        let new = Pte::new(pa, flags);
        entry.set(new);
        self.intr_window();
        self.pmap_account(&pmap, new, 1);
        self.tlb_flush(flush);
    }

    fn pmap_pte_for_enter(
        &self,
        _: &LockedPmap<'_, M>,
        va: GuestVirt,
    ) -> (&Field<Pte>, Option<&Field<u32>>) {
        if self.is_image(va) {
            self.panic(format_args!("pmap_enter: va {va:#x} belongs to the kernel image"));
        }
        match self.pmap_pte(va) {
            Some(found) => found,
            None if self.pmap_extract(va).is_some() => {
                self.panic(format_args!("pmap_enter: attempted pmap_enter on 2MB page"))
            }
            None => self.panic(format_args!("pmap_enter: invalid page directory va={va:#x}")),
        }
    }

    /// Adds the mapping `pte` to the pmap's counts, or with -1 removes it from them.
    fn pmap_account(&self, _: &LockedPmap<'_, M>, pte: Pte, change: i64) {
        if !pte.is_valid() || pte.flags().contains(PteFlags::KENTER) {
            return;
        }
        let pmap = &self.state().kernel_pmap;
        pmap.resident_count.update_locked(|n| n.wrapping_add_signed(change));
        if pte.flags().contains(PteFlags::W) {
            pmap.wired_count.update_locked(|n| n.wrapping_add_signed(change));
        }
    }

    /// Removes all mappings in `[start, end)`, page aligned (`pmap_remove`). Empty tables are
    /// skipped as a whole. Panics on a mapping of the kernel image. Locks: takes the pmap's.
    pub fn pmap_remove(&self, start: GuestVirt, end: GuestVirt) -> TlbFlush {
        let mut flush = TlbFlush::NONE;
        let mut va = start;
        let pmap = self.pmap_lock();
        while va < end {
            self.page_point();
            self.page_worked();
            let (level, next) = self.pmap_next_table(va);
            let stop = next.min(end);
            if level == Level::Pt {
                self.pmap_remove_in_table(&pmap, va, stop, &mut flush);
            }
            va = stop;
        }
        flush
    }

    /// The lowest level of table that exists for `va`, and the first address past the range of that
    /// table's entry (past the whole table for a page table).
    fn pmap_next_table(&self, va: GuestVirt) -> (Level, GuestVirt) {
        for level in [Level::Pml4, Level::Pdpt, Level::Pd] {
            let valid = self.pmap_entry(va, level).is_some_and(|entry| entry.get().is_valid());
            if !valid || level == Level::Pd {
                let next = (va.get() / level.span() + 1).checked_mul(level.span());
                let next = next.map_or(VM_MAX_KERNEL_ADDRESS, GuestVirt::new);
                return (if valid { Level::Pt } else { level }, next);
            }
        }
        (Level::Pml4, VM_MAX_KERNEL_ADDRESS)
    }

    /// Clears the entries for `[start, end)`, which one page table maps.
    fn pmap_remove_in_table(
        &self,
        pmap: &LockedPmap<'_, M>,
        start: GuestVirt,
        end: GuestVirt,
        flush: &mut TlbFlush,
    ) {
        // 1. The table, and how many translations are in it.
        let pde = self.pmap_entry(start, Level::Pd).map_or(Pte::EMPTY, Field::get);
        if pde.is_large() {
            self.panic(format_args!("pmap_remove: va {start:#x} belongs to the kernel image"));
        }
        let count = self.pmap_table_count(pde.frame());
        let entries = &self.at::<PageTable>(pde.frame())[Level::Pt.index(start)..];
        let addresses = (start.get()..end.get()).step_by(to_usize(PAGE_SIZE)).map(GuestVirt::new);
        // 2. Entry after entry, until the table is empty.
        for (va, entry) in addresses.zip(entries) {
            if count.is_some_and(|count| count.get() == 0) {
                return;
            }
            if !entry.get().is_valid() {
                continue;
            }
            if self.is_image(va) {
                self.panic(format_args!("pmap_remove: va {va:#x} belongs to the kernel image"));
            }
            self.pmap_account(pmap, entry.get(), -1);
            entry.set(Pte::EMPTY);
            count_entry(count, -1);
            flush.add(va);
            self.page_worked();
            self.page_point();
        }
    }

    /// Clears the wired bit of all mappings in `[start, end)`, page aligned, and calls `each` with
    /// the pages behind them (`pmap_change_wiring`, for a range). Returns how many pages of the
    /// range are not mapped. Locks: takes the pmap's, which is held while `each` runs.
    pub fn pmap_unwire(
        &self,
        start: GuestVirt,
        end: GuestVirt,
        each: impl Fn(KPtr<VmPage>),
    ) -> u64 {
        let mut missing = 0;
        let pmap = self.pmap_lock();
        for va in (start.get()..end.get()).step_by(to_usize(PAGE_SIZE)).map(GuestVirt::new) {
            let Some((entry, _)) = self.pmap_pte(va).filter(|(entry, _)| entry.get().is_valid())
            else {
                missing += 1;
                continue;
            };
            let old = entry.get();
            let new = Pte::new(old.frame(), old.flags() - PteFlags::W);
            self.pmap_account(&pmap, old, -1);
            entry.set(new);
            self.pmap_account(&pmap, new, 1);
            if let Some(m) = self.phys_to_vm_page(old.frame()) {
                each(m);
            }
            self.page_worked();
            self.page_point();
        }
        missing
    }

    /// Maps `pa` at `va` without counting it (`pmap_kenter`). An old mapping needs the flush that
    /// is returned. Panics as [`Pmap::pmap_enter`] does. Locks: takes the pmap's.
    pub fn pmap_kenter(&self, va: GuestVirt, pa: GuestPhys) -> TlbFlush {
        let mut flush = TlbFlush::NONE;
        let flags = PteFlags::V | PteFlags::RW | PteFlags::G | PteFlags::NX | PteFlags::KENTER;
        let pmap = self.pmap_lock();
        let (entry, count) = self.pmap_pte_for_enter(&pmap, va);
        let old = entry.get();
        if old.is_valid() {
            self.pmap_account(&pmap, old, -1);
            flush.add(va);
        } else {
            count_entry(count, 1);
        }
        entry.set(Pte::new(pa, flags | self.machine().pte_flags_base()));
        flush
    }

    /// Maps `pages` from `sva` on, uncounted (`pmap_qenter`), and flushes if there were mappings
    /// before.
    pub fn pmap_qenter(&self, sva: GuestVirt, pages: impl IntoIterator<Item = KPtr<VmPage>>) {
        let mut flush = TlbFlush::NONE;
        let mut va = sva;
        for m in pages {
            flush = flush.merge(self.pmap_kenter(va, self.vm_page_to_phys(m)));
            va = va.add(PAGE_SIZE);
        }
        self.tlb_flush(flush);
    }

    /// Removes `count` mappings from `sva` on and flushes once (`pmap_qremove`); entries may be
    /// empty.
    pub fn pmap_qremove(&self, sva: GuestVirt, count: u64) {
        let flush = self.pmap_remove(sva, sva.add(count * PAGE_SIZE));
        self.tlb_flush(flush);
    }

    /// The page that `pmap_kenter` or `pmap_qenter` mapped at `va`, if there is one.
    #[must_use]
    pub fn pmap_kentered(&self, va: GuestVirt) -> Kentered {
        if self.is_image(va) {
            return Kentered::Occupied;
        }
        match self.pmap_pte(va) {
            None => Kentered::NoTable,
            Some((entry, _)) if !entry.get().is_valid() => Kentered::Empty,
            Some((entry, _)) => {
                let pte = entry.get();
                match self.phys_to_vm_page(pte.frame()) {
                    Some(m) if pte.flags().contains(PteFlags::KENTER) => Kentered::Page(m),
                    _ => Kentered::Occupied,
                }
            }
        }
    }

    /// Sets up kernel_pmap with the page tables of `region` (`create_pagetables`,
    /// `pmap_bootstrap`). They are zero, and not touched.
    pub(crate) fn pmap_init(&self, pml4: GuestPhys, region: &BootRegion) {
        let state = self.state();
        state.kernel_pmap.pml4.set(pml4);
        state.boot_tables.kpdphys.set(region.kpd);
        state.boot_tables.kptphys.set(region.kpt);
        state.boot_tables.nkpt.set(region.nkpt);
        let first = region.kpt.pfn();
        for (table, entry) in (first..first + region.nkpt).zip(self.at::<PageTable>(region.kpd)) {
            entry.set(self.pmap_entry_of_table(GuestPhys::from_pfn(table)));
        }
        // Linked when it is full: if page tables are shadowed, a write to a directory that a CPU
        // has walked costs a fault.
        match self.pmap_entry(VM_MIN_KERNEL_ADDRESS, Level::Pdpt) {
            Some(entry) => entry.set(self.pmap_entry_of_table(region.kpd)),
            None => self.panic(format_args!("pmap_bootstrap: kernel_map has no PDPT")),
        }
        state.kernel_vm_end.set(VM_MIN_KERNEL_ADDRESS.add(region.nkpt * NBPDR));
    }
}

/// The state of an address at which `pmap_qenter` may want to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kentered {
    /// No page table.
    NoTable,
    /// No mapping.
    Empty,
    /// A page that `pmap_kenter` or `pmap_qenter` put there.
    Page(KPtr<VmPage>),
    /// Any other mapping.
    Occupied,
}

/// Counts a valid entry that was added to or removed from a page table.
fn count_entry(count: Option<&Field<u32>>, change: i32) {
    if let Some(count) = count {
        count.update_locked(|n| n.wrapping_add_signed(change));
    }
}
