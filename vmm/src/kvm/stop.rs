//! Why a vCPU stopped.

use super::regs::CpuFault;

/// Why a vCPU's thread does not enter the guest again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    /// It was told to stop.
    Told,
    /// The guest wrote this value to the exit port.
    Exit(u8),
    /// The vCPU cannot continue.
    Fault(CpuFault),
}
