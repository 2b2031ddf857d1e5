//! The reader that all of inspection uses.
//!
//! A view is one look: it caches translations ([`super::tlb`]) only for its own lifetime. Nothing
//! that is read is trusted. If an address does not translate to RAM, the read is an error that
//! names the structure; a list is a [`List`], which ends whatever its links say; and a count that
//! the guest claims passes [`View::bounded`] before memory is allocated for it.

use std::cell::OnceCell;
use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::layout::KernelRoots;
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::Pte;
use vmkern_abi::walk::{TableReader, Walk, walk, walk_as_far};
use zerocopy::{FromBytes, IntoBytes};

use crate::InspectError;
use crate::list::List;
use crate::ram::{NotRam, PAGE_WORDS, PageWords};
use crate::source::Source;
use crate::tlb::Tlb;

/// The structure that errors name if a page table cannot be read.
const PAGE_TABLE: &str = "page table";

/// Guest memory through one set of page tables.
pub struct View<'a> {
    source: &'a dyn Source,
    pml4: GuestPhys,
    roots: KPtr<KernelRoots>,
    paging: Paging,
    /// [`Source::held_size`], once it was needed.
    held_size: OnceCell<u64>,
    tlb: Tlb,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("pml4", &self.pml4)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl TableReader for View<'_> {
    type Error = InspectError;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, InspectError> {
        // Round down to a page: with another address, an entry could straddle two pages.
        let at = table.page().checked_add(index as u64 * 8).unwrap_or(table);
        self.source.load(at).map(Pte::from_bits).map_err(not_ram(PAGE_TABLE))
    }

    fn paging(&self) -> Paging {
        self.paging
    }
}

fn not_ram(what: &'static str) -> impl FnOnce(NotRam) -> InspectError {
    move |source| InspectError::NotRam { what, source }
}

impl<'a> View<'a> {
    /// A view through the kernel's page tables.
    ///
    /// # Errors
    /// [`InspectError::NotReady`] when the kernel has not published them.
    pub fn new(source: &'a dyn Source) -> Result<Self, InspectError> {
        let anchors = source.anchors();
        if anchors.pml4 == GuestPhys::new(0) {
            return Err(InspectError::NotReady("page tables"));
        }
        Ok(Self::through(source, anchors.pml4))
    }

    /// A view through the page tables whose root is at `pml4`.
    #[must_use]
    pub fn through(source: &'a dyn Source, pml4: GuestPhys) -> Self {
        Self {
            source,
            pml4,
            roots: source.anchors().roots,
            paging: source.paging(),
            held_size: OnceCell::new(),
            tlb: Tlb::new(),
        }
    }

