//! `vm_page`.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::object::VmObject;
use crate::addr::KPtr;
use crate::field::Field;

/// One page of managed memory. All zero is a page that is free inside a buddy block and not its head.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmPage {
    /// The object it belongs to.
    pub object: Field<KPtr<VmObject>>,
    /// Its index there.
    pub pindex: Field<u64>,
    #[doc(hidden)]
    pub _pad: [Field<u64>; 6],
}

const _: () = assert!(size_of::<VmPage>() == 64);
