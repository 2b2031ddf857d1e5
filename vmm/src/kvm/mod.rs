//! The hypervisor: one virtual machine on `/dev/kvm`.
//!
//! What happens in which order decides what a start and an exit cost. The memory slot comes before
//! the interrupt controller, the interrupt controller is the split one (a local APIC in the kernel
//! of the host, nothing else), and no ioeventfd is ever registered: the guest's doorbell is a port
//! write that exits to the vCPU's thread, the host's is an MSI. What a vCPU needs of the host but
//! not of its VM (the CPUID that KVM supports) is fetched on the vCPU's own thread while the VM is
//! made.

pub(crate) mod boot;
pub(crate) mod crew;
pub(crate) mod elf;
pub(crate) mod gate;
pub(crate) mod host;
pub(crate) mod ioctl;
pub(crate) mod kick;
mod limits;
pub(crate) mod load;
pub(crate) mod memory;
mod node;
mod place;
pub(crate) mod regs;
mod shadow;
pub(crate) mod vcpu;
pub(crate) mod vm;

pub use self::gate::Standing;
pub use self::host::{Missing, NoKvm};
pub use self::node::NodeAccess;
pub use self::regs::{CpuFailure, CpuFault, GPR_NAMES, Registers};

use thiserror::Error;

/// A KVM operation, or what it needs of the host, failed. [`KvmError::remedy`] says what would
/// help.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{operation}: {}", std::io::Error::from_raw_os_error(*errno))]
pub struct KvmError {
    /// What was being done, with its size or address.
    pub operation: String,
    /// The system's error number.
    pub errno: i32,
}

impl KvmError {
    /// What would help, as sentences: the limit that was met, by its name and with its value, and
    /// how to raise it.
    #[must_use]
    pub fn remedy(&self) -> String {
        limits::remedy(&self.operation, self.errno)
    }

    /// Whether the host was short of something that others may give back: files, threads, memory.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        limits::is_shortage(self.errno)
    }

    /// The error of `operation`, for `map_err`.
    pub(crate) fn of(operation: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self { operation: operation.into(), errno: error.errno() }
    }

    /// `error` as the error of `operation`.
    pub(crate) fn io(operation: impl Into<String>, error: &std::io::Error) -> Self {
        Self { operation: operation.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}
