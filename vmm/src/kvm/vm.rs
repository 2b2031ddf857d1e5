//! The virtual machine: its memory slots, its interrupt controller and its doorbell.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_msi, kvm_userspace_memory_region,
};
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
    ram: Option<Arc<GuestRam>>,
}

impl Vm {
    /// Creates a VM with `ram` in it and local APICs for its vCPUs.
    pub(crate) fn new(kvm: &Kvm, ram: Arc<GuestRam>) -> Result<Self, KvmError> {
        let mut vm = Self::create(kvm)?;
        vm.set_ram(ram)?;
        vm.enable_split_irqchip()?;
        Ok(vm)
    }

    /// Creates a VM with nothing in it.
    pub(crate) fn create(kvm: &Kvm) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
        Ok(Self { fd, ram: None })
    }

    /// Gives the VM its RAM, once.
    pub(crate) fn set_ram(&mut self, ram: Arc<GuestRam>) -> Result<(), KvmError> {
        assert!(self.ram.is_none(), "a VM is given its RAM once");
        self.ram = Some(ram);
        self.set_slots(0)
    }

    /// Has KVM note which pages the guest writes.
    pub(crate) fn log_dirty_pages(&self) -> Result<(), KvmError> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn set_slots(&self, flags: u32) -> Result<(), KvmError> {
        for (slot, (range, userspace_addr)) in (0..).zip(self.ram.iter().flat_map(|ram| ram.host_ranges())) {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: range.start.get(),
                memory_size: range.size,
                userspace_addr,
            };
            // SAFETY: the range of this process's memory is mapped for as long as `ram` lives, which this value holds;
            // the ranges do not overlap.
            unsafe { self.fd.set_user_memory_region(region) }.map_err(KvmError::of(format!(
                "KVM_SET_USER_MEMORY_REGION of {:#x} bytes at {}",
                range.size, range.start
            )))?;
        }
        Ok(())
    }

    /// One bit for each page of the first `bytes` of RAM that was written since the last call.
    pub(crate) fn dirty_pages(&self, bytes: usize) -> Result<Vec<u64>, KvmError> {
        self.fd.get_dirty_log(0, bytes).map_err(KvmError::of(format!("KVM_GET_DIRTY_LOG of {bytes:#x} bytes")))
    }

    /// Gives each vCPU to come a local APIC in the host's kernel.
    pub(crate) fn enable_split_irqchip(&self) -> Result<(), KvmError> {
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = IOAPIC_PINS;
        self.fd.enable_cap(&split).map_err(KvmError::of("KVM_ENABLE_CAP KVM_CAP_SPLIT_IRQCHIP"))
    }

    /// Creates the vCPU with APIC ID `id`.
    pub(crate) fn create_vcpu(&self, id: u32) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(KvmError::of(format!("KVM_CREATE_VCPU {id}")))
    }

    /// Sends interrupt `vector` to the vCPU with APIC ID `id`, at most 255, fixed delivery, edge-triggered.
    pub(crate) fn signal(&self, id: u32, vector: u8) -> Result<Delivery, KvmError> {
        let msi = kvm_msi { address_lo: MSI_ADDRESS | id << 12, data: vector.into(), ..Default::default() };
        match self.fd.signal_msi(msi).map_err(KvmError::of(format!("KVM_SIGNAL_MSI of vector {vector:#x}")))? {
            0 => {
                log::debug!("the guest's APIC dropped vector {vector:#x}");
                Ok(Delivery::Dropped)
            }
            _ => Ok(Delivery::Delivered),
        }
    }
}

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The APIC took it.
    Delivered,
    /// The APIC is off, or has the same interrupt pending.
    Dropped,
}
