//! The hypervisor: one virtual machine on `/dev/kvm`.
//!
//! The order of the steps determines the cost of a start and of an exit. The memory slot comes
//! before the interrupt controller, the interrupt controller is the split one (only a local APIC in
//! the host's kernel), and no ioeventfd is registered at a launch: the guest's doorbell is a port
//! write that exits to the vCPU's thread, the host's is an MSI. A device makes its interrupt line
//! (`line`) and the events of its registers (`ioevent`) at their first use. What a vCPU needs
//! from the host but not from its VM (the CPUID that KVM supports) is fetched on the vCPU's own
//! thread while the VM is created.

pub(crate) mod bell;
pub(crate) mod boot;
pub(crate) mod crew;
pub(crate) mod gate;
pub(crate) mod host;
pub(crate) mod io;
pub(crate) mod ioctl;
pub(crate) mod ioevent;
pub(crate) mod kick;
pub(crate) mod line;
pub(crate) mod load;
pub(crate) mod memory;
mod node;
mod place;
pub(crate) mod regs;
mod shadow;
mod stop;
pub(crate) mod vcpu;
pub(crate) mod vm;

pub use self::bell::InterruptHandle;
pub use self::host::{Missing, NoKvm};
pub use self::node::NodeAccess;
pub use self::regs::{CpuFailure, CpuFault};

pub use crate::system::KvmError;
