//! The reader that everything else in inspection goes through.

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::layout::KernelRoots;
use vmkern_abi::pte::Pte;
use vmkern_abi::walk::{TableReader, Walk, walk};
use zerocopy::FromBytes;

use super::InspectError;
use crate::kvm::memory::GuestRam;

/// Guest memory through one set of page tables.
pub(super) struct View<'a> {
    ram: &'a GuestRam,
    pml4: GuestPhys,
    /// Where the kernel says that its structures begin.
    pub(super) roots: KPtr<KernelRoots>,
}

impl TableReader for View<'_> {
    type Error = InspectError;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, InspectError> {
        // A table is a whole page: an address that is none would let an entry straddle two.
        let at = table.page().checked_add(index as u64 * 8).unwrap_or(table);
        self.ram.load(at).map(Pte::from_bits).map_err(|source| InspectError::NotRam { what: "page table", source })
    }
}

impl<'a> View<'a> {
    pub(super) fn new(ram: &'a GuestRam, pml4: GuestPhys, roots: KPtr<KernelRoots>) -> Self {
        Self { ram, pml4, roots }
    }

    /// The walk to `va`.
    pub(super) fn walk(&self, va: GuestVirt) -> Result<Walk, InspectError> {
        walk(self, self.pml4, va)
    }

    /// Copies bytes from virtual address `start` on, a part of structure `what`.
    pub(super) fn read(&self, what: &'static str, start: GuestVirt, buffer: &mut [u8]) -> Result<(), InspectError> {
        let mut done = 0;
        while done < buffer.len() {
            let missing = |missing| InspectError::NotMapped { what, at: start, missing };
            let va = start.checked_add(done as u64).ok_or_else(|| missing(start))?;
            let mapping = self.walk(va)?.mapping.ok_or_else(|| missing(va))?;
            let in_page = usize::try_from(PAGE_SIZE - va.page_offset()).unwrap_or(usize::MAX);
            let len = in_page.min(buffer.len() - done);
            let part = &mut buffer[done..done + len];
            self.ram.read(mapping.phys, part).map_err(|source| InspectError::NotRam { what, source })?;
            done += len;
        }
        Ok(())
    }

    /// A copy of the `T` at `pointer`, which is structure `what`.
    pub(super) fn copy<T: FromBytes>(&self, what: &'static str, pointer: KPtr<T>) -> Result<T, InspectError> {
        let at = pointer.addr();
        if !at.get().is_multiple_of(align_of::<T>() as u64) {
            return Err(InspectError::Misaligned { what, at });
        }
        let mut bytes = vec![0; size_of::<T>()];
        self.read(what, at, &mut bytes)?;
        T::read_from_bytes(&bytes).map_err(|_| InspectError::damaged(what, at, "its size is wrong"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use vmkern_abi::pte::PteFlags;

    use super::*;

    /// RAM of 8 MiB whose pages 16 to 19 are page tables that map [0x4000_0000, +0x3000) to pages 32, 33 and 40.
    pub(in super::super) fn mapped_ram() -> GuestRam {
        let ram = GuestRam::new(8 << 20).expect("8 MiB can be had");
        let set = |table: u64, index: u64, frame: u64| {
            let pte = Pte::new(GuestPhys::from_pfn(frame), PteFlags::V | PteFlags::RW | PteFlags::A);
            ram.write(GuestPhys::from_pfn(table).add(index * 8), &pte.bits().to_le_bytes()).expect("it is RAM");
        };
        set(16, 0, 17);
        set(17, 1, 18);
        set(18, 0, 19);
        for (index, frame) in [32, 33, 40].into_iter().enumerate() {
            set(19, index as u64, frame);
        }
        ram
    }

    pub(in super::super) fn view(ram: &GuestRam) -> View<'_> {
        View::new(ram, GuestPhys::from_pfn(16), KPtr::NULL)
    }

    #[test]
    fn a_copy_crosses_pages_that_are_no_neighbours() {
        let ram = mapped_ram();
        ram.write(
            GuestPhys::from_pfn(34).add(0).get().checked_sub(4).map(GuestPhys::new).expect("it is above 0"),
            &[1, 2, 3, 4],
        )
        .expect("it is RAM");
        ram.write(GuestPhys::from_pfn(40), &[5, 6, 7, 8]).expect("it is RAM");
        let mut bytes = [0; 8];
        view(&ram).read("test", GuestVirt::new(0x4000_1ffc), &mut bytes).expect("both pages are mapped");
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn pointers_that_lead_nowhere_are_errors_that_name_the_structure() {
        let ram = mapped_ram();
        let view = view(&ram);
        let copy = |at| view.copy::<u64>("thing", KPtr::new(GuestVirt::new(at)));
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
}
