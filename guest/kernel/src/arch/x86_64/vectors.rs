//! The kernel's own interrupt vectors. The host's are [`vmkern_abi::control::DOORBELL_VECTOR`],
//! [`vmkern_abi::control::PAUSE_VECTOR`] and [`vmkern_abi::control::PAGES_VECTOR`].

/// #DB: a single step ([`super::step`]).
pub const DEBUG_VECTOR: u8 = 1;
/// The local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x50;
/// The kernel's interrupt to itself: run an operation in an interrupt handler.
pub const OPERATION_VECTOR: u8 = 0x52;
/// Another CPU has made a thread runnable here, or ends the halt of this one.
pub const RESCHED_VECTOR: u8 = 0x54;
/// Another CPU waits until this one has flushed translations.
pub const SHOOTDOWN_VECTOR: u8 = 0x56;
pub use vmkern_abi::virtio::mmio::DEVICE_VECTOR;
/// The first of the vectors that [`super::nucleus`] masks.
pub const FIRST: u8 = TIMER_VECTOR;
/// The last of these vectors.
pub const LAST: u8 = DEVICE_VECTOR;
/// The local APIC's spurious interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;
