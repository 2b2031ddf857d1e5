//! The window onto the kernel's structures: the one place that makes references out of addresses.
//!
//! **Invariant.** A [`KPtr`] of this crate is null or was made by one of its allocators (boot region, page array,
//! pools of maps, whole pages), which hand out properly aligned places inside one page of managed memory or inside the page
//! array. Types are [`Shared`]: any bytes are a value, and every word is atomic. A reference made here is therefore
//! always valid, even when the structure behind it has been freed and the place serves another one: what is read then
//! is wrong, but never undefined.

#![expect(unsafe_code, reason = "this module exists to hold it")]

use vmkern_abi::addr::{GuestPhys, KPtr, PAGE_SIZE};
use vmkern_abi::field::Field;
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::layout::{
    EventhandlerEntry, EventhandlerList, KernelRoots, MapHome, MapNode, Pcpu, PoolPage, SlabHeader, SlabItem,
    SleepQueue, StoredOp, Sx, Thread, VmMap, VmMapEntry, VmObject, VmPage, VmPhysSeg,
};
use vmkern_abi::pte::{NPTEPG, Pte};
use zerocopy::FromBytes;

use crate::machine::Machine;

/// A type that may lie in memory that others look at, too.
///
/// # Safety
/// The type consists of [`Field`]s alone (each word an atomic), has no padding, and fits in a page.
pub unsafe trait Shared: FromBytes {}

macro_rules! shared {
    ($($name:ty),* $(,)?) => {$(
        // SAFETY: the type is a `repr(C)` structure of `Field`s, no larger than a page.
        unsafe impl Shared for $name {}
    )*};
}

shared!(EventhandlerEntry, EventhandlerList, SlabHeader, SlabItem, SleepQueue, StoredOp, Sx, Thread);
shared!(KernelRoots, MapHome, MapNode, Pcpu, PoolPage, VmMap, VmMapEntry, VmObject, VmPage, VmPhysSeg);

/// A page of page-table entries.
pub type PageTable = [Field<Pte>; NPTEPG];

/// A cache line of words.
pub type Line = [Field<u64>; 8];

// SAFETY: an array of `Field`s that fills one page.
unsafe impl Shared for PageTable {}
// SAFETY: an array of `Field`s.
unsafe impl Shared for Line {}

/// The `T` that begins at `pa`.
#[inline]
pub fn at<T: Shared, M: Machine>(machine: &M, pa: GuestPhys) -> &T {
    debug_assert!(pa.get().is_multiple_of(align_of::<T>() as u64), "misaligned structure at {pa}");
    debug_assert!(pa.page_offset() + size_of::<T>() as u64 <= PAGE_SIZE, "structure at {pa} leaves its page");
    let pointer = machine.frame(pa).cast::<T>();
    // SAFETY: by the module's invariant `pa` lies in memory that `Machine::frame` vouches for, up to the end of its
    // page; `T` is `Shared`, so that any contents are a value and concurrent changes are atomic.
    unsafe { pointer.as_ref() }
}

/// The `T` behind `pointer`, which is not null.
#[inline]
pub fn get<T: Shared, M: Machine>(machine: &M, pointer: KPtr<T>) -> &T {
    match dmap_to_phys(pointer.addr()) {
        Some(pa) => at(machine, pa),
        None => machine.panic(format_args!("kernel pointer {} is outside the direct map", pointer.addr())),
    }
}
