//! The exit port, by the convention of QEMU's `isa-debug-exit`.

use vmkern_abi::control::{EXIT_PORT, ExitCode, Phase};

use super::region;
use crate::arch::percpu::PerCpu;
use crate::arch::{instr, interrupt};

/// Ends the guest.
pub fn leave(code: ExitCode) -> ! {
    if let Some(region) = region::get() {
        region.phase.put(Phase::Dead);
    }
    // SAFETY: the exit device ends the guest or does nothing.
    unsafe { instr::outb(EXIT_PORT, code.code()) };
    // There is no such device, or the host takes its time: never continue.
    loop {
        PerCpu::current().idle().arm();
        interrupt::halt();
    }
}
