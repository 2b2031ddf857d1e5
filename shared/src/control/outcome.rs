//! The outcomes of operations.

use core::fmt;

use crate::addr::GuestVirt;
use crate::kmem::{KernReturn, WaitMessage};

/// The outcome of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
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

/// What may be an address, in hexadecimal.
impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("Ok"),
            Self::Value(value) => write!(f, "Value({value:#x})"),
            Self::Null => f.write_str("Null"),
            Self::Error(error) => write!(f, "Error({error})"),
            Self::Mismatch { addr, got, want } => {
                write!(f, "Mismatch {{ addr: {addr}, got: {got:#x}, want: {want:#x} }}")
            }
            Self::Blocked { waits_for } => write!(f, "Blocked {{ waits_for: \"{waits_for}\" }}"),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use super::*;

    #[test]
    fn addresses_are_shown_in_hexadecimal() {
        let addr = 0xffff_ff80_0000_1000;
        assert_eq!(format!("{:?}", Outcome::Value(addr)), "Value(0xffffff8000001000)");
        let mismatch = Outcome::Mismatch { addr: GuestVirt::new(addr), got: 16, want: 0 };
        let text = "Mismatch { addr: 0xffffff8000001000, got: 0x10, want: 0x0 }";
        assert_eq!(format!("{mismatch:?}"), text);
        let blocked = Outcome::Blocked { waits_for: WaitMessage::new("vmmaps") };
        assert_eq!(format!("{blocked:?}"), "Blocked { waits_for: \"vmmaps\" }");
    }
}