    /// The source of the view.
    #[must_use]
    pub fn source(&self) -> &'a dyn Source {
        self.source
    }

    /// The root page table.
    #[must_use]
    pub fn pml4(&self) -> GuestPhys {
        self.pml4
    }

    /// Where the kernel's structures begin, according to the kernel.
    #[must_use]
    pub fn roots(&self) -> KPtr<KernelRoots> {
        self.roots
    }

    /// The walk to `va`, read from the page tables now.
    ///
    /// # Errors
    /// When a table on the way is not RAM.
    pub fn walk(&self, va: GuestVirt) -> Result<Walk, InspectError> {
        walk(self, self.pml4, va)
    }

    /// [`View::walk`], as far as the tables can be read, and the error of the first that cannot.
    pub(super) fn walk_as_far(&self, va: GuestVirt) -> (Walk, Option<InspectError>) {
        walk_as_far(self, self.pml4, va)
    }

    /// The page-table page at `table`, all 512 entries in place.
    ///
    /// # Errors
    /// When it is not RAM.
    pub fn table(&self, table: GuestPhys) -> Result<&'a PageWords, InspectError> {
        self.source.page(table).map_err(not_ram(PAGE_TABLE))
    }

    /// A copy of the page-table page at `table`. This is faster for callers that look at all of its
    /// entries: the compiler vectorizes work on plain words, but not on atomics.
    ///
    /// # Errors
    /// When it is not RAM.
    pub fn copy_table(
        &self,
        table: GuestPhys,
        entries: &mut [u64; PAGE_WORDS],
    ) -> Result<(), InspectError> {
        for (entry, word) in entries.iter_mut().zip(self.table(table)?) {
            *entry = word.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// The physical address of `va`, which belongs to structure `what` at `at`.
    fn translate(
        &self,
        what: &'static str,
        at: GuestVirt,
        va: GuestVirt,
    ) -> Result<GuestPhys, InspectError> {
        if let Some(phys) = self.tlb.lookup(va) {
            return Ok(phys);
        }
        let missing = InspectError::NotMapped { what, at, missing: va };
        let mapping = self.walk(va)?.mapping.ok_or(missing)?;
        self.tlb.insert(va, &mapping);
        Ok(mapping.phys)
    }

    /// Copies bytes from virtual address `start` on, a part of structure `what`.
    ///
    /// # Errors
    /// When a part is not mapped, or is not mapped to RAM.
    pub fn read(
        &self,
        what: &'static str,
        start: GuestVirt,
        buffer: &mut [u8],
    ) -> Result<(), InspectError> {
        let mut done = 0;
        while done < buffer.len() {
            let past_the_end = InspectError::NotMapped { what, at: start, missing: start };
            let va = start.checked_add(done as u64).ok_or(past_the_end)?;
            let phys = self.translate(what, start, va)?;
            let in_page = usize::try_from(PAGE_SIZE - va.page_offset()).unwrap_or(usize::MAX);
            let len = in_page.min(buffer.len() - done);
            self.source.read(phys, &mut buffer[done..done + len]).map_err(not_ram(what))?;
            done += len;
        }
        Ok(())
    }

    /// A copy of the `T` at `pointer`, which is structure `what`.
    ///
    /// # Errors
    /// When the address does not have the alignment of `T`, and as [`View::read`].
    pub fn copy<T: FromBytes + IntoBytes>(
        &self,
        what: &'static str,
        pointer: KPtr<T>,
    ) -> Result<T, InspectError> {
        let at = pointer.addr();
        if !at.get().is_multiple_of(align_of::<T>() as u64) {
            return Err(InspectError::Misaligned { what, at });
        }
        let mut value = T::new_zeroed();
        self.read(what, at, value.as_mut_bytes())?;
        Ok(value)
    }

    /// The structures `what` of a list: `head`, the result of `next` for it, and so on, until
    /// `next` returns null or the end set by [`List::until`].
    pub fn list<T, F>(&self, what: &'static str, head: KPtr<T>, next: F) -> List<'_, 'a, T, F>
    where
        T: FromBytes + IntoBytes,
        F: Fn(&T) -> KPtr<T>,
    {
        List::new(self, what, head, next)
    }

    /// How many structures of type `T` fit into the RAM that the source holds: a page of zeros
    /// holds no structure.
    #[must_use]
    pub fn most<T>(&self) -> u64 {
        let held = *self.held_size.get_or_init(|| self.source.held_size());
        held / (size_of::<T>() as u64).max(1) + 1
    }

    /// Whether the page that `va` maps to is all zeros, as far as that is known without reading it.
    pub(super) fn is_blank(&self, va: GuestVirt) -> bool {
        self.translate("memory", va, va).is_ok_and(|phys| !self.source.holds(phys))
    }

    /// Checks `claimed`, the number of `T`s that structure `what` at `at` claims, and returns it.
    /// It is then safe to allocate memory for them.
    ///
    /// # Errors
    /// [`InspectError::Damaged`] when the RAM that the source holds has no room for so many.
    pub fn bounded<T>(
        &self,
        what: &'static str,
        at: GuestVirt,
        claimed: u64,
    ) -> Result<usize, InspectError> {
        let most = self.most::<T>();
        let fits = usize::try_from(claimed).ok().filter(|_| claimed <= most);
        let problem = || format!("it counts {claimed}, but memory has room for at most {most}");
        fits.ok_or_else(|| InspectError::damaged(what, at, problem()))
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::pte::PteFlags;

    use super::*;
    use crate::testing::{mapped_ram, view};

    #[test]
    fn a_copy_crosses_pages_that_are_no_neighbours() {
        let ram = mapped_ram();
        ram.write(
            GuestPhys::from_pfn(34)
                .add(0)
                .get()
                .checked_sub(4)
                .map(GuestPhys::new)
                .expect("it is above 0"),
            &[1, 2, 3, 4],
        )
        .expect("it is RAM");
        ram.write(GuestPhys::from_pfn(40), &[5, 6, 7, 8]).expect("it is RAM");
        let mut bytes = [0; 8];
        view(&ram)
            .read("test", GuestVirt::new(0x4000_1ffc), &mut bytes)
            .expect("both pages are mapped");
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn pointers_that_lead_nowhere_are_errors_that_name_the_structure() {
        let ram = mapped_ram();
        // A view for each: none may have cached a page table that is damaged below.
        let copy = |at| view(&ram).copy::<u64>("thing", KPtr::new(GuestVirt::new(at)));
        assert!(matches!(copy(0x4000_3000), Err(InspectError::NotMapped { what: "thing", .. })));
        assert!(matches!(copy(0x4000_0004), Err(InspectError::Misaligned { what: "thing", .. })));
        assert!(matches!(copy(0x8000_0000_0000), Err(InspectError::NotMapped { .. })));
        assert!(copy(0).is_err());
        let wild = Pte::new(GuestPhys::new(0xf_ffff_ffff_f000), PteFlags::V);
        ram.write(GuestPhys::from_pfn(19), &wild.bits().to_le_bytes()).expect("it is RAM");
        assert!(matches!(copy(0x4000_0000), Err(InspectError::NotRam { what: "thing", .. })));
        ram.write(GuestPhys::from_pfn(16), &wild.bits().to_le_bytes()).expect("it is RAM");
        assert!(matches!(copy(0x4000_0000), Err(InspectError::NotRam { what: "page table", .. })));
    }

    #[test]
    fn a_count_that_memory_cannot_hold_is_refused_before_anything_is_allocated() {
        let ram = mapped_ram();
        let bounded =
            |claimed| view(&ram).bounded::<[u64; 8]>("thing", GuestVirt::new(64), claimed);
        assert_eq!(bounded((8 << 20) / 64), Ok((8 << 20) / 64));
        // One more may begin or end in a page that the source does not hold.
        assert!(matches!(
            bounded((8 << 20) / 64 + 2),
            Err(InspectError::Damaged { what: "thing", .. })
        ));
        assert!(bounded(u64::MAX).is_err());
    }
}
