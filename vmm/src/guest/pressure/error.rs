//! Errors of pressure.

use thiserror::Error;
use vmkern_abi::seize::{OwnedLock, Refused};

use super::Pages;
use crate::inspect::Unstoppable;
use crate::kvm::KvmError;

/// Nothing was taken or given back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PressureError {
    /// More than the guest has.
    #[error(
        "cannot take {asked} ({} KiB) of a guest that has {memory} ({} KiB) of memory",
        .asked.bytes() >> 10, .memory.bytes() >> 10
    )]
    TooMuch {
        /// Pages asked for.
        asked: Pages,
        /// Pages of the guest's memory.
        memory: Pages,
    },
    /// The guest was built without a balloon.
    #[error(
        "the guest has no balloon; a script that has `squeeze` boots with one, and in the library \
         `GuestBuilder::balloon` asks for it"
    )]
    NoBalloon,
    /// The guest is dead, or died of the request: says of what.
    #[error("the guest cannot answer: {0}")]
    Died(String),
    /// The wait for the guest was interrupted. The request stands.
    #[error("the wait for the guest's balloon was interrupted")]
    Interrupted,
    /// The guest has not booted so far that it has free pages.
    #[error("the guest has not set up its memory yet")]
    NotReady,
    /// A lock is owned, so the free lists may be half changed.
    #[error(
        "{thread} owns {lock}, so the free lists may be half changed; nothing was taken or given \
         back"
    )]
    Locked {
        /// The lock.
        lock: OwnedLock,
        /// The thread that owns it.
        thread: String,
    },
    /// The guest's structures make no sense.
    #[error("the guest's memory cannot be taken or given back: {0}")]
    Damaged(String),
    /// A vCPU cannot be held.
    #[error(transparent)]
    Unstoppable(#[from] Unstoppable),
    /// The guest cannot be told that pages are back. They are.
    #[error("the pages are free again, but the guest cannot be told: {0}")]
    Untold(#[from] KvmError),
}

impl PressureError {
    /// `refused`, in which threads are called as `thread_name` says.
    pub(super) fn of(refused: Refused, thread_name: impl FnOnce(u32) -> String) -> Self {
        match refused {
            Refused::Locked { lock, owner } => Self::Locked { lock, thread: thread_name(owner) },
            damaged @ Refused::Damaged { .. } => Self::Damaged(damaged.to_string()),
        }
    }
}
