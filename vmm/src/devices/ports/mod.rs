//! The devices of every guest, on I/O ports. Those whose ports the ABI names
//! ([`vmkern_abi::control`]) have no registers: a write is all that they know.

mod serial;

use std::sync::Arc;

use vmkern_abi::control::Stand;

pub(crate) use self::serial::Console;
pub(super) use self::serial::{COM1, Uart};
use super::bus::{Device, Offset};
use crate::inspect::Standing;
use crate::kvm::bell::Bell;
use crate::kvm::io::Demand;

/// What a port gives that can only be written: what an empty bus does.
fn nothing_to_read(data: &mut [u8]) {
    data.fill(0xff);
}

/// Ends the guest with the value that is written.
#[derive(Debug)]
pub(super) struct ExitPort;

impl Device for ExitPort {
    fn read(&self, _: Offset, data: &mut [u8]) {
        nothing_to_read(data);
    }

    fn write(&self, _: Offset, data: &[u8]) -> Demand {
        data.first().map_or(Demand::Nothing, |&code| Demand::Exit(code))
    }
}

/// Rings a bell of the host, whatever is written.
#[derive(Debug)]
pub(super) struct Doorbell(Arc<Bell>);

impl Doorbell {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self(bell)
    }
}

impl Device for Doorbell {
    fn read(&self, _: Offset, data: &mut [u8]) {
        nothing_to_read(data);
    }

    fn write(&self, _: Offset, _: &[u8]) -> Demand {
        self.0.ring();
        Demand::Nothing
    }
}

/// Where a CPU says how it stands ([`Stand`]) and can be held.
#[derive(Debug)]
pub(super) struct PausePort;

impl Device for PausePort {
    fn read(&self, _: Offset, data: &mut [u8]) {
        nothing_to_read(data);
    }

    fn write(&self, _: Offset, data: &[u8]) -> Demand {
        let is_quiescent = data.first().is_some_and(|&how| how == Stand::Quiescent as u8);
        Demand::Stand(if is_quiescent { Standing::Quiescent } else { Standing::Owning })
    }
}

/// Where a CPU that waits for another one lets others run.
#[derive(Debug)]
pub(super) struct YieldPort;

impl Device for YieldPort {
    fn read(&self, _: Offset, data: &mut [u8]) {
        nothing_to_read(data);
    }

    fn write(&self, _: Offset, _: &[u8]) -> Demand {
        Demand::Yield
    }
}
