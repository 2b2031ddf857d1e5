//! What can be asked of the kernel.

use super::argument::{Allocator, MapKind};
use crate::addr::GuestVirt;
use crate::kmem::{MallocFlags, MapId};

/// One operation. Sizes are bytes, as the caller wrote them: rounding is the kernel's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Nothing: measures the ring. Answer: ok.
    Nop,
    /// `kmem_alloc(map, size)`. Answer: an address or null.
    KmemAlloc {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
    },
    /// `kmem_alloc_nofault(map, size)`. Answer: an address or null.
    KmemAllocNofault {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
    },
    /// `kmem_malloc(map, size, flags)`. Answer: an address or null.
    KmemMalloc {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
        /// M_* flags.
        flags: MallocFlags,
    },
    /// `kmem_free(map, addr, size)`. Answer: ok.
    KmemFree {
        /// The map.
        map: MapId,
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// `kmem_suballoc(parent, &min, &max, size)`. Answer: the new map as a [`MapId`], or a panic of
    /// the kernel.
    KmemSuballoc {
        /// The map to take the range from.
        parent: MapId,
        /// Bytes.
        size: u64,
        /// Which lock the new map uses, and so what may be done with it.
        kind: MapKind,
    },
    /// `kmem_alloc_wait(map, size)`. May sleep. Answer: an address or null.
    KmemAllocWait {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
    },
    /// `kmem_free_wakeup(map, addr, size)`. Answer: ok.
    KmemFreeWakeup {
        /// The map.
        map: MapId,
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// `uma_reclaim()`. Answer: ok.
    UmaReclaim,
    /// Waits until the operation of another thread has finished. Answer: that operation's answer,
    /// or that it is still blocked.
    Join {
        /// The other thread.
        thread: u16,
    },
    /// Maps `count` fresh wired pages at `addr`. Answer: ok, or an error when there are not that
    /// many pages.
    PmapQenter {
        /// First address.
        addr: GuestVirt,
        /// Pages.
        count: u64,
    },
    /// Undoes [`Op::PmapQenter`]. Answer: ok.
    PmapQremove {
        /// First address.
        addr: GuestVirt,
        /// Pages.
        count: u64,
    },
    /// Reads 8 bytes. Answer: their value.
    Read {
        /// Their address.
        addr: GuestVirt,
    },
    /// Writes 8 bytes. Answer: ok.
    Write {
        /// Their address.
        addr: GuestVirt,
        /// What to write.
        value: u64,
    },
    /// Writes one byte of each page (the one that stands there already). Answer: ok.
    Touch {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// Writes [`crate::pattern`]. Answer: ok.
    Fill {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
        /// The pattern's seed.
        seed: u64,
    },
    /// Checks for [`crate::pattern`]. Answer: ok or a mismatch.
    Verify {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
        /// The pattern's seed.
        seed: u64,
    },
    /// Checks for zeros. Answer: ok or a mismatch.
    VerifyZero {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// The physical address by the kernel's own walk of the page tables. Answer: an address or
    /// null.
    Vtop {
        /// The virtual address.
        addr: GuestVirt,
    },
    /// Lets time pass. Answer: ok.
    Sleep {
        /// Microseconds.
        micros: u64,
    },
    /// Waits until nothing is runnable but idle work, and idle work is done. Answer: ok.
    Settle,
    /// Allocates and frees `size` bytes, `count` times one after the other: what the functions
    /// themselves cost. Answer: ok, or null when an allocation failed.
    Pairs {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
        /// Pairs.
        count: u64,
        /// By which function.
        allocator: Allocator,
    },
    /// One thread's part of a random mix of all functions, with every live word verified before it
    /// is freed; in the end all is free again. Answer: the number of operations, at least those
    /// asked for, or a mismatch, after which what the thread has stays allocated.
    Stress {
        /// Decides everything.
        seed: u64,
        /// Operations after which the thread frees what it has.
        operations: u64,
        /// Threads that share the maps: each fills its part of them.
        parties: u64,
        /// A map for `kmem_alloc_wait`, besides exec_map, from which each party takes at most one
        /// block.
        pageable: MapId,
        /// A system map for `kmem_malloc`, besides kmem_map.
        system: MapId,
    },
    /// Reads, again and again, what [`Op::SpinFree`] on another CPU frees under it. Answer: the
    /// rounds that it took, or a mismatch: what could be read although the free had returned, or
    /// was wrong before it.
    SpinRead {
        /// A page of zeros in which the two meet.
        mailbox: GuestVirt,
        /// Rounds in which the two ran on different CPUs.
        rounds: u64,
    },
    /// The other side of [`Op::SpinRead`]: allocates a page, waits until the reader reads it, frees
    /// it. Answer: ok.
    SpinFree {
        /// The page in which the two meet.
        mailbox: GuestVirt,
        /// A system map.
        map: MapId,
    },
}
