//! The balloon's pages.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::page::VmFreeList;
use crate::field::Field;

/// Order of the largest block that the balloon takes at a time: 2 MiB.
pub const BALLOON_ORDER: usize = 9;

/// The blocks of pages that the driver of the balloon has taken out of the free lists. Guarded by
/// the free-queue mutex; only the driver's thread changes it.
///
/// A block is `2^order` pages, aligned to its size. Its first page is on one of the lists, and its
/// [`super::VmPage::private`] is the order. Every page of a block has
/// [`super::PageFlags::BALLOON`].
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Balloon {
    /// Pages on both lists.
    pub pages: Field<u64>,
    /// Blocks that stay, the youngest first.
    pub held: VmFreeList,
    /// Blocks of which the device has been told, or is being told, that they leave.
    pub leaving: VmFreeList,
}
