//! What can come of an operation.

use core::fmt;

use super::wait_message::WaitMessage;
use crate::addr::GuestVirt;

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It returned nothing, and went well.
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
        /// What stands there.
        got: u64,
        /// What should.
        want: u64,
    },
    /// The thread sleeps, nothing in the guest is runnable, and no time-out of a thread with a
    /// request is pending. The answer proper comes to [`Op::Join`](super::Op::Join).
    Blocked {
        /// What it waits for.
        waits_for: WaitMessage,
    },
}

/// FreeBSD's results of map operations (`vm_param.h`), success left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum KernReturn {
    /// The address is not in the map or not mapped.
    InvalidAddress = 1,
    /// The protection forbids it.
    ProtectionFailure = 2,
    /// No hole is large enough, or the range is taken.
    NoSpace = 3,
    /// An argument breaks the function's contract.
    InvalidArgument = 4,
    /// It failed.
    Failure = 5,
    /// Something ran out.
    ResourceShortage = 6,
    /// The caller is not the receiver.
    NotReceiver = 7,
    /// The caller may not.
    NoAccess = 8,
}

impl KernReturn {
    /// Every result.
    pub const ALL: [Self; 8] = [
        Self::InvalidAddress,
        Self::ProtectionFailure,
        Self::NoSpace,
        Self::InvalidArgument,
        Self::Failure,
        Self::ResourceShortage,
        Self::NotReceiver,
        Self::NoAccess,
    ];

    /// FreeBSD's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidAddress => "KERN_INVALID_ADDRESS",
            Self::ProtectionFailure => "KERN_PROTECTION_FAILURE",
            Self::NoSpace => "KERN_NO_SPACE",
            Self::InvalidArgument => "KERN_INVALID_ARGUMENT",
            Self::Failure => "KERN_FAILURE",
            Self::ResourceShortage => "KERN_RESOURCE_SHORTAGE",
            Self::NotReceiver => "KERN_NOT_RECEIVER",
            Self::NoAccess => "KERN_NO_ACCESS",
        }
    }

    /// The result with this FreeBSD name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// The result with this FreeBSD number.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|&k| k as u64 == code)
    }
}

impl fmt::Display for KernReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
