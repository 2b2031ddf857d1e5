//! Reading and writing memory with plain instructions that may fault, as a kernel does.

use core::arch::asm;
use core::slice;

use kmem::ops::{Access, Intent};
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::field::Field;

use crate::arch::probe;

/// The kernel's own address space. An access to an unmapped page is a page fault, which is either
/// fatal or resolved.
#[derive(Debug)]
pub struct KernelAccess;

impl Access for KernelAccess {
    fn words(&self, start: GuestVirt, count: usize, intent: Intent) -> &[Field<u64>] {
        assert!(
            start.get().is_multiple_of(8) && start.page_offset() + count as u64 * 8 <= PAGE_SIZE
        );
        fault_on_null_page(start, intent);
        // SAFETY: aligned, in one page, not null. An unmapped word faults at the access, which is
        // then repeated or never returns; mapped words are atomic here and may change at any time.
        unsafe { slice::from_raw_parts(start.get() as *const Field<u64>, count) }
    }

    fn probe(&self, va: GuestVirt) -> Option<u64> {
        probe::load(va)
    }

    fn bytes(&self, start: GuestVirt, count: usize, intent: Intent) -> &[Field<u8>] {
        assert!(start.page_offset() + count as u64 <= PAGE_SIZE);
        fault_on_null_page(start, intent);
        // SAFETY: as for `words`.
        unsafe { slice::from_raw_parts(start.get() as *const Field<u8>, count) }
    }
}

/// The page at address 0 is never mapped, and Rust has no reference to null: the fault happens
/// here.
fn fault_on_null_page(va: GuestVirt, intent: Intent) {
    if va.get() >= PAGE_SIZE {
        return;
    }
    // SAFETY: the access faults, and the fault handler never returns from an address outside the
    // kernel's maps.
    unsafe {
        match intent {
            Intent::Read => {
                asm!("mov {}, [{}]", out(reg) _, in(reg) va.get(), options(nostack, readonly))
            }
            Intent::Write => asm!("mov byte ptr [{}], 0", in(reg) va.get(), options(nostack)),
        }
    }
}
