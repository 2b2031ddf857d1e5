//! Interrupt vectors of the kernel's own. The host's are
//! [`vmkern_abi::control::DOORBELL_VECTOR`] and [`vmkern_abi::control::PAUSE_VECTOR`].

/// The first of them all, the host's included; they are fewer than [`COUNT`].
pub const FIRST: u8 = 0x50;
/// Vectors from [`FIRST`] on that are for interrupts.
pub const COUNT: u8 = 16;
/// The local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x50;
/// The kernel's interrupt to itself: run an operation in an interrupt handler.
pub const OPERATION_VECTOR: u8 = 0x52;
/// Another CPU has made a thread runnable here, or wants this one out of its halt.
pub const RESCHED_VECTOR: u8 = 0x54;
/// Another CPU waits until this one has forgotten translations. Of the same priority class as all others: none comes in the
/// middle of another's handler before that has told the APIC, from where the thread might be moved to another CPU.
pub const SHOOTDOWN_VECTOR: u8 = 0x56;
/// The local APIC's spurious interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;
