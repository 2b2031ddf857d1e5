//! Page faults of the kernel: from the error code to `trap_pfault` (FreeBSD's `amd64/trap.c`).
//!
//! A fault where the thread may not sleep is fatal, whatever the address, and even if it is one of
//! [`probe`](crate::arch::probe)'s: nothing is looked up, because the locks of the look-up may be
//! those of the code that faulted.

use core::fmt;

use kmem::vm::fault::{Allowed, FaultType, NoSleep};
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::HeldLocks;

use crate::arch::trap::TrapFrame;
use crate::memory;

/// Error code: the page is mapped, and forbids the access.
const PROTECTION: u64 = 1 << 0;
/// Error code: the access was a write.
const WRITE: u64 = 1 << 1;
/// Error code: a reserved bit is set in an entry.
const RESERVED: u64 = 1 << 3;
/// Error code: the access was an instruction fetch.
const FETCH: u64 = 1 << 4;

/// Asks the memory system to resolve the fault of `frame`. `true` if the instruction can be
/// repeated. The thread may sleep: [`forbidden`] says so.
///
/// Of the accesses that a mapping forbids, only a write can be allowed by a fault: `vm_map_protect`
/// leaves it to the first write to make a range writable again. The tables must then allow it: a
/// level above that forbids the write would fault for ever.
pub fn resolve(frame: &TrapFrame) -> bool {
    let code = frame.error_code;
    let fault_type = match code {
        code if code & RESERVED != 0 => return false,
        code if code & FETCH != 0 => FaultType::Execute,
        code if code & WRITE != 0 => FaultType::Write,
        _ => FaultType::Read,
    };
    if code & PROTECTION != 0 && fault_type != FaultType::Write {
        return false;
    }
    memory::vm().is_some_and(|vm| {
        vm.trap_pfault_in_thread(frame.cr2, fault_type).is_ok()
            && (code & PROTECTION == 0 || vm.pmap_is_writable(frame.cr2))
    })
}

/// Why no fault of the running thread can be resolved, if none can.
pub fn forbidden() -> Option<NoSleep> {
    memory::vm()?.no_sleep(HeldLocks::empty())
}

/// Why a fault is fatal, behind the report of it.
pub enum Why {
    /// The report says enough.
    Plain,
    /// An entry allows less.
    Forbidden(Allowed),
    /// The thread may not sleep.
    NoSleep(NoSleep),
}

impl Why {
    /// Why the fault of `frame`, which could not be resolved, is a violation; nothing if it is not.
    /// Locks: none may be held.
    pub fn of(frame: &TrapFrame) -> Self {
        let allowed = |va: GuestVirt| memory::vm()?.vm_fault_allowed(va);
        match allowed(frame.cr2).filter(|allowed| !allowed.protection.is_all()) {
            Some(allowed) => Self::Forbidden(allowed),
            None => Self::Plain,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => Ok(()),
            Self::Forbidden(Allowed { start, end, protection }) => {
                write!(f, ": [{start:#x}, {end:#x}) allows {protection}")
            }
            Self::NoSleep(why) => write!(f, ", {why}"),
        }
    }
}
