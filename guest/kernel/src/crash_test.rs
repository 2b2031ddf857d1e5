//! Crashes on demand, which prove that each kind of crash reaches the host as a record.

use core::hint::black_box;

use vmkern_abi::crash::CrashKind;
use vmkern_abi::kva::KERNBASE;

use crate::arch::{nucleus, percpu::PerCpu};

/// Crashes in the way of `kind`.
pub fn crash(kind: CrashKind) -> ! {
    match kind {
        CrashKind::Panic => panic!("asked to by crash=panic"),
        CrashKind::PageFault => {
            // SAFETY: nothing is mapped at the last page below KERNBASE; the access faults, as
            // intended.
            unsafe { ((KERNBASE.get() - 8) as *mut u64).write_volatile(1) };
        }
        CrashKind::Trap => {
            // SAFETY: `ud2` traps, which is the point.
            unsafe { core::arch::asm!("ud2") };
        }
        CrashKind::StackOverflow => {
            black_box(descend(black_box(u64::MAX)));
        }
        CrashKind::Nucleus if PerCpu::current().body_is_user() => {
            // SAFETY: the call faults inside the nucleus, as intended.
            unsafe { nucleus::call(nucleus::Call::Crash, 0, 0) };
        }
        // With the body at CPL0 the nucleus is its trap stubs: one that finds no room for its frame
        // is a double fault.
        CrashKind::Nucleus => {
            PerCpu::current().exhaust_trap_stack();
            // SAFETY: `ud2` traps, which is the point.
            unsafe { core::arch::asm!("ud2") };
        }
    }
    panic!("crash={} was survived", kind.name())
}

/// Endless recursion.
#[expect(unconditional_recursion, reason = "it is meant to run out of stack")]
#[inline(never)]
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    descend(depth - 1) + frame[3]
}
