//! Interrupt vectors of the kernel's own. The host's is [`vmkern_abi::control::DOORBELL_VECTOR`].

/// The local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x50;
/// The local APIC's spurious interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;
