//! Measurements that survive noisy machines.
//!
//! Every figure that counts is a ratio: what is measured and what it is measured against take turns
//! within one run, and the ratio is the median of the rounds' ratios. Absolute times are shown
//! beside it as information, with quartiles.
//!
//! ```
//! let rounds = 3;
//! let bench = vmkern::bench::ring(rounds, 100, &mut |_| ())?;
//! println!("a request and its answer: {} us", bench.round_trip_us.median);
//! # Ok::<(), vmkern::bench::BenchError>(())
//! ```

mod against;
mod bare;
mod boot;
mod kmem;
mod ring;
mod stats;

use std::time::Duration;

use thiserror::Error;

pub use self::against::{AgainstBench, AgainstRow, LEAST_ROUNDS, Verdict};
pub use self::boot::{BootBench, boot, boot_against};
pub use self::kmem::{KmemBench, KmemCase, KmemSetup, MAP_SIZE, kmem, kmem_against};
pub use self::ring::{RingBench, ScriptBench, ring, ring_against};
pub use self::stats::{Interval, Summary};
use crate::guest::{Guest, GuestBuilder, GuestError, LaunchError};
use crate::inspect::InspectError;
use crate::kvm::KvmError;

/// How long a guest may live that is measured: what takes long on a busy machine is to be measured
/// there, too.
const LIMIT: Duration = Duration::from_secs(3600);

/// A guest to measure.
fn patient() -> GuestBuilder {
    Guest::builder().timeout(LIMIT)
}

/// How far a measurement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rounds done, the one that warms up included.
    pub done: usize,
    /// Rounds in all.
    pub total: usize,
}

/// Is told before the first round and after each.
pub type Watch<'a> = &'a mut dyn FnMut(Progress);

/// Why a measurement could not be taken.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A guest could not be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A guest failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A guest cannot be looked into.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A process could not be run.
    #[error("running `{command}`: {reason}")]
    Process {
        /// The command.
        command: String,
        /// Why not.
        reason: String,
    },
    /// The script did not run.
    #[error("the script: {0}")]
    Script(String),
    /// A guest did something else than it was asked to.
    #[error("the guest answered {0} where memory was asked for")]
    Answer(String),
}
