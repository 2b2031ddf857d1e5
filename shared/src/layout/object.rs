//! `vm_object`.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::field::Field;

/// What holds the pages of map entries.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmObject {
    /// References: one for its creation and one an entry.
    pub ref_count: Field<u32>,
    /// Type (`OBJT_*`): DEFAULT 0, SWAP 1, PHYS 4, DEAD 5.
    pub kind: Field<u32>,
    /// Pages that it can hold.
    pub size: Field<u64>,
    /// Pages that it holds.
    pub resident_page_count: Field<u64>,
}
