//! What can be asked of the kernel.

use super::argument::MapKind;
use super::table::ops;
use super::work::Workload;
use crate::addr::{GuestPhys, GuestVirt};
use crate::kmem::{MallocFlags, MapId};
use crate::layout::Protection;

ops! {
    /// One operation. Sizes are bytes, as the caller wrote them: rounding is the kernel's affair.
    pub enum Op {
        /// Nothing: measures the ring. Answer: ok.
        Nop = 0 => nop: (),
        /// `kmem_alloc(map, size)`. Answer: an address or null.
        KmemAlloc = 1 {
            /// The map.
            map: MapId,
            /// Bytes.
            size: u64,
        } => kmem_alloc: Option<GuestVirt>,
        /// `kmem_alloc_nofault(map, size)`. Answer: an address or null.
        KmemAllocNofault = 2 {
            /// The map.
            map: MapId,
            /// Bytes.
            size: u64,
        } => kmem_alloc_nofault: Option<GuestVirt>,
        /// `kmem_malloc(map, size, flags)`. Answer: an address or null.
        KmemMalloc = 3 {
            /// The map.
            map: MapId,
            /// Bytes.
            size: u64,
            /// M_* flags.
            flags: MallocFlags,
        } => kmem_malloc: Option<GuestVirt>,
        /// `kmem_free(map, addr, size)`. Answer: ok.
        KmemFree = 4 {
            /// The map.
            map: MapId,
            /// First address.
            addr: GuestVirt,
            /// Bytes.
            size: u64,
        } => kmem_free: (),
        /// `kmem_suballoc(parent, &min, &max, size)`. Answer: the new map as a [`MapId`], or a
        /// panic of the kernel.
        KmemSuballoc = 16 {
            /// The map to take the range from.
            parent: MapId,
            /// Bytes.
            size: u64,
            /// Which lock the new map uses, and so what may be done with it.
            kind: MapKind,
        } => kmem_suballoc: MapId,
        /// `kmem_alloc_wait(map, size)`. May sleep. Answer: an address or null.
        KmemAllocWait = 17 {
            /// The map.
            map: MapId,
            /// Bytes.
            size: u64,
        } => kmem_alloc_wait: Option<GuestVirt>,
        /// `kmem_free_wakeup(map, addr, size)`. Answer: ok.
        KmemFreeWakeup = 18 {
            /// The map.
            map: MapId,
            /// First address.
            addr: GuestVirt,
            /// Bytes.
            size: u64,
        } => kmem_free_wakeup: (),
        /// `vm_map_protect(map, addr, addr + size, protection, FALSE)`; addresses are page aligned
        /// and inside the map, and EXECUTE cannot be allowed. Answer: ok, or an error, and then
        /// nothing has changed.
        Protect = 25 {
            /// The map.
            map: MapId,
            /// First address.
            addr: GuestVirt,
            /// Bytes.
            size: u64,
            /// The accesses to allow.
            protection: Protection,
        } => vm_map_protect: (),
        /// `uma_reclaim()`. Answer: ok.
        UmaReclaim = 19 => uma_reclaim: (),
        /// Waits until the operation of another thread has finished. Answer: that operation's
        /// answer, or that it is still blocked.
        Join = 20 {
            /// The other thread.
            thread: u16,
        },
        /// Maps `count` fresh wired pages at `addr`. Answer: ok, or an error when there are not
        /// that many pages.
        PmapQenter = 5 {
            /// First address.
            addr: GuestVirt,
            /// Pages.
            count: u64,
        } => pmap_qenter: (),
        /// Undoes [`Op::PmapQenter`]. Answer: ok.
        PmapQremove = 6 {
            /// First address.
            addr: GuestVirt,
            /// Pages.
            count: u64,
        } => pmap_qremove: (),
        /// Reads 8 bytes. Answer: their value.
        Read = 7 {
            /// Their address.
            addr: GuestVirt,
        } => read: u64,
        /// Writes 8 bytes. Answer: ok.
        Write = 8 {
            /// Their address.
            addr: GuestVirt,
            /// What to write.
            value: u64,
        } => write: (),
        /// Writes one byte of each page (the one that stands there already). Answer: ok.
        Touch = 9 {
            /// First address.
            addr: GuestVirt,
            /// Bytes.
            size: u64,
        } => touch: (),
        /// Writes [`crate::pattern`]. Answer: ok.
        Fill = 10 {
            /// First address.
            addr: GuestVirt,
            /// Bytes.
            size: u64,
            /// The pattern's seed.
            seed: u64,
        } => fill: (),
        /// Checks for [`crate::pattern`]. Answer: ok or a mismatch.
        Verify = 11 {
            /// First address.
            addr: GuestVirt,
            /// Bytes.
            size: u64,
            /// The pattern's seed.
            seed: u64,
        } => verify: (),
        /// Checks for zeros. Answer: ok or a mismatch.
        VerifyZero = 12 {
            /// First address.
            addr: GuestVirt,
            /// Bytes.
            size: u64,
        } => verify_zero: (),
        /// The physical address by the kernel's own walk of the page tables. Answer: an address or
        /// null.
        Vtop = 13 {
            /// The virtual address.
            addr: GuestVirt,
        } => kernel_vtop: Option<GuestPhys>,
        /// Lets time pass. Answer: ok.
        Sleep = 14 {
            /// Microseconds.
            micros: u64,
        } => sleep: (),
        /// Waits until nothing is runnable but idle work, and idle work is done. Answer: ok.
        Settle = 15 => settle: (),
    }
    /// A test's or a benchmark's work, done inside the kernel.
    also Work(Workload)
    called by Calls
}
