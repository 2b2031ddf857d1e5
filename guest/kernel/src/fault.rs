//! Page faults of the kernel: from the error code to `trap_pfault` (FreeBSD's `amd64/trap.c`).

use kmem::vm::fault::FaultType;

use crate::arch::trap::TrapFrame;
use crate::memory;

/// Error code: the page is mapped, and forbids the access.
const PROTECTION: u64 = 1 << 0;
/// Error code: the access was a write.
const WRITE: u64 = 1 << 1;
/// Error code: the access was an instruction fetch.
const FETCH: u64 = 1 << 4;

/// Asks the memory system to resolve the fault of `frame`. `true` if the instruction can be
/// repeated.
///
/// A protection violation is fatal at once: no kernel mapping gains rights by a fault.
pub fn resolve(frame: &TrapFrame) -> bool {
    if frame.error_code & PROTECTION != 0 {
        return false;
    }
    let fault_type = match frame.error_code {
        code if code & FETCH != 0 => FaultType::Execute,
        code if code & WRITE != 0 => FaultType::Write,
        _ => FaultType::Read,
    };
    memory::vm().is_some_and(|vm| vm.trap_pfault(frame.cr2, fault_type).is_ok())
}
