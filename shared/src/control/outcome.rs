//! The outcomes of operations.

use crate::addr::GuestVirt;
use crate::kmem::{KernReturn, WaitMessage};

/// The outcome of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It succeeded and returned nothing.
    Ok,
    /// It returned a number or an address.
    Value(u64),
    /// It returned null.
    Null,
    /// It failed.
    Error(KernReturn),
    /// A verification found a wrong 8-byte word (or the part of it inside the range, low bytes
    /// first).
    Mismatch {
        /// Address of the first wrong byte's word.
        addr: GuestVirt,
        /// The value there.
        got: u64,
        /// The expected value.
        want: u64,
    },
    /// The thread sleeps, nothing in the guest is runnable, and no time-out of a thread with a
    /// request is pending. The final answer comes to [`Op::Join`](super::Op::Join).
    Blocked {
        /// What it waits for.
        waits_for: WaitMessage,
    },
}
