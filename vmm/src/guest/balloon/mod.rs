//! The balloon of a guest: the device, its transport, and the thread that serves its queues.

use std::sync::Arc;

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::virtio::balloon::STATSQ;
use vmkern_abi::virtio::mmio::{BALLOON_AT, DEVICE_BYTES, DEVICE_VECTOR, MmioDevice, MmioDevices};

use crate::devices::balloon::{Account, Balloon, Judge, Stats};
use crate::devices::virtio::{Mmio, QueueIndex};
use crate::devices::{Device, DeviceThread, Devices, Slot};
use crate::kernel::elf::Plan;
use crate::kvm::bell::Bell;
use crate::kvm::boot;
use crate::kvm::line::Msi;
use crate::kvm::memory::GuestRam;
use crate::kvm::vm::KvmVm;

#[cfg(test)]
mod tests;

/// The first address that no loader fills by itself.
const LOW_END: GuestPhys = GuestPhys::new(0x10_0000);

/// A guest's balloon.
#[derive(Debug)]
pub(crate) struct BalloonDevice {
    device: Arc<Balloon>,
    transport: Arc<Mmio>,
    _thread: DeviceThread,
}

impl BalloonDevice {
    /// What the command line says of it.
    pub(super) const WORD: MmioDevices =
        MmioDevices::one(MmioDevice { base: BALLOON_AT, irq: DEVICE_VECTOR as u32 });

    /// Attaches a balloon to the bus of a machine of which no vCPU runs yet.
    pub(super) fn attach(
        devices: &mut Devices,
        vm: &Arc<KvmVm>,
        ram: &Arc<GuestRam>,
        plan: &Plan,
        bell: Arc<Bell>,
    ) -> Self {
        let thread = DeviceThread::default();
        let mut loaded = vec![GuestPhys::new(0)..LOW_END];
        loaded.extend(plan.segments.iter().map(|segment| segment.start..segment.end));
        let judge = Judge::new(loaded, Some(boot::CONTROL));
        let device = Arc::new(Balloon::new(Arc::clone(ram), judge, bell));
        let slot = Slot::new(Arc::clone(vm), BALLOON_AT, thread.watcher());
        let msi = Msi { apic: 0, vector: DEVICE_VECTOR };
        let transport = Mmio::new(Arc::clone(ram), Arc::clone(&device) as _, Some((slot, msi)));
        let end = BALLOON_AT.add(DEVICE_BYTES - 1);
        devices.attach(BALLOON_AT..=end, Arc::clone(&transport) as Arc<dyn Device>);
        Self { device, transport, _thread: thread }
    }

    /// Asks the driver to have `pages` pages in the balloon.
    pub(super) fn ask(&self, pages: u32) {
        self.device.ask(pages);
        self.transport.config_changed();
    }

    /// The last statistics.
    pub(super) fn stats(&self) -> Stats {
        self.device.stats()
    }

    /// Asks the driver for new statistics.
    pub(super) fn ask_stats(&self) {
        self.device.ask_stats();
        self.transport.serve(QueueIndex(STATSQ));
    }

    /// What the balloon has done so far.
    pub(super) fn account(&self) -> Account {
        self.device.account()
    }
}
