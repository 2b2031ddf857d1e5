//! Tests against real guests: a guest that is checked when its test is over, typed calls,
//! expectations of sleeps and panics, scripts.
//!
//! Each test launches a guest of its own: a launch takes a millisecond or two and isolates better
//! than any clean-up, so tests run in parallel like any others.
//!
//! ```
//! use vmkern::testing::{self, CallResult, Calls as _};
//! use vmkern::{MallocFlags, MapId};
//!
//! fn a_block_that_is_freed_can_be_allocated_again() -> CallResult<()> {
//!     let Some(mut guest) = testing::guest() else { return Ok(()) };
//!     let first = guest.kmem_malloc(MapId::KMEM, 8192, MallocFlags::NOWAIT)?.expect("room");
//!     guest.kmem_free(MapId::KMEM, first, 8192)?;
//!     let again = guest.kmem_malloc(MapId::KMEM, 8192, MallocFlags::NOWAIT)?;
//!     assert_eq!(again, Some(first));
//!     Ok(())
//! }
//! # a_block_that_is_freed_can_be_allocated_again().expect("it can");
//! ```
//!
//! **Where KVM is missing.** The variable `VMKERN_KVM` says what a test does on a host that cannot
//! run guests: `require`, the default, fails it with what the host lacks; `skip` ends it with a
//! line on standard error, which test runners do not capture. Any other value fails every test.
//! [`guest`], [`launch`] and the scripts go by it; a test that begins with [`TestGuest::new`]
//! cannot be skipped.
//!
//! The page "Testing with vmkern" of the book has a whole project.

mod balance;
mod call;
mod error;
mod guest;
mod kvm;
mod script;
mod watch;
mod whole;

pub use vmkern_abi::control::{Answer, Calls};

pub use self::balance::Balance;
pub use self::call::{ExpectPanic, Lowmem, On, Start, Started};
pub use self::error::{CallError, CallFailure, CallResult};
pub use self::guest::TestGuest;
pub use self::script::{ScriptFailure, script, script_text};
use crate::guest::{Guest, GuestBuilder};

/// A guest of 64 MiB and one CPU for a test that may be skipped: nothing where this host cannot run
/// guests and `VMKERN_KVM=skip`.
///
/// # Panics
/// When the guest cannot be launched, and when `VMKERN_KVM` is neither `require` nor `skip`.
#[track_caller]
#[must_use]
pub fn guest() -> Option<TestGuest> {
    launch(Guest::builder())
}

/// A guest of `builder`'s for a test that may be skipped, as [`guest`] is.
///
/// # Panics
/// As for [`guest`].
#[track_caller]
#[must_use]
pub fn launch(builder: GuestBuilder) -> Option<TestGuest> {
    TestGuest::launch_or_skip(builder)
}
