//! Errors of reading and writing dumps.

use std::path::PathBuf;

use thiserror::Error;
use vmkern_abi::addr::GuestPhys;

use crate::error::InspectError;
use crate::handshake::AbiMismatch;
use crate::text::name;

/// A memory dump cannot be read.
#[derive(Error)]
#[error("memory dump `{}`: {fault}", name(path))]
#[non_exhaustive]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: OpenFault,
}

/// Why a file is not a valid memory dump.
#[derive(Error)]
#[non_exhaustive]
pub enum OpenFault {
    /// It cannot be read at all.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is a directory, a pipe or a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is not in the format that `vmkern run --save-dump` and `dump` write.
    #[error("expected {expected}, found {found}")]
    OtherFormat {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A program header makes no sense.
    #[error("program header {index}: {problem}")]
    Segment {
        /// Its number, from 0.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Two program headers describe the same memory.
    #[error("program headers {first} and {second} both hold physical address {at}")]
    Overlap {
        /// The number of one.
        first: usize,
        /// The number of the other.
        second: usize,
        /// The first address that both hold.
        at: GuestPhys,
    },
    /// Two program headers map the same bytes of the file to memory.
    #[error("program headers {first} and {second} both show the file's bytes at {offset:#x}")]
    Shared {
        /// The number of one.
        first: usize,
        /// The number of the other.
        second: usize,
        /// The first offset that both show.
        offset: u64,
    },
    /// The kernel in it has another ABI than this library.
    #[error(transparent)]
    Abi(#[from] Box<AbiMismatch>),
    /// The guest note contradicts the rest of the file.
    #[error("guest note: {field} is {problem}")]
    Note {
        /// The field of the note.
        field: &'static str,
        /// Its value, and what contradicts it.
        problem: String,
    },
    /// The notes make no sense.
    #[error("notes: {0}")]
    Notes(String),
}

/// A dump cannot be written.
#[derive(Error)]
pub enum SaveError {
    /// The sink reported an error.
    #[error("cannot write it: {source}")]
    Write {
        /// Bytes that the dump needs on the disk, if the disk is full.
        needed: Option<u64>,
        /// Why.
        source: std::io::Error,
    },
    /// The guest cannot be read.
    #[error(transparent)]
    Source(#[from] InspectError),
    /// The caller ended it.
    #[error("interrupted")]
    Interrupted,
}

crate::debug_as_printed!(OpenError, OpenFault, SaveError);
