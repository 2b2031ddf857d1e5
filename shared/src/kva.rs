//! The kernel's virtual address space: what lies where.
//!
//! | range | PML4 slots | what |
//! |---|---|---|
//! | [`DMAP_MIN`] .. [`DMAP_MAX`] | 510 | physical memory from 0 upward, in 2 MiB pages |
//! | [`VM_MIN_KERNEL_ADDRESS`] .. [`KERNBASE`] | 511 | kernel_map and its submaps |
//! | [`KERNBASE`] .. [`VM_MAX_KERNEL_ADDRESS`] | 511 | the kernel image, then kernel_map again |
//!
//! The first range is the direct map, which is never executed. A byte of the image at physical
//! address `p` is at `KERNBASE + p`.
//!
//! FreeBSD's amd64 of 2009 has this shape; in April 2008 kernel_map was the last 2 GiB alone.

use crate::addr::{GuestPhys, GuestVirt};

/// First address of the direct map (FreeBSD's `DMAP_MIN_ADDRESS`).
pub const DMAP_MIN: GuestVirt = GuestVirt::new(0xffff_ff00_0000_0000);
/// First address past the direct map.
pub const DMAP_MAX: GuestVirt = GuestVirt::new(0xffff_ff80_0000_0000);
/// First address of kernel_map.
pub const VM_MIN_KERNEL_ADDRESS: GuestVirt = GuestVirt::new(0xffff_ff80_0000_0000);
/// First address past kernel_map. The last page of the address space is never used.
pub const VM_MAX_KERNEL_ADDRESS: GuestVirt = GuestVirt::new(0xffff_ffff_ffff_f000);
/// Page tables that the boot makes for the first addresses of kernel_map, 480 MiB, if memory is
/// large enough ([`crate::layout::BootRegion`]).
pub const NKPT: usize = 240;
/// Where physical address 0 would appear in the image's mapping.
pub const KERNBASE: GuestVirt = GuestVirt::new(0xffff_ffff_8000_0000);

/// The most physical memory that can be managed: as much as the direct map can map.
pub const MAX_PHYS: GuestPhys = GuestPhys::new(DMAP_MAX.get() - DMAP_MIN.get());

/// The direct-map address of `pa` (FreeBSD's `PHYS_TO_DMAP`). `pa` is below [`MAX_PHYS`].
#[must_use]
pub const fn phys_to_dmap(pa: GuestPhys) -> GuestVirt {
    GuestVirt::new(DMAP_MIN.get() + pa.get())
}

/// [`phys_to_dmap`] of an address that may be anything: `None` unless the direct map reaches it.
#[must_use]
pub const fn phys_in_dmap(pa: GuestPhys) -> Option<GuestVirt> {
    if pa.get() < MAX_PHYS.get() { Some(phys_to_dmap(pa)) } else { None }
}

/// The physical address behind a direct-map address (FreeBSD's `DMAP_TO_PHYS`), or `None` for any
/// other address.
#[must_use]
pub const fn dmap_to_phys(va: GuestVirt) -> Option<GuestPhys> {
    if va.get() >= DMAP_MIN.get() && va.get() < DMAP_MAX.get() {
        Some(GuestPhys::new(va.get() - DMAP_MIN.get()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_beyond_what_the_direct_map_reaches_is_in_it() {
        let last = GuestPhys::new(MAX_PHYS.get() - 1);
        assert_eq!(phys_in_dmap(last), Some(phys_to_dmap(last)));
        for pa in [MAX_PHYS, GuestPhys::new(0x7fff_ffff_ffff), GuestPhys::new(u64::MAX)] {
            assert_eq!(phys_in_dmap(pa), None, "{pa}");
        }
    }
}
