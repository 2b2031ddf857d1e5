//! What a vCPU's thread needs of the devices, and what they may demand of it.
//!
//! **Protocol.** A vCPU that touches a port, or a physical address without memory, comes out of the
//! guest. Its thread has [`Io`] serve the access and does what the answer demands before the vCPU
//! goes on. Several vCPUs may call at once. A device does not block: whatever takes time is for a
//! thread of its own.

use std::fmt;

use vmkern_abi::addr::GuestPhys;

use crate::inspect::Standing;

/// The number of an I/O port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port(pub u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {:#x}", self.0)
    }
}

/// What an access demands of the vCPU's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing.
    Nothing,
    /// The guest leaves, with this value.
    Exit(u8),
    /// The vCPU waits for another one: somebody else should run.
    Yield,
    /// The guest can stand still here.
    Stand(Standing),
}

/// What serves the accesses of a guest's vCPUs.
pub(crate) trait Io: fmt::Debug + Send + Sync {
    /// The guest read `port`: one access, or several of a string instruction.
    fn read_port(&self, port: Port, data: &mut [u8]);

    /// The guest wrote `data` to `port`: one access, or several of a string instruction.
    fn write_port(&self, port: Port, data: &[u8]) -> Demand;

    /// The guest read 1 to 8 bytes at `address`, where there is no memory.
    fn read_mmio(&self, address: GuestPhys, data: &mut [u8]);

    /// The guest wrote 1 to 8 bytes at `address`, where there is no memory.
    fn write_mmio(&self, address: GuestPhys, data: &[u8]) -> Demand;
}
