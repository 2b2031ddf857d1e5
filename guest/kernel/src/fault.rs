//! Page faults of the kernel: what `trap_pfault` decides (FreeBSD's `amd64/trap.c`).

use kmem::vm::fault::FaultType;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;

use crate::arch::trap::TrapFrame;
use crate::memory;

/// Error code: the access was an instruction fetch.
const FETCH: u64 = 1 << 4;
/// Error code: the access was a write.
const WRITE: u64 = 1 << 1;
/// Error code: the page is mapped, and forbids the access.
const PROTECTION: u64 = 1 << 0;

/// Asks `vm_fault` to resolve the fault of `frame`. `true` if the instruction can be repeated.
///
/// Fatal at once are: instruction fetches (the heap is never executable), protection violations (no kernel mapping gains
/// rights by a fault), and addresses that are not the kernel map's.
pub fn resolve(frame: &TrapFrame) -> bool {
    let address: GuestVirt = frame.cr2;
    if frame.error_code & (FETCH | PROTECTION) != 0 || address < VM_MIN_KERNEL_ADDRESS {
        return false;
    }
    let fault_type = if frame.error_code & WRITE != 0 { FaultType::Write } else { FaultType::Read };
    memory::vm().is_some_and(|vm| vm.trap_pfault(address, fault_type).is_ok())
}
