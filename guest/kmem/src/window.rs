//! The window onto the kernel's structures: the only place that makes references from addresses.
//!
//! **Invariant.** A [`KPtr`] of this crate is null or was made by one of its allocators (boot
//! region, page array, pools of maps, whole pages), which hand out properly aligned places inside
//! one page of managed memory or inside the page array. Types are [`Shared`]: any bytes are a valid
//! value, and every word is atomic, by a trait that no type with a plain word can implement. Each
//! time, the place is checked for alignment and for lying in one page. A reference made here is
//! therefore always valid, even when the structure behind it has been freed and the place reused: a
//! read then returns a wrong value, but is never undefined.

#![expect(unsafe_code, reason = "this module exists to hold it")]

use vmkern_abi::addr::{GuestPhys, KPtr, PAGE_SIZE};
use vmkern_abi::field::{Atomics, Field};
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::pte::{NPTEPG, Pte};
use zerocopy::FromBytes;

use crate::machine::{Cpu, PhysMem};

/// A type that may lie in memory that others also read: any bytes are a valid value, and each word
/// is an atomic.
pub trait Shared: FromBytes + Atomics {}

impl<T: FromBytes + Atomics> Shared for T {}

/// A page of page-table entries.
pub type PageTable = [Field<Pte>; NPTEPG];

/// A cache line of words.
pub type Line = [Field<u64>; 8];

/// Whether a `T` at `pa` is aligned and lies in one page. This takes one comparison for a type
/// whose size is its alignment.
#[inline]
const fn fits<T>(pa: GuestPhys) -> bool {
    let (align, size) = (align_of::<T>() as u64, size_of::<T>() as u64);
    pa.get() & (align - 1) == 0 && (size == align || pa.page_offset() + size <= PAGE_SIZE)
}

/// The `T` that begins at `pa`. Panics when it would be misaligned or cross the end of its page: an
/// address from a damaged structure must not cause a read beside the structure.
#[inline]
pub fn at<T: Shared, M: PhysMem + Cpu>(machine: &M, pa: GuestPhys) -> &T {
    const { assert!(align_of::<T>() as u64 <= PAGE_SIZE && size_of::<T>() as u64 <= PAGE_SIZE) };
    if !fits::<T>(pa) {
        misplaced(machine, pa);
    }
    let pointer = machine.frame(pa).cast::<T>();
    // SAFETY: by the module's invariant `pa` lies in memory that `PhysMem::frame` vouches for, up
    // to the end of its page, and the `T` lies in that page, aligned (checked); `T` is `Shared`, so
    // any contents are a valid value and concurrent changes are atomic.
    unsafe { pointer.as_ref() }
}

#[cold]
fn misplaced<M: PhysMem + Cpu>(machine: &M, pa: GuestPhys) -> ! {
    machine.panic(format_args!("structure at {pa} is misaligned or leaves its page"))
}

/// The `T` behind `pointer`, which is not null.
#[inline]
pub fn get<T: Shared, M: PhysMem + Cpu>(machine: &M, pointer: KPtr<T>) -> &T {
    match dmap_to_phys(pointer.addr()) {
        Some(pa) => at(machine, pa),
        None => machine
            .panic(format_args!("kernel pointer {} is outside the direct map", pointer.addr())),
    }
}
