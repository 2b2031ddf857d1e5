//! The control region: where host and kernel meet.
//!
//! The host places it in guest memory, outside of the memory that the kernel manages, and passes
//! its address with `control=` on the command line. Operations go to the guest through one ring and
//! come back through another; many may be in flight, and neither side leaves its CPU while the
//! other is awake.
//!
//! **Doorbell protocol.** Each ring's consumer has a [`Sleeper`] word. Before it sleeps it calls
//! [`Sleeper::prepare`], looks into its ring once more, and sleeps only if that is still empty. A
//! producer pushes, then asks [`Sleeper::must_wake`], and rings the bell only if that is true. The
//! bell is a port write ([`DOORBELL_PORT`]) from the guest, an interrupt ([`DOORBELL_VECTOR`]) from
//! the host.
//!
//! **Pause.** The host may ask a CPU to stop at a place where no change is half done: it raises
//! [`PAUSE_VECTOR`], and the kernel, as soon as it owns no mutex and no spin lock, writes to
//! [`PAUSE_PORT`]. If that takes too long, the host sets [`Pausing::Urgent`], and a loop that owns
//! a mutex writes at its next point. The host holds the CPU in that write for as long as it likes;
//! if it has given up the pause, it lets the CPU go on at once. Either side may drop a pause at any
//! time: a write that nobody waits for has no effect.

mod answer;
mod argument;
#[cfg(all(test, loom))]
mod loom;
mod message;
mod op;
mod outcome;
mod ring;
mod table;
mod wire;
mod work;

use zerocopy::{FromBytes, KnownLayout};

pub use self::answer::Answer;
pub use self::argument::{Allocator, MapKind};
pub use self::message::{Context, MAX_THREADS, Request, Response};
pub use self::op::{Calls, Op};
pub use self::outcome::Outcome;
pub(crate) use self::ring::COUNTER;
pub use self::ring::{Consumer, Corrupt, Producer, Ring, SLOT_WORDS, Slot};
pub use self::table::Operation;
pub use self::wire::WireError;
pub use self::work::Workload;
use crate::addr::{GuestPhys, KPtr};
use crate::atomic::{AtomicU32, Ordering, fence};
use crate::clock::ClockBase;
use crate::codes::codes;
use crate::crash::CrashRecord;
use crate::fail::FailPoints;
use crate::field::{Code, Field};
pub use crate::kmem::{KernReturn, MallocFlags, MapId, WaitMessage};
use crate::layout::KernelRoots;
use crate::log::LogRing;

/// `"vmkern\0\1"`.
pub const CONTROL_MAGIC: u64 = u64::from_le_bytes(*b"vmkern\0\x01");

/// Slots in each ring. With so few slots, the beginnings of both rings and of the log lie in the
/// first six pages of the region: see [`ControlRegion`].
pub const RING_SLOTS: usize = 128;

/// The guest writes any value here to wake the host's side of the response ring.
pub const DOORBELL_PORT: u16 = 0x510;
/// The guest leaves here, as through QEMU's `isa-debug-exit`: the value is an [`ExitCode`].
pub const EXIT_PORT: u16 = 0xf4;
/// The interrupt that wakes the guest's side of the request ring.
pub const DOORBELL_VECTOR: u8 = 0x51;

/// The interrupt that asks a CPU to pause.
pub const PAUSE_VECTOR: u8 = 0x53;
/// The interrupt that follows a return of seized pages ([`crate::seize`]): the kernel wakes the
/// threads that wait for pages. The CPU takes it before the doorbell's.
pub const PAGES_VECTOR: u8 = 0x55;
/// The guest writes a [`Stand`] here when it was asked to pause.
pub const PAUSE_PORT: u16 = 0x511;

codes! {
    /// How a CPU stops for a pause: the value that it writes to [`PAUSE_PORT`].
    pub enum Stand: u8 {
        /// It owns no mutex and no spin lock.
        Quiescent = 0,
        /// It owns a mutex, at a point of a loop over pages.
        Owning = 1,
    }
}

codes! {
    /// Values of [`ControlRegion::pausing`].
    pub enum Pausing: u32 {
        /// CPUs run.
        No = 0,
        /// They should stop where they own no mutex.
        Yes = 1,
        /// The host has waited for some time: a loop that owns a mutex should stop at its next
        /// point.
        Urgent = 2,
    }
}

/// The guest writes any value here when it waits for another of its CPUs, which may not be running:
/// it asks the host's scheduler to run another thread.
pub const YIELD_PORT: u16 = 0x512;

/// The guest writes any value here to wake the host's thread that keeps the log ([`crate::log`]).
pub const LOG_PORT: u16 = 0x513;

codes! {
    /// What the kernel writes to [`EXIT_PORT`]. QEMU's exit status is `2 * code + 1`.
    pub enum ExitCode: u8 {
        /// All went well.
        Success = 0x10,
        /// A self-test failed.
        Failure = 0x11,
        /// The kernel died; a [`CrashRecord`] says why.
        Crash = 0x12,
    }
}

