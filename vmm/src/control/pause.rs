//! Holding a guest still from outside.

use std::time::Duration;

use super::error::ContractError;
use super::guest::Guest;
use crate::kvm::Standing;
use crate::kvm::gate::Held;

/// How long a guest may take to come to a quiescent point. Most locks are held for microseconds; some are held for as long
/// as a large range is mapped or freed, and a look should not have to wait for that.
pub const PAUSE_LIMIT: Duration = Duration::from_millis(10);

/// A guest that stands still. It goes on when this is dropped; nothing that it was about to do is lost.
#[derive(Debug)]
#[must_use = "the guest goes on when this is dropped"]
pub struct Pause<'a>(Held<'a>);

impl Pause<'_> {
    /// Whether the guest stands where its kernel owns no mutex and no spin lock.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.0.standing
    }
}

impl Guest {
    /// Holds the guest at a quiescent point of its kernel, where no mutex and no spin lock is owned; or, when it comes to
    /// none within [`PAUSE_LIMIT`], wherever it is then ([`Pause::standing`] says which of the two). What is inspected
    /// while it stands is one moment's truth. A guest that has died stands still for ever, and can be held all the same.
    ///
    /// # Errors
    /// [`ContractError::Unstoppable`] when the vCPU's thread does not come out of the host's kernel.
    pub fn pause(&self) -> Result<Pause<'_>, ContractError> {
        self.pause_within(PAUSE_LIMIT)
    }

    /// Holds the guest as [`Guest::pause`] does, with another limit.
    ///
    /// # Errors
    /// As for [`Guest::pause`].
    pub fn pause_within(&self, limit: Duration) -> Result<Pause<'_>, ContractError> {
        self.machine.pause(limit).map(Pause)
    }
}
