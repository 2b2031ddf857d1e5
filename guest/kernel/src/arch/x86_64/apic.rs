//! The local APIC, through its memory-mapped page (SDM volume 3, chapter 12).

use super::vectors::{SPURIOUS_VECTOR, TIMER_VECTOR};

/// Where `build.rs` maps the APIC's page.
const BASE: u64 = vmkern_abi::kva::KERNBASE.get() + super::IMAGE_WINDOW_BYTES - 4096;

/// Registers, by their offset in the page.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Register {
    EndOfInterrupt = 0xb0,
    SpuriousVector = 0xf0,
    TimerEntry = 0x320,
    TimerInitialCount = 0x380,
    TimerDivide = 0x3e0,
}

fn write(register: Register, value: u32) {
    // SAFETY: the page is mapped, uncached, for the kernel's whole life, and the offset is that of a 32-bit register.
    unsafe { ((BASE + register as u64) as *mut u32).write_volatile(value) }
}

/// Enables the APIC and leaves its timer stopped.
pub fn init() {
    const ENABLE: u32 = 1 << 8;
    write(Register::SpuriousVector, ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// Says that the interrupt in service has been handled.
pub fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// Nanoseconds of one timer count: KVM's and QEMU's local APICs are clocked at 1 GHz, and the divider is 1.
pub const TIMER_COUNT_NANOS: u64 = 1;

/// Fires [`TIMER_VECTOR`] once, `counts` from now; 0 stops the timer.
pub fn timer_one_shot(counts: u32) {
    const DIVIDE_BY_1: u32 = 0b1011;
    write(Register::TimerDivide, DIVIDE_BY_1);
    write(Register::TimerEntry, u32::from(TIMER_VECTOR));
    write(Register::TimerInitialCount, counts);
}
