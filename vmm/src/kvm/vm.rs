//! The virtual machine: its memory slots, its interrupt controller and its doorbell.

use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::KvmError;
use super::memory::GuestRam;

/// Pins of the I/O APIC that user space would emulate. There is none, but KVM routes MSIs for as many.
const IOAPIC_PINS: u64 = 24;
/// The MSI address of the local APIC with ID 0, physical destination (SDM volume 3, section 11.11).
const MSI_ADDRESS: u32 = 0xfee0_0000;

/// One virtual machine. Its RAM lives at least as long.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: VmFd,
    _ram: Arc<GuestRam>,
}

impl Vm {
    /// Creates a VM with `ram` in it and local APICs for its vCPUs.
    pub(crate) fn new(kvm: &Kvm, ram: Arc<GuestRam>) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
        for (slot, (range, userspace_addr)) in (0..).zip(ram.host_ranges()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: range.start.get(),
                memory_size: range.size,
                userspace_addr,
            };
            // SAFETY: the range of this process's memory is mapped for as long as `ram` lives, which this value holds;
            // the ranges do not overlap.
            unsafe { fd.set_user_memory_region(region) }.map_err(KvmError::of(format!(
                "KVM_SET_USER_MEMORY_REGION of {:#x} bytes at {}",
                range.size, range.start
            )))?;
        }
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = IOAPIC_PINS;
        fd.enable_cap(&split).map_err(KvmError::of("KVM_ENABLE_CAP KVM_CAP_SPLIT_IRQCHIP"))?;
        Ok(Self { fd, _ram: ram })
    }

    /// Creates the vCPU with APIC ID `id`.
    pub(crate) fn create_vcpu(&self, id: u32) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(KvmError::of(format!("KVM_CREATE_VCPU {id}")))
    }

    /// Sends interrupt `vector` to the vCPU with APIC ID 0, fixed delivery, edge-triggered.
    pub(crate) fn signal(&self, vector: u8) -> Result<(), KvmError> {
        let msi = kvm_msi { address_lo: MSI_ADDRESS, data: vector.into(), ..Default::default() };
        match self.fd.signal_msi(msi).map_err(KvmError::of(format!("KVM_SIGNAL_MSI of vector {vector:#x}")))? {
            0 => log::debug!("the guest's APIC dropped vector {vector:#x}"),
            _ => log::trace!("vector {vector:#x} delivered"),
        }
        Ok(())
    }
}
