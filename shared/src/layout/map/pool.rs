//! Where a map's entries and index nodes lie.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::{MapNode, VmMap, VmMapEntry};
use crate::addr::{KPtr, PAGE_SIZE};
use crate::field::Field;

/// First line of a page of equal items.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PoolPage {
    /// The page before it, null in the first page.
    pub prev: Field<KPtr<PoolPage>>,
    /// The page after it, null in the last page.
    pub next: Field<KPtr<PoolPage>>,
    #[doc(hidden)]
    pub _pad: [Field<u64>; 6],
}

/// All items of one kind that a map owns: first those in its home, then those of whole pages. The
/// first `used` items are in use, without gaps, and the others are the reserve.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapPool {
    /// Items in use.
    pub used: Field<u64>,
    /// Items.
    pub capacity: Field<u64>,
    /// The first page after the home, or null.
    pub first: Field<KPtr<PoolPage>>,
    /// The page of the last item in use, null while that item is in the home.
    pub top: Field<KPtr<PoolPage>>,
    /// The last page, or null.
    pub last: Field<KPtr<PoolPage>>,
}

/// A map's home: a page that is allocated with the map and lives as long. It holds the map and its
/// first entries and nodes.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapHome {
    /// The map.
    pub map: VmMap,
    /// The first entries of its pool.
    pub entries: [VmMapEntry; MapHome::ENTRIES],
    /// The first nodes of its pool.
    pub nodes: [MapNode; MapHome::NODES],
}

impl MapHome {
    /// Entries in the home.
    pub const ENTRIES: usize = 36;
    /// Nodes in the home: as many as a tree of these entries and the header can have.
    pub const NODES: usize = 6;
}

impl PoolPage {
    /// Entries in a page of entries.
    pub const ENTRIES: u64 =
        (PAGE_SIZE - size_of::<Self>() as u64) / size_of::<VmMapEntry>() as u64;
    /// Nodes in a page of nodes.
    pub const NODES: u64 = (PAGE_SIZE - size_of::<Self>() as u64) / size_of::<MapNode>() as u64;
}

const _: () = assert!(size_of::<MapHome>() as u64 == PAGE_SIZE);
const _: () = assert!(size_of::<PoolPage>() == 64);
