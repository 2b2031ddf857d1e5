//! The atomics of which shared memory is made.
//!
//! They are `core`'s. Under `cfg(loom)`, which `scripts/loom.sh` sets, they have the same size,
//! alignment and names, and a model may ask loom to watch single words of them: see `watched`. The
//! code that uses them is the same in both.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use self::watched::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub mod watched;
