//! Where each structure begins.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::meter::VmMeter;
use crate::addr::GuestPhys;
use crate::field::Field;

/// The table that the host starts from. One, in memory of the kernel, named by the control region.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct KernelRoots {
    /// Root page table.
    pub pml4: Field<GuestPhys>,
    /// Counters.
    pub meter: VmMeter,
}
