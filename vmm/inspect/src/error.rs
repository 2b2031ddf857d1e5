//! Errors of inspection.

use thiserror::Error;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::MapId;

use crate::cpu::Unstoppable;
use crate::ram::NotRam;
use crate::report::NotThere;

/// Something in a guest's memory cannot be read, or is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
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
