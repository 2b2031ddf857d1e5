//! A guest, from its launch to its end, and the requests to it.
//!
//! [`Guest::builder`] is the only entry point. Requests go through one ring and answers come back
//! through another ([`vmkern_abi::control`]); any number may be in flight. Every wait ends: by the
//! answer, by the guest's end, by [`InterruptHandle::interrupt`], or when the guest's time is up.
//!
//! ```
//! use vmkern::prelude::*;
//!
//! let mut guest = Guest::builder().memory(32 << 20).vcpus(2).launch()?;
//! // Two threads work at the same time, and their answers come in the order in which they finish.
//! for thread in [ThreadId::MAIN, ThreadId::nth::<1>()] {
//!     guest.submit(thread, Op::KmemAlloc { map: MapId::KERNEL, size: 4096 })?;
//! }
//! while guest.in_flight() > 0 {
//!     assert!(matches!(guest.next_response()?.outcome, Outcome::Value(_)));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod attached;
mod balloon;
mod builder;
#[cfg(test)]
mod damaged;
mod environment;
mod error;
pub(crate) mod fail;
mod handle;
pub(crate) mod hypervisor;
mod launch;
pub(crate) mod link;
mod live;
mod logs;
mod look;
mod pause;
mod pending;
mod pressure;
mod save;
mod thread;
mod wait;

pub use self::builder::{DEFAULT_MEMORY, DEFAULT_TIMEOUT, GuestBuilder};
pub use self::environment::{Environment, KvmKind};
pub use self::error::{
    ConfigError, ContractError, GuestError, LaunchError, RequestError, Unemulated,
};
pub use self::fail::{FailCounts, FailError, LastFire};
pub use self::handle::Guest;
pub use self::launch::BootReport;
pub use self::logs::LogEnd;
pub use self::pause::{PAUSE_LIMIT, Pause};
pub use self::pressure::{Pages, Pressure, PressureError, PressureReport, PressureTarget, Refusal};
pub use self::save::SaveError;
pub use self::thread::ThreadId;
pub use crate::kernel::{KernelError, KernelFault, KernelImage};
pub use crate::kvm::{CpuFailure, CpuFault, InterruptHandle, KvmError, Missing, NoKvm, NodeAccess};
pub use crate::output::{OutputError, OutputFault};
pub use vmkern_abi::boot::{TunableError, Tunables};
pub use vmkern_abi::control::{Allocator, Workload};
pub use vmkern_abi::crash::{CrashKind, FatalFault};
pub use vmkern_abi::fail::{FailAction, FailSite, FailSpec, SpecError, SpecRule};
