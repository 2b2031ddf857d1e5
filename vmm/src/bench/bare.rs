//! The smallest possible VM: memory, a vCPU, one instruction. Every launch is compared with it.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VcpuExit;
use vmkern_abi::addr::GuestPhys;
use vmkern_abi::control::EXIT_PORT;

use super::BenchError;
use crate::guest::{GuestError, LaunchError};
use crate::kvm::ioctl::ioctl;
use crate::kvm::memory::GuestRam;
use crate::kvm::vcpu::supported_cpuid;
use crate::kvm::{KvmError, host};

/// Where the instruction lies.
const CODE: GuestPhys = GuestPhys::new(0x1000);

/// Time from opening `/dev/kvm` to the first exit of a VM with `memory` bytes of RAM and nothing
/// else.
pub(super) fn create_to_first_exit(memory: u64) -> Result<Duration, BenchError> {
    // 1. A VM with memory.
    let start = Instant::now();
    let kvm = host::open().map_err(LaunchError::from)?;
    let ram = GuestRam::new(memory)?;
    let vm = ioctl("KVM_CREATE_VM", || kvm.create_vm())?;
    for (slot, (range, userspace_addr)) in (0..).zip(ram.host_ranges()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: range.start.get(),
            memory_size: range.size,
            userspace_addr,
        };
        // SAFETY: the range is mapped for as long as `ram` lives, which outlives `vm`.
        ioctl("KVM_SET_USER_MEMORY_REGION", || unsafe { vm.set_user_memory_region(region) })?;
    }
    // 2. A vCPU with a CPUID, as in a guest of this program.
    let mut vcpu = ioctl("KVM_CREATE_VCPU", || vm.create_vcpu(0))?;
    let cpuid = supported_cpuid(&kvm)?;
    ioctl("KVM_SET_CPUID2", || vcpu.set_cpuid2(&cpuid))?;
    // 3. mov dx, EXIT_PORT; out dx, al; hlt
    let [low, high] = EXIT_PORT.to_le_bytes();
    let code = [0xba, low, high, 0xee, 0xf4];
    ram.write(CODE, &code)
        .map_err(|error| KvmError { operation: error.to_string(), errno: libc::EFAULT })?;
    // 4. The vCPU starts there, in real mode.
    let mut sregs = ioctl("KVM_GET_SREGS", || vcpu.get_sregs())?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    ioctl("KVM_SET_SREGS", || vcpu.set_sregs(&sregs))?;
    let mut regs = ioctl("KVM_GET_REGS", || vcpu.get_regs())?;
    (regs.rip, regs.rflags) = (CODE.get(), 2);
    ioctl("KVM_SET_REGS", || vcpu.set_regs(&regs))?;
    // 5. Run it up to its `out`.
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(EXIT_PORT, _)) => return Ok(start.elapsed()),
            Ok(other) => {
                let operation = format!("running `out` in a bare VM, which ended in {other:?}");
                return Err(GuestError::from(KvmError { operation, errno: libc::EIO }).into());
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(KvmError::of("KVM_RUN")(error).into()),
        }
    }
}
