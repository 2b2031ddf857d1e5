//! The environment of a guest, for reports.

use serde::Serialize;
use vmkern_abi::boot::{Privilege, TimeMode};

/// The kind of KVM on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KvmKind {
    /// The processor runs guests.
    Hardware,
    /// CPL3 code runs natively; CPL0 code is emulated, one instruction at a time.
    Software,
}

impl KvmKind {
    /// An instruction at CPL0 that takes longer than this, in nanoseconds, is emulated. (Native:
    /// below 10; emulated: about 1,000.)
    const EMULATED_FROM_NS: u64 = 100;

    /// The kind of a KVM on which one CPL0 instruction takes `nanoseconds`.
    #[must_use]
    pub fn from_instruction_time(nanoseconds: u64) -> Self {
        if nanoseconds < Self::EMULATED_FROM_NS { Self::Hardware } else { Self::Software }
    }

    /// The privilege at which a kernel runs faster.
    #[must_use]
    pub fn best_privilege(self) -> Privilege {
        match self {
            Self::Hardware => Privilege::Supervisor,
            Self::Software => Privilege::User,
        }
    }

    /// Its name: `hardware` or `software`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        }
    }
}

/// The environment of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Environment {
    /// The accelerator: `kvm`.
    pub accelerator: &'static str,
    /// The kind of KVM, from the kernel's own measurement during its entry.
    pub kvm: KvmKind,
    /// The privilege at which the kernel's main part runs; never `Auto`.
    pub privilege: Privilege,
    /// vCPUs.
    pub vcpus: u32,
    /// How the kernel's clock moves.
    pub time: TimeMode,
    /// Bytes of RAM.
    pub memory: u64,
    /// The run's seed.
    pub seed: u64,
    /// Version of the ABI that guest and host share.
    pub abi: u32,
    /// The TSC's frequency in kHz.
    pub tsc_khz: u32,
    /// Cycles from the kernel's entry until it served requests.
    pub boot_cycles: u64,
}
