//! Return addresses on the stack of the running CPU.
//!
//! The kernel is built with frame pointers: each frame begins with the caller's frame pointer and
//! the return address. The chain is followed only as long as it lies on a kernel stack and goes
//! upward, so a damaged stack ends it.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};

use crate::arch::percpu::PerCpu;
use crate::arch::trap::TrapFrame;

/// Return addresses, innermost first.
pub struct Backtrace {
    next: Option<GuestVirt>,
    rbp: u64,
}

impl Backtrace {
    /// Those of the function that calls this one, and of its callers.
    #[inline(always)]
    pub fn here() -> Self {
        let rbp: u64;
        // SAFETY: reads a register.
        unsafe {
            core::arch::asm!(
                "mov {}, rbp",
                out(reg) rbp,
                options(nomem, nostack, preserves_flags)
            )
        };
        Self { next: None, rbp }
    }

    /// That of the instruction which `frame` interrupted, and those of its callers.
    pub fn of_trap(frame: &TrapFrame) -> Self {
        Self { next: Some(frame.rip), rbp: frame.rbp() }
    }
}

impl Iterator for Backtrace {
    type Item = GuestVirt;

    fn next(&mut self) -> Option<GuestVirt> {
        if let Some(first) = self.next.take() {
            return Some(first);
        }
        let cpu = PerCpu::current();
        let running = cpu.stack_bounds();
        let on_stack =
            |a: u64| (running.low..running.high).contains(&a) || cpu.on_emergency_stack(a);
        if !self.rbp.is_multiple_of(8) || !on_stack(self.rbp) || !on_stack(self.rbp + 8) {
            return None;
        }
        debug_assert!(self.rbp > PAGE_SIZE);
        // SAFETY: both words lie on a stack, which is mapped for the kernel's whole life.
        let (up, address) = unsafe { (*(self.rbp as *const u64), *((self.rbp + 8) as *const u64)) };
        if address == 0 {
            return None;
        }
        self.rbp = if up > self.rbp { up } else { 0 };
        Some(GuestVirt::new(address))
    }
}
