//! Measurements that survive noisy machines.
//!
//! Every figure that counts is a ratio: the subject and its reference take turns within one run,
//! and the result is the median of the rounds' ratios. Absolute times are shown beside it for
//! information, with quartiles.
//!
//! ```
//! use vmkern::bench::{self, KmemSetup};
//!
//! let setup =
//!     KmemSetup { rounds: 3, pairs: 20, size: 4096, vcpus: vec![1, 2], settings: Vec::new() };
//! let bench = bench::kmem(&setup, &mut |progress| assert!(progress.done < progress.total))?;
//! for case in &bench.cases {
//!     println!("{} by {} vCPUs: {} us", case.function, case.vcpus, case.pair_us.median);
//! }
//! # Ok::<(), bench::BenchError>(())
//! ```

mod against;
mod bare;
mod boot;
mod kmem;
mod pressure;
mod ring;
mod stats;

use std::time::Duration;

use thiserror::Error;

pub use self::against::{AgainstBench, AgainstRow, LEAST_ROUNDS, Verdict};
pub use self::boot::{BootBench, boot, boot_against};
pub use self::kmem::{KmemBench, KmemCase, KmemSetup, MAP_SIZE, kmem, kmem_against};
pub use self::pressure::{PressureBench, pressure};
pub use self::ring::{RingBench, ScriptBench, ring, ring_against};
pub use self::stats::{Interval, Summary};
use crate::guest::{Guest, GuestBuilder, GuestError, LaunchError, PressureError};
use crate::inspect::InspectError;
use crate::kernel::KernelImage;
use crate::kvm::KvmError;

/// Time limit of a measured guest: a slow run on a busy machine should be measured, too.
const LIMIT: Duration = Duration::from_secs(3600);
/// How long its kernel may take until it is ready.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Launches a guest to measure: it has [`BOOT_LIMIT`] to become ready, and [`LIMIT`] from then on.
///
/// # Errors
/// As [`GuestBuilder::launch`].
fn launch(builder: GuestBuilder) -> Result<Guest, LaunchError> {
    let mut guest = builder.timeout(BOOT_LIMIT).launch()?;
    guest.set_timeout(LIMIT);
    Ok(guest)
}

/// Boots `kernel` once: whether it can be measured at all.
///
/// # Errors
/// When it does not become ready.
pub fn try_kernel(kernel: &KernelImage) -> Result<(), LaunchError> {
    launch(Guest::builder().kernel(kernel.clone())).map(drop)
}

/// Progress of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rounds done, including the warm-up round.
    pub done: usize,
    /// Rounds in all.
    pub total: usize,
}

/// Called before the first round and after each round.
pub type Watch<'a> = &'a mut dyn FnMut(Progress);

/// Why a measurement failed.
#[derive(Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A guest could not be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A guest failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A guest's memory cannot be taken.
    #[error(transparent)]
    Pressure(#[from] PressureError),
    /// A guest cannot be inspected.
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
    /// A guest gave an unexpected answer.
    #[error("unexpected answer from the guest: {0}")]
    Answer(String),
}

vmkern_inspect::debug_as_printed!(BenchError);
