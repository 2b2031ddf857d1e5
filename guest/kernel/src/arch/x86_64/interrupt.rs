//! Interrupts: deferring them, handling them, waiting for them.
//!
//! **Masking.** RFLAGS.IF cannot be trusted at CPL3, so interrupts are masked in software: while a [`Masked`] guard lives,
//! handlers only note that they were due, and the last guard runs them.
//!
//! **Halting.** The idle loop arms itself ([`PerCpu::arm_idle`]), looks once more for work, and halts; every interrupt
//! disarms it, so that one which comes after the look ends the halt before it begins.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::percpu::{self, PerCpu};
use super::{apic, nucleus};

static TIMER_INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// How often the timer has fired.
#[must_use]
pub fn timer_interrupts() -> u64 {
    TIMER_INTERRUPTS.load(Ordering::Relaxed)
}

/// Where [`timer_interrupts`] is counted, for code that waits without calling anything.
#[must_use]
pub fn timer_interrupts_address() -> *const u64 {
    TIMER_INTERRUPTS.as_ptr()
}

/// An interrupt that can be deferred.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Deferred {
    /// The APIC's timer.
    Timer = 1 << 0,
    /// The host rang.
    Doorbell = 1 << 1,
}

/// Acknowledges an interrupt and handles it, or notes it for later.
pub fn interrupt(which: Deferred) {
    apic::end_of_interrupt();
    let cpu = PerCpu::current();
    if cpu.mask_depth().load(Ordering::Relaxed) != 0 {
        cpu.deferred().fetch_or(which as u32, Ordering::Relaxed);
    } else {
        run(which);
    }
}

fn run(which: Deferred) {
    match which {
        Deferred::Timer => {
            TIMER_INTERRUPTS.fetch_add(1, Ordering::Relaxed);
        }
        // The halted CPU is awake, and that is all that the bell is for.
        Deferred::Doorbell => {}
    }
}

/// While it lives, interrupts of this CPU are deferred. Guards nest.
#[must_use = "interrupts are deferred only while the guard lives"]
pub struct Masked(());

impl Masked {
    /// Defers interrupts.
    pub fn new() -> Self {
        PerCpu::current().mask_depth().fetch_add(1, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        let cpu = PerCpu::current();
        if cpu.mask_depth().fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        loop {
            let due = cpu.deferred().swap(0, Ordering::Relaxed);
            if due == 0 {
                break;
            }
            for which in [Deferred::Timer, Deferred::Doorbell] {
                if due & which as u32 != 0 {
                    run(which);
                }
            }
        }
    }
}

/// Halts the CPU until an interrupt comes, unless one came since [`PerCpu::arm_idle`].
pub fn halt() {
    let cpu = PerCpu::current();
    if cpu.body_is_user() {
        // SAFETY: halting has no effect but to wait; the idle flag makes the wait end with the next interrupt.
        unsafe { nucleus::call(nucleus::Call::Halt, 0, 0) };
    } else {
        halt_if_armed();
    }
}

/// `hlt` at CPL0, unless an interrupt came since the idle loop armed itself. With the body at CPL0 alone.
fn halt_if_armed() {
    debug_assert!(!PerCpu::current().body_is_user());
    // SAFETY: `sti` takes effect after the next instruction, so that no interrupt slips in between the look and `hlt`;
    // interrupts were enabled before and are enabled after. The red zone is not touched.
    unsafe {
        asm!(
            "cli",
            "cmp qword ptr gs:[{}], 0",
            "je 2f",
            "sti",
            "hlt",
            "2: sti",
            const percpu::IDLE_ARMED,
            options(nostack)
        );
    }
}
