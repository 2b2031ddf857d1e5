//! Everything that communicates with the host.

pub mod backtrace;
pub mod crash;
pub mod exit;
pub mod log;
pub mod pause;
pub mod pvh;
pub mod region;
