//! Interrupt vectors of the kernel's own. The host's are
//! [`vmkern_abi::control::DOORBELL_VECTOR`] and [`vmkern_abi::control::PAUSE_VECTOR`].

/// The local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x50;
/// The kernel's interrupt to itself: run an operation in an interrupt handler.
pub const OPERATION_VECTOR: u8 = 0x52;
/// The local APIC's spurious interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;
