//! What the integration tests share.
//!
//! Each test launches a guest of its own, as a launch costs two milliseconds and isolates better
//! than any clean-up. The guests, what they are judged by in the end and the calls are those of
//! [`vmkern::testing`]; what stands here is of no use to others. Where KVM is missing a test fails,
//! with the words of `vmkern doctor`: a test that silently did nothing would prove nothing.

pub mod damage;
pub mod harness;
pub mod kern;
pub mod stopped;
pub mod workers;

use std::time::Duration;

use vmkern::testing::{Calls as _, TestGuest};
use vmkern::{Guest, GuestBuilder, GuestVirt, MallocFlags, MapId, Op, Outcome, ThreadId};

/// Far more than any test takes, on a machine that has other things to do as well.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Memory of a test's guest, in bytes.
pub const MEMORY: u64 = 64 << 20;

/// A guest with [`MEMORY`] bytes and every setting at its default.
///
/// # Panics
/// When the guest cannot be launched; the message says what this host lacks.
#[track_caller]
#[must_use]
pub fn guest() -> TestGuest {
    launch(Guest::builder().memory(MEMORY))
}

/// Launches a guest.
///
/// # Panics
/// As for [`guest`].
#[track_caller]
#[must_use]
pub fn launch(builder: GuestBuilder) -> TestGuest {
    launch_within(TIMEOUT, builder)
}

/// Launches a guest that may take as long as `limit`.
///
/// # Panics
/// As for [`guest`].
#[track_caller]
#[must_use]
pub fn launch_within(limit: Duration, builder: GuestBuilder) -> TestGuest {
    TestGuest::launch(builder.timeout(limit))
}

/// Launches a guest that may be damaged when the test is over.
///
/// # Panics
/// As for [`guest`].
#[track_caller]
#[must_use]
pub fn launch_unchecked(builder: GuestBuilder) -> Guest {
    launch(builder).into_unchecked()
}

/// Thread `number`.
///
/// # Panics
/// When the thread does not exist.
#[must_use]
pub fn t(number: u16) -> ThreadId {
    ThreadId::try_from(number).unwrap_or_else(|error| panic!("{error}"))
}

/// Operations as these tests write them. All panic when the guest dies of one, or answers something
/// else.
pub trait Run {
    /// Runs `op` on thread 0.
    fn run(&mut self, op: Op) -> Outcome;

    /// Runs `op`, which must return an address.
    fn address(&mut self, op: Op) -> GuestVirt;

    /// Runs `op`, which must return nothing.
    fn ok(&mut self, op: Op);

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
        self.perform(op).unwrap_or_else(|error| panic!("{error}"))
    }

    fn address(&mut self, op: Op) -> GuestVirt {
        self.perform(op).unwrap_or_else(|error| panic!("{error}"))
    }

    fn ok(&mut self, op: Op) {
        self.perform::<()>(op).unwrap_or_else(|error| panic!("{error}"));
    }
}