codes! {
    /// How far the kernel has come.
    pub enum Phase: u32 {
        /// It has not written to the region yet.
        Loading = 0,
        /// The rings are served.
        Ready = 1,
        /// It has left through the exit port.
        Dead = 2,
    }
}

/// Whether a ring's consumer sleeps.
#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C, align(64))]
pub struct Sleeper {
    asleep: AtomicU32,
    _line: [Field<u8>; 60],
}

crate::describe!(Sleeper { asleep, _line });

impl Sleeper {
    /// Has loom watch it.
    #[cfg(all(test, loom))]
    pub(crate) fn watch(&self) -> crate::atomic::watched::Watched {
        self.asleep.watch()
    }

    /// The consumer is about to sleep. It must look into its ring once more before it does.
    pub fn prepare(&self) {
        self.asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The consumer is awake again.
    pub fn cancel(&self) {
        self.asleep.store(0, Ordering::Relaxed);
    }

    /// Whether the bell must be rung. The producer asks after a push; it is true once per sleep.
    #[must_use]
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) != 0 && self.asleep.swap(0, Ordering::Relaxed) != 0
    }
}

/// The region. All zero when the guest starts, except for `magic` and `host_abi_version`, which the
/// host writes.
///
/// The fields up to `description_len` are the handshake: they stay where they are in every version,
/// so two sides with different versions can still find out why they do not understand each other.
///
/// A boot and a first request touch the region only up to the log's first page. A KVM that shadows
/// page tables fills the entries of eight aligned pages on one fault, so a host puts these pages,
/// and whatever else it hands over, into one such group.
#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C, align(4096))]
pub struct ControlRegion {
    /// [`CONTROL_MAGIC`], by the host.
    pub magic: Field<u64>,
    /// [`crate::ABI_VERSION`] of the host.
    pub host_abi_version: Field<u32>,
    /// [`crate::ABI_VERSION`] of the kernel, written when it starts to use the region.
    pub guest_abi_version: Field<u32>,
    /// [`crate::describe::HASH`] of the kernel, written with its version.
    pub abi_hash: Field<u64>,
    /// Physical address of the kernel's [`crate::describe::TEXT`], written with its version.
    pub description: Field<GuestPhys>,
    /// Bytes of that text.
    pub description_len: Field<u64>,
    /// How far the kernel has come, by the kernel.
    pub phase: Field<Code<Phase>>,
    /// The CPL at which the kernel body runs, 0 or 3.
    pub body_cpl: Field<u32>,
    /// Cycles that [`TIMED_INSTRUCTIONS`](crate::entry::TIMED_INSTRUCTIONS) took on the way in.
    pub cpl0_cycles: Field<u64>,
    /// Not [`Pausing::No`] while the host pauses the CPUs; the host writes it. CPUs that own no
    /// lock wait for the others before they stop, so no CPU is left waiting for an answer.
    pub pausing: Field<Code<Pausing>>,
    /// What the guest's CPUs demand of page-table entries, by the host before they start:
    /// [`Paging::word`](crate::paging::Paging::word).
    pub paging: Field<u32>,
    /// Sites of [`crate::fail`] that are armed ([`FailSite::bit`](crate::fail::FailSite::bit)); the
    /// host writes it. The kernel reads it at each site, so it lies in a page that a boot touches
    /// anyway.
    pub fail_armed: Field<u64>,
    /// Where the kernel's structures begin.
    pub roots: Field<KPtr<KernelRoots>>,
    /// TSC when the kernel was entered.
    pub entry_tsc: Field<u64>,
    /// TSC when the kernel was ready to serve.
    pub ready_tsc: Field<u64>,
    /// Physical address of the root page table (CR3).
    pub pml4: Field<GuestPhys>,
    /// The base of the time since boot, written before the kernel serves requests.
    pub clock: ClockBase,
    /// The guest sleeps and waits for requests.
    pub guest_sleeper: Sleeper,
    /// The host sleeps and waits for responses.
    pub host_sleeper: Sleeper,
    /// Host to guest.
    pub requests: Ring<RING_SLOTS>,
    /// Guest to host.
    pub responses: Ring<RING_SLOTS>,
    /// Why the kernel died.
    pub crash: CrashRecord,
    /// The kernel's log.
    pub log: LogRing,
    /// The sites of [`crate::fail`]. Touched only when one is armed.
    pub fail: FailPoints,
}

const _: () = {
    // The handshake, for ever.
    assert!(core::mem::offset_of!(ControlRegion, magic) == 0);
    assert!(core::mem::offset_of!(ControlRegion, host_abi_version) == 8);
    assert!(core::mem::offset_of!(ControlRegion, guest_abi_version) == 12);
    assert!(core::mem::offset_of!(ControlRegion, abi_hash) == 16);
    assert!(core::mem::offset_of!(ControlRegion, description) == 24);
    assert!(core::mem::offset_of!(ControlRegion, description_len) == 32);
};
