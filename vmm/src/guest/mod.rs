//! A guest, from its launch to its end, and the conversation with it.
//!
//! [`Guest::builder`] is the only way in. Requests go through one ring and answers come back
//! through another ([`vmkern_abi::control`]); any number may be in flight. Every wait ends: by the
//! answer, by the guest's end, by [`InterruptHandle::interrupt`], or when the guest's time is up.

mod builder;
#[cfg(test)]
mod damaged;
mod environment;
mod error;
mod handle;
pub(crate) mod hypervisor;
mod launch;
pub(crate) mod link;
mod live;
mod logs;
mod look;
mod pause;
mod pending;
mod save;
mod wait;

pub use self::builder::{Builder, DEFAULT_MEMORY, DEFAULT_TIMEOUT};
pub use self::environment::{Environment, KvmKind};
pub use self::error::{ConfigError, ContractError, GuestError, LaunchError, Unemulated};
pub use self::handle::Guest;
pub use self::launch::BootReport;
pub use self::logs::LogEnd;
pub use self::pause::{PAUSE_LIMIT, Pause};
pub use self::save::SaveError;
pub use crate::kvm::InterruptHandle;

/// Threads that a guest can have: requests name them by number, from 0.
pub const THREADS: u16 = vmkern_abi::control::MAX_THREADS;
