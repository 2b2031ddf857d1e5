//! The virtual machine: its memory slots, its interrupt controller and its doorbell.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::ioctl::ioctl;
use super::line::{Msi, Routes};
use super::memory::GuestRam;
use super::{KvmError, shadow};
use crate::system::limits::CREATE_VCPU;

/// Pins of the I/O APIC that user space would emulate. There is none, but KVM reserves routes for
/// this many.
pub(super) const IOAPIC_PINS: u32 = 24;
/// The MSI address of the local APIC with ID 0, physical destination (SDM volume 3, section 11.11).
pub(super) const MSI_ADDRESS: u32 = 0xfee0_0000;

/// One virtual machine. Its RAM lives at least as long.
#[derive(Debug)]
pub(crate) struct KvmVm {
    fd: VmFd,
    ram: Option<Arc<GuestRam>>,
    routes: Routes,
}

impl KvmVm {
    /// Gives `ram` to the VM, which has none yet, and local APICs to its `vcpus` future vCPUs.
    pub(crate) fn furnish(&mut self, ram: Arc<GuestRam>, vcpus: u32) -> Result<(), KvmError> {
        let memory = ram.size();
        self.set_ram(ram)?;
        shadow::allow_all(&self.fd, memory, vcpus)?;
        self.enable_split_irqchip()
    }

    /// Creates an empty VM.
    pub(crate) fn create(kvm: &Kvm) -> Result<Self, KvmError> {
        let fd = ioctl("KVM_CREATE_VM", || kvm.create_vm())?;
        Ok(Self { fd, ram: None, routes: Routes::default() })
    }

    /// Gives the VM its RAM, once.
    pub(crate) fn set_ram(&mut self, ram: Arc<GuestRam>) -> Result<(), KvmError> {
        assert!(self.ram.is_none(), "a VM is given its RAM once");
        self.ram = Some(ram);
        self.set_slots(0)
    }

    /// Makes KVM log which pages the guest writes.
    pub(crate) fn log_dirty_pages(&self) -> Result<(), KvmError> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn set_slots(&self, flags: u32) -> Result<(), KvmError> {
        for (slot, (range, userspace_addr)) in
            (0..).zip(self.ram.iter().flat_map(|ram| ram.host_ranges()))
        {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: range.start.get(),
                memory_size: range.size,
                userspace_addr,
            };
            let operation =
                format!("KVM_SET_USER_MEMORY_REGION of {:#x} bytes at {}", range.size, range.start);
            // SAFETY: the range of this process's memory is mapped for as long as `ram` lives,
            // which this value holds; the ranges do not overlap.
            ioctl(operation, || unsafe { self.fd.set_user_memory_region(region) })?;
        }
        Ok(())
    }

    /// One bit for each page of the first `bytes` of RAM: whether it was written since the last
    /// call.
    pub(crate) fn dirty_pages(&self, bytes: usize) -> Result<Vec<u64>, KvmError> {
        ioctl(format!("KVM_GET_DIRTY_LOG of {bytes:#x} bytes"), || self.fd.get_dirty_log(0, bytes))
    }

    /// Gives each future vCPU a local APIC in the host's kernel.
    pub(crate) fn enable_split_irqchip(&self) -> Result<(), KvmError> {
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = IOAPIC_PINS.into();
        ioctl("KVM_ENABLE_CAP KVM_CAP_SPLIT_IRQCHIP", || self.fd.enable_cap(&split))
    }

    /// What ioctls of the VM are asked of.
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Where its devices' interrupts go.
    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Creates the vCPU with APIC ID `id`.
    pub(crate) fn create_vcpu(&self, id: u32) -> Result<VcpuFd, KvmError> {
        ioctl(format!("{CREATE_VCPU} {id}"), || self.fd.create_vcpu(u64::from(id)))
    }

    /// Sends interrupt `vector` to the vCPU with APIC ID `id`, at most 255, fixed delivery,
    /// edge-triggered.
    pub(crate) fn signal(&self, id: u32, vector: u8) -> Result<Delivery, KvmError> {
        let message = Msi { apic: id, vector };
        let msi =
            kvm_msi { address_lo: message.address(), data: message.data(), ..Default::default() };
        match ioctl(format!("KVM_SIGNAL_MSI of vector {vector:#x}"), || self.fd.signal_msi(msi))? {
            0 => {
                log::debug!("the guest's APIC dropped vector {vector:#x}");
                Ok(Delivery::Dropped)
            }
            _ => Ok(Delivery::Delivered),
        }
    }
}

/// The result of sending an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The APIC accepted it.
    Delivered,
    /// The APIC is disabled, or the same interrupt is pending already.
    Dropped,
}
