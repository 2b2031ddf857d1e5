//! What can be wrong with a look into a guest, and how errors are shown.
//!
//! An error's `Display` says all of it, the error below included: reports and JSON have room for
//! one sentence. `source` returns the error below all the same, as a type to look at.

use std::error::Error as StdError;

use thiserror::Error;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::MapId;

use crate::cpu::Unstoppable;
use crate::ram::NotRam;
use crate::report::NotThere;

/// An error as the command prints it: its message, and after a colon each error below that the
/// message does not say itself.
#[must_use]
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        below = cause.source();
    }
    text
}

/// Makes `Debug` of errors their [`chain`]: a test that fails by `?` or `unwrap` prints what the
/// command would.
#[doc(hidden)]
#[macro_export]
macro_rules! debug_as_printed {
    ($($error:ty),+ $(,)?) => {$(
        impl ::std::fmt::Debug for $error {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&$crate::chain(self))
            }
        }
    )+};
}

/// Something in a guest's memory cannot be read, or is not what it should be.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The kernel has not published where its structures begin.
    #[error("the kernel has not published its {0} yet")]
    NotReady(&'static str),
    /// A structure's address maps to nothing.
    #[error("{what} at {at}: nothing is mapped at {missing}")]
    NotMapped {
        /// The structure.
        what: &'static str,
        /// Its address.
        at: GuestVirt,
        /// The first address of it that is not mapped.
        missing: GuestVirt,
    },
    /// A structure or a page table lies outside RAM.
    #[error("{what}: {source}")]
    NotRam {
        /// The structure.
        what: &'static str,
        /// The access.
        source: NotRam,
    },
    /// A structure's address does not have the alignment of its type.
    #[error("{what} at {at}: the address is not aligned")]
    Misaligned {
        /// The structure.
        what: &'static str,
        /// Its address.
        at: GuestVirt,
    },
    /// A structure contradicts itself or its neighbours.
    #[error("{what} at {at}: {problem}")]
    Damaged {
        /// The structure.
        what: &'static str,
        /// Its address.
        at: GuestVirt,
        /// What is wrong.
        problem: String,
    },
    /// There is no map with this number or at this address.
    #[error("there is no map {:#x}", .0.0)]
    NoSuchMap(MapId),
    /// The range to look at is empty or not page aligned.
    #[error("[{start}, {end}) is not a range of whole pages")]
    BadRange {
        /// First address.
        start: GuestVirt,
        /// First address past the range.
        end: GuestVirt,
    },
    /// The vCPU cannot be held.
    #[error(transparent)]
    Unstoppable(#[from] Unstoppable),
    /// What was asked for does not exist.
    #[error(transparent)]
    NotThere(#[from] NotThere),
}

crate::debug_as_printed!(InspectError);

impl InspectError {
    pub(crate) fn damaged(what: &'static str, at: GuestVirt, problem: impl Into<String>) -> Self {
        Self::Damaged { what, at, problem: problem.into() }
    }

    /// What is wrong, without the structure and its address: for callers that name these
    /// themselves.
    pub(crate) fn problem(&self) -> String {
        match self {
            Self::Damaged { problem, .. } => problem.clone(),
            Self::NotMapped { at, missing, .. } if missing == at => {
                "nothing is mapped there".to_owned()
            }
            Self::NotMapped { missing, .. } => format!("nothing is mapped at {missing}"),
            Self::Misaligned { .. } => "the address is not aligned".to_owned(),
            Self::NotRam { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says itself what is below it, or not.
    #[derive(Error)]
    enum Outer {
        #[error("a page is missing: {0}")]
        Whole(#[source] NotRam),
        #[error("a page is missing")]
        Bare(#[source] NotRam),
    }

    crate::debug_as_printed!(Outer);

    #[test]
    fn debug_says_what_the_command_prints_and_nothing_twice() {
        let below = NotRam { start: vmkern_abi::addr::GuestPhys::new(0x3000), len: 8 };
        let text = "a page is missing: physical memory [0x3000, +0x8) is not the guest's RAM";
        assert_eq!(format!("{:?}", Outer::Whole(below)), text);
        assert_eq!(format!("{:?}", Outer::Bare(below)), text);
    }
}
