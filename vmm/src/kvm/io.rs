//! The interface between a vCPU's thread and the devices.
//!
//! **Protocol.** A vCPU that accesses a port, or a physical address without memory, exits from the
//! guest. Its thread calls [`Io`] to serve the access, and carries out the [`Demand`] before the
//! vCPU continues. Several vCPUs may call at once. A device must not block: slow work belongs in a
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

/// What a device demands of the vCPU's thread after an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing.
    Nothing,
    /// The guest exits, with this value.
    Exit(u8),
    /// The vCPU waits for another one: yield the host's CPU.
    Yield,
    /// The vCPU can be held here.
    Stand(Standing),
}

/// Serves the accesses of a guest's vCPUs.
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
