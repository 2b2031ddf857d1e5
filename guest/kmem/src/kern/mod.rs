//! What stands under `sys/kern` in FreeBSD.

pub mod lock;
pub mod malloc;
