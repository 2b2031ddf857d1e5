//! The least that a VM can be: memory, a vCPU, one instruction. What every launch is measured against.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VcpuExit;
use vmkern_abi::addr::GuestPhys;
use vmkern_abi::control::EXIT_PORT;

use super::BenchError;
use crate::control::{GuestError, LaunchError};
use crate::kvm::memory::GuestRam;
use crate::kvm::vcpu::supported_cpuid;
use crate::kvm::{KvmError, host};

/// Where the instruction lies.
const CODE: GuestPhys = GuestPhys::new(0x1000);

/// Time from opening `/dev/kvm` to the first exit of a VM with `memory` bytes of RAM and nothing else.
pub(super) fn create_to_first_exit(memory: u64) -> Result<Duration, BenchError> {
    let start = Instant::now();
    let kvm = host::open().map_err(LaunchError::from)?;
    let ram = GuestRam::new(memory)?;
    let vm = kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
    for (slot, (range, userspace_addr)) in (0..).zip(ram.host_ranges()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: range.start.get(),
            memory_size: range.size,
            userspace_addr,
        };
        // SAFETY: the range is mapped for as long as `ram` lives, which is longer than `vm` does.
        unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))?;
    }
    let mut vcpu = vm.create_vcpu(0).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
    vcpu.set_cpuid2(&supported_cpuid(&kvm)?).map_err(KvmError::of("KVM_SET_CPUID2"))?;
    // mov dx, EXIT_PORT; out dx, al; hlt
    let [low, high] = EXIT_PORT.to_le_bytes();
    let code = [0xba, low, high, 0xee, 0xf4];
    ram.write(CODE, &code).map_err(|error| KvmError { operation: error.to_string(), errno: libc::EFAULT })?;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(KvmError::of("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?;
    (regs.rip, regs.rflags) = (CODE.get(), 2);
    vcpu.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))?;
    match vcpu.run().map_err(KvmError::of("KVM_RUN"))? {
        VcpuExit::IoOut(EXIT_PORT, _) => Ok(start.elapsed()),
        other => {
            let operation = format!("running `out` in a bare VM, which ended in {other:?}");
            Err(GuestError::from(KvmError { operation, errno: libc::EIO }).into())
        }
    }
}
