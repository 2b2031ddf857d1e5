//! The memory system: FreeBSD's kmem functions of April 2008 and everything below them.
//!
//! The crate has no global state and no assembly: all state is a [`vm::Vm`] value over a
//! [`machine::Machine`], which the kernel image implements on the real CPU and `sim` (a feature)
//! implements on plain memory. A file does the work of the FreeBSD file of the same name; functions
//! and fields keep FreeBSD's names.

#![cfg_attr(not(any(test, feature = "sim")), no_std)]
#![deny(unsafe_code)]

pub mod kern;
#[cfg(all(test, loom))]
mod loom;
pub mod machine;
mod num;
pub mod ops;
mod queue;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod vm;
mod window;

pub use window::Shared;
