//! What the integration tests share.
//!
//! Each test launches a guest of its own, as a launch costs two milliseconds and isolates better
//! than any clean-up. Where KVM is missing a test fails, with the words of `vmkern doctor`: a test
//! that silently did nothing would prove nothing.

pub mod damage;
pub mod harness;
pub mod invariants;
pub mod kern;
pub mod stopped;
pub mod workers;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use vmkern::{Guest, GuestVirt, MallocFlags, MapId, Op, Outcome, Response, ThreadId};

/// Far more than any test takes, on a machine that has other things to do as well.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Memory of a test's guest, in bytes.
pub const MEMORY: u64 = 64 << 20;

/// A guest with [`MEMORY`] bytes and every setting at its default.
///
/// # Panics
/// When the guest cannot be launched; the message says what this host lacks.
#[must_use]
pub fn guest() -> Checked {
    launch(Guest::builder().memory(MEMORY))
}

/// Launches a guest.
///
/// # Panics
/// As for [`guest`].
#[must_use]
pub fn launch(builder: vmkern::GuestBuilder) -> Checked {
    launch_within(TIMEOUT, builder)
}

/// Launches a guest that may take as long as `limit`.
///
/// # Panics
/// As for [`guest`].
#[must_use]
pub fn launch_within(limit: Duration, builder: vmkern::GuestBuilder) -> Checked {
    Checked(start(limit, builder))
}

/// Launches a guest that may be damaged when the test is over.
///
/// # Panics
/// As for [`guest`].
#[must_use]
pub fn launch_unchecked(builder: vmkern::GuestBuilder) -> Guest {
    start(TIMEOUT, builder)
}

fn start(limit: Duration, builder: vmkern::GuestBuilder) -> Guest {
    builder.timeout(limit).launch().unwrap_or_else(|error| panic!("cannot launch a guest: {error}"))
}

/// A guest whose memory the host checks when the test is over, unless it has died or the test has
/// failed already.
#[derive(Debug)]
pub struct Checked(Guest);

impl Deref for Checked {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.0
    }
}

impl DerefMut for Checked {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.0
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        if self.0.death().is_none() && !std::thread::panicking() {
            let report = self.0.check().expect("the guest can be checked");
            assert!(report.is_clean(), "the check found:\n{report}");
        }
    }
}

/// Thread `number`.
///
/// # Panics
/// When there is no such thread.
#[must_use]
pub fn t(number: u16) -> ThreadId {
    ThreadId::try_from(number).unwrap_or_else(|error| panic!("{error}"))
}

/// Counters that come back when everything that was allocated is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// `v_free_count`, in pages.
    pub free: u64,
    /// `v_wire_count`, in pages.
    pub wired: u64,
    /// Entries of kernel_map.
    pub kernel_entries: u64,
    /// Entries of kmem_map.
    pub kmem_entries: u64,
    /// Bytes in use in kmem_map.
    pub kmem_size: u64,
}

impl Balance {
    /// Reads them from the guest's memory.
    ///
    /// # Panics
    /// When the memory makes no sense.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let meter = guest.meter().expect("the counters can be read");
        let map = |id| guest.map_stats(id).expect("the map can be read");
        let (kernel, kmem) = (map(MapId::KERNEL), map(MapId::KMEM));
        Self {
            free: meter.v_free_count.get(),
            wired: meter.v_wire_count.get(),
            kernel_entries: kernel.entries,
            kmem_entries: kmem.entries,
            kmem_size: kmem.size,
        }
    }
}

/// Operations as a test writes them.
pub trait Run {
    /// Runs `op` on thread 0.
    ///
    /// # Panics
    /// When the guest dies of it.
    fn run(&mut self, op: Op) -> Outcome;

    /// Runs `op`, which must return an address.
    ///
    /// # Panics
    /// When it returns anything else.
    fn address(&mut self, op: Op) -> GuestVirt {
        match self.run(op) {
            Outcome::Value(value) => GuestVirt::new(value),
            other => panic!("{op:?} gave {other:?}"),
        }
    }

    /// Runs `op`, which must return nothing.
    ///
    /// # Panics
    /// When it returns anything else.
    fn ok(&mut self, op: Op) {
        assert_eq!(self.run(op), Outcome::Ok, "{op:?}");
    }

    /// `kmem_malloc(kmem_map, size, NOWAIT)`.
    fn malloc(&mut self, size: u64) -> GuestVirt {
        self.address(Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT })
    }

    /// `kmem_free(kmem_map, addr, size)`.
    fn free(&mut self, addr: GuestVirt, size: u64) {
        self.ok(Op::KmemFree { map: MapId::KMEM, addr, size });
    }
}

impl Run for Guest {
    fn run(&mut self, op: Op) -> Outcome {
        let response: Response =
            self.call(ThreadId::MAIN, op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        response.outcome
    }
}
