//! What tests and benchmarks have the kernel do in loops of its own.

use super::argument::Allocator;
use super::table::ops;
use crate::addr::GuestVirt;
use crate::kmem::MapId;

ops! {
    /// One thread's work. Its codes and those of [`Op`](super::Op) are of one series.
    pub enum Workload {
        /// Allocates and frees `size` bytes, `count` times one after the other: what the functions
        /// themselves cost. Answer: ok, or null when an allocation failed.
        Pairs = 21 {
            /// The map.
            map: MapId,
            /// Bytes.
            size: u64,
            /// Pairs.
            count: u64,
            /// By which function.
            allocator: Allocator,
        },
        /// One thread's part of a random mix of all functions, with every live word verified before
        /// it is freed; in the end all is free again. Answer: the number of operations, at least
        /// those asked for, or a mismatch, after which what the thread has stays allocated.
        Stress = 22 {
            /// Decides everything.
            seed: u64,
            /// Operations after which the thread frees what it has.
            operations: u64,
            /// Threads that share the maps: each fills its part of them.
            parties: u64,
            /// A map for `kmem_alloc_wait`, besides exec_map, from which each party takes at most
            /// one block.
            pageable: MapId,
            /// A system map for `kmem_malloc`, besides kmem_map.
            system: MapId,
        },
        /// Reads, again and again, what [`Workload::SpinFree`] on another CPU frees under it.
        /// Answer: the rounds that it took, or a mismatch: what could be read although the free had
        /// returned, or was wrong before it.
        SpinRead = 23 {
            /// A page of zeros in which the two meet.
            mailbox: GuestVirt,
            /// Rounds in which the two ran on different CPUs.
            rounds: u64,
        },
        /// The other side of [`Workload::SpinRead`]: allocates a page, waits until the reader reads
        /// it, frees it. Answer: ok.
        SpinFree = 24 {
            /// The page in which the two meet.
            mailbox: GuestVirt,
            /// A system map.
            map: MapId,
        },
    }
}
