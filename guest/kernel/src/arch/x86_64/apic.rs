//! The local APIC, through its memory-mapped page (SDM volume 3, chapter 12).

use super::vectors::{SPURIOUS_VECTOR, TIMER_VECTOR};

/// Where `build.rs` maps the APIC's page.
const BASE: u64 = vmkern_abi::kva::KERNBASE.get() + super::IMAGE_WINDOW_BYTES - 4096;

/// The register for the end of an interrupt, which is signalled by a write of 0.
pub const END_OF_INTERRUPT: u64 = BASE + Register::EndOfInterrupt as u64;

/// Registers, by their offset in the page.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Register {
    EndOfInterrupt = 0xb0,
    SpuriousVector = 0xf0,
    InterruptCommand = 0x300,
    InterruptDestination = 0x310,
    TimerEntry = 0x320,
    TimerInitialCount = 0x380,
    TimerDivide = 0x3e0,
}

fn write(register: Register, value: u32) {
    // SAFETY: the page is mapped, uncached, for the kernel's whole life, and the offset is that of
    // a 32-bit register.
    unsafe { ((BASE + register as u64) as *mut u32).write_volatile(value) }
}

/// Enables the APIC and leaves its timer stopped.
pub fn init() {
    const ENABLE: u32 = 1 << 8;
    write(Register::SpuriousVector, ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// Signals that the interrupt in service has been handled.
pub fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// Nanoseconds of one timer count: KVM's and QEMU's local APICs are clocked at 1 GHz, and the
/// divider is 1.
pub const TIMER_COUNT_NANOS: u64 = 1;

/// Fires [`TIMER_VECTOR`] once, `counts` from now; 0 stops the timer.
pub fn timer_one_shot(counts: u32) {
    const DIVIDE_BY_1: u32 = 0b1011;
    write(Register::TimerDivide, DIVIDE_BY_1);
    write(Register::TimerEntry, u32::from(TIMER_VECTOR));
    write(Register::TimerInitialCount, counts);
}

/// Sends interrupt `vector` to the CPU with this number, which is also its APIC's ID. Interrupts
/// are deferred: no other command may come between the two halves.
pub fn interrupt_cpu(number: u32, vector: u8) {
    write(Register::InterruptDestination, number << 24);
    write(Register::InterruptCommand, u32::from(vector));
}

/// Resets the CPU with this number, which then waits for [`start_cpu`] (INIT; SDM volume 3, section
/// 9.4.4).
pub fn reset_cpu(number: u32) {
    const INIT_ASSERT: u32 = 0x4500;
    write(Register::InterruptDestination, number << 24);
    write(Register::InterruptCommand, INIT_ASSERT);
}

/// Starts the CPU with this number, which was reset, at physical page `page`, below 256, in real
/// mode (SIPI).
pub fn start_cpu(number: u32, page: u8) {
    const STARTUP_ASSERT: u32 = 0x4600;
    write(Register::InterruptDestination, number << 24);
    write(Register::InterruptCommand, STARTUP_ASSERT | u32::from(page));
}

/// Sends interrupt `vector` to this CPU itself.
pub fn interrupt_self(vector: u8) {
    const TO_SELF: u32 = 0b01 << 18;
    write(Register::InterruptCommand, TO_SELF | u32::from(vector));
}
