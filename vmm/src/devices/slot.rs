//! The place of a device on the bus of physical addresses, and what it can have of its guest there:
//! events of its registers on the device thread, and interrupt lines.
//!
//! **Protocol.** A device asks at its first use, when its driver starts it, on the thread of the
//! vCPU that wrote the register. It keeps what it gets, and drops it when the driver resets it. A
//! device that cannot get an event serves the register's exits all the same, through
//! [`Device::write`](super::Device::write).

use std::sync::Arc;

use vmkern_abi::addr::GuestPhys;

use super::bus::Offset;
use super::thread::{Watch, Watcher};
use crate::kvm::KvmError;
use crate::kvm::ioevent::{IoEvent, Written};
use crate::kvm::line::{IrqLine, Msi};
use crate::kvm::vm::KvmVm;

/// The place of a device.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    vm: Arc<KvmVm>,
    base: GuestPhys,
    watcher: Watcher,
}

impl Slot {
    /// That of a device of `vm` that answers from `base` on and works on the thread of `watcher`.
    pub(crate) fn new(vm: Arc<KvmVm>, base: GuestPhys, watcher: Watcher) -> Self {
        Self { vm, base, watcher }
    }

    /// Has `work` done on the device thread when the guest writes `value`, with an access of that
    /// width, to the register at `offset`. The vCPU goes on at once, and the write does not reach
    /// the device.
    ///
    /// # Errors
    /// See [`IoEvent::new`] and [`Watcher::watch`]; nothing is left then.
    pub(crate) fn on_write<T: Written>(
        &self,
        offset: Offset,
        value: T,
        work: impl Fn() + Send + Sync + 'static,
    ) -> Result<Notification<T>, KvmError> {
        let event = IoEvent::new(&self.vm, self.base.add(offset.0), value)?;
        let watch = self.watcher.watch(Arc::clone(event.event()), work)?;
        Ok(Notification { _event: event, _watch: watch })
    }

    /// A line on which the device raises `msi`.
    ///
    /// # Errors
    /// See [`IrqLine::new`].
    pub(crate) fn line(&self, msi: Msi) -> Result<IrqLine, KvmError> {
        IrqLine::new(&self.vm, msi)
    }
}

/// A register's value that the device thread hears of. Dropping it gives the register back to the
/// bus.
#[derive(Debug)]
#[must_use = "the register is heard as long as this lives"]
pub(crate) struct Notification<T: Written> {
    // First: the last event is still heard, or never.
    _event: IoEvent<T>,
    _watch: Watch,
}
