//! Guest memory, in the way that the rules read it.
//!
//! Structures are found by direct-map arithmetic instead of the page tables, so a damaged table of
//! the direct map is one finding, not a thousand. A rule of its own checks that the direct map
//! agrees with the arithmetic.

use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, KPtr, PAGE_SIZE};
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::layout::VmPage;
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::Pte;
use vmkern_abi::walk::TableReader;
use zerocopy::{FromBytes, IntoBytes};

use crate::InspectError;
use crate::ram::{PAGE_WORDS, PageWords};
use crate::source::Source;

impl TableReader for Memory<'_> {
    type Error = InspectError;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, InspectError> {
        let page = self.page("page table", table)?;
        Ok(Pte::from_bits(page[index % PAGE_WORDS].load(Ordering::Relaxed)))
    }

    fn paging(&self) -> Paging {
        self.0.paging()
    }
}

/// The most page tables that no element of the page array describes: one for each GiB of the direct
/// map, the boot's tables for kernel_map, and a few for the image.
const UNMANAGED_TABLES: u64 = 1024;

/// Guest memory.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a>(&'a dyn Source);

impl<'a> Memory<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self(source)
    }

    /// The source.
    pub(super) fn source(&self) -> &'a dyn Source {
        self.0
    }

    /// Whether the page at `at` may hold anything but zeros.
    pub(super) fn holds(&self, at: GuestPhys) -> bool {
        self.0.holds(at)
    }

    /// The most pages that can be in use, however much RAM the guest claims: each has a word in a
    /// page table or in an index, which takes room in the memory that the source holds.
    pub(super) fn most_pages(&self) -> u64 {
        let words = self.0.held_size() / size_of::<u64>() as u64;
        words.min(self.0.ram_size() / PAGE_SIZE)
    }

    /// The most page tables: each is an allocated page, whose element of the page array is not
    /// zero. The boot's tables are not managed and come on top.
    pub(super) fn most_tables(&self) -> u64 {
        self.0.held_size() / size_of::<VmPage>() as u64 + UNMANAGED_TABLES
    }

    /// The page at `at`, part of structure `what`, in place.
    pub(super) fn page(
        &self,
        what: &'static str,
        at: GuestPhys,
    ) -> Result<&'a PageWords, InspectError> {
        self.0.page(at).map_err(|source| InspectError::NotRam { what, source })
    }

    /// Copies bytes from physical address `at` on, a part of structure `what`.
    pub(super) fn read(
        &self,
        what: &'static str,
        at: GuestPhys,
        buffer: &mut [u8],
    ) -> Result<(), InspectError> {
        self.0.read(at, buffer).map_err(|source| InspectError::NotRam { what, source })
    }

    /// A copy of the `T` at physical address `at`, which is structure `what`.
    pub(super) fn at<T: FromBytes + IntoBytes>(
        &self,
        what: &'static str,
        at: GuestPhys,
    ) -> Result<T, InspectError> {
        let mut value = T::new_zeroed();
        self.read(what, at, value.as_mut_bytes())?;
        Ok(value)
    }

    /// A copy of the `T` at `pointer`, which is structure `what` and lies in the direct map.
    pub(super) fn get<T: FromBytes + IntoBytes>(
        &self,
        what: &'static str,
        pointer: KPtr<T>,
    ) -> Result<T, InspectError> {
        let at = pointer.addr();
        if !at.get().is_multiple_of(align_of::<T>() as u64) {
            return Err(InspectError::Misaligned { what, at });
        }
        let outside = || InspectError::damaged(what, at, "its address is not in the direct map");
        self.at(what, dmap_to_phys(at).ok_or_else(outside)?)
    }
}
