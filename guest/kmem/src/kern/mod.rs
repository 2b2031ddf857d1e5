//! What stands under `sys/kern` in FreeBSD.

pub mod callout;
pub mod eventhandler;
pub mod func;
pub mod idle;
pub mod lock;
pub mod malloc;
pub mod mp;
pub mod sched;
pub mod shootdown;
pub mod sleepq;
pub mod sx;
pub mod synch;
pub mod taskqueue;
pub mod thread;
