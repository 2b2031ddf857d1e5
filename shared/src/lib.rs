//! The structures that both host and guest read.
//!
//! The guest kernel keeps its structures in these very types, and the host reads them out of guest
//! physical memory: there is no second description that could drift from the first. The crate
//! depends on neither side.
//!
//! Two rules hold throughout:
//!
//! * A structure that lives in guest memory is `repr(C)` and made of [`field::Field`]s, that is, of
//!   atomic words. Other CPUs and the host may read at any moment, and no code ever needs a `&mut`
//!   to shared memory.
//! * Addresses are typed: [`addr::GuestPhys`], [`addr::GuestVirt`] and [`addr::KPtr`] never mix.

#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod atomic;
pub mod boot;
pub mod clock;
pub mod codes;
pub mod control;
pub mod crash;
pub mod describe;
pub mod entry;
pub mod fail;
pub mod field;
pub mod kmem;
pub mod kva;
pub mod layout;
pub mod log;
pub mod paging;
pub mod pattern;
pub mod pressure;
pub mod pte;
pub mod seize;
pub mod virtio;
pub mod walk;

/// Version of the meaning of this crate's words: it changes with the protocol, the encoding of
/// operations, or the meaning of a field. [`describe::HASH`] stands for the layout of the
/// structures, and changes by itself. The kernel publishes both, and a host refuses any other
/// values.
pub const ABI_VERSION: u32 = 9;
