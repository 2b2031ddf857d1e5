//! Memory that a device reads and writes: pages of kernel_map, wired for ever.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use kmem::ops::{self, Executed};
use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MapId, Op, Outcome};

use crate::access::KernelAccess;
use crate::memory::KernelVm;

/// One page.
#[derive(Clone, Copy, Debug)]
pub struct DmaPage {
    va: GuestVirt,
    phys: GuestPhys,
}

impl DmaPage {
    /// Pages of zeros, all of them from one allocation, or `None` when there is no memory.
    pub fn pages<const N: usize>(vm: &KernelVm) -> Option<[Self; N]> {
        let op = Op::KmemAlloc { map: MapId::KERNEL, size: N as u64 * PAGE_SIZE };
        let Executed::Done(Outcome::Value(first)) = ops::execute(vm, &KernelAccess, &op) else {
            return None;
        };
        let mut pages = [Self { va: GuestVirt::new(first), phys: GuestPhys::new(0) }; N];
        for (page, number) in pages.iter_mut().zip(0_u64..) {
            page.va = GuestVirt::new(first + number * PAGE_SIZE);
            page.phys = vm.pmap_extract(page.va)?;
        }
        Some(pages)
    }

    /// The physical address of the byte at `offset`.
    pub fn phys(self, offset: u64) -> GuestPhys {
        self.phys.add(offset)
    }

    /// The 16-bit word at `offset`.
    pub fn word16(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: see `word64`.
        unsafe { &*(self.place(offset, 2) as *const AtomicU16) }
    }

    /// The 32-bit word at `offset`.
    pub fn word32(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: see `word64`.
        unsafe { &*(self.place(offset, 4) as *const AtomicU32) }
    }

    /// The 64-bit word at `offset`.
    pub fn word64(&self, offset: u64) -> &AtomicU64 {
        // SAFETY: the page is wired and never freed; `place` has checked bounds and alignment; the
        // device may write at any time, which an atomic word allows.
        unsafe { &*(self.place(offset, 8) as *const AtomicU64) }
    }

    /// The address of the `bytes` bytes at `offset`.
    fn place(&self, offset: u64, bytes: u64) -> u64 {
        assert!(offset.is_multiple_of(bytes) && offset + bytes <= PAGE_SIZE, "inside the page");
        self.va.get() + offset
    }
}
