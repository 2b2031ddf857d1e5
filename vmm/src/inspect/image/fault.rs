//! What can be wrong with an image.

use std::path::PathBuf;

use thiserror::Error;
use vmkern_abi::addr::GuestPhys;

use crate::inspect::AbiMismatch;
use crate::output::OutputError;
use crate::text::name;

/// A memory image cannot be read.
#[derive(Debug, Error)]
#[error("memory image `{}`: {fault}", name(path))]
pub struct ImageOpenError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: ImageOpenFault,
}

/// What can be wrong with a file that should be a memory image.
#[derive(Debug, Error)]
pub enum ImageOpenFault {
    /// It cannot be read at all.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is a directory, a pipe or a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is not what `vmkern run --save-image` and `dump` write.
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
    /// Two program headers speak of the same memory.
    #[error("program headers {first} and {second} both hold physical address {at}")]
    Overlap {
        /// The number of one.
        first: usize,
        /// The number of the other.
        second: usize,
        /// The first address that both hold.
        at: GuestPhys,
    },
    /// Two program headers show the same bytes of the file as memory.
    #[error("program headers {first} and {second} both show the file's bytes at {offset:#x}")]
    Shared {
        /// The number of one.
        first: usize,
        /// The number of the other.
        second: usize,
        /// The first offset that both show.
        offset: u64,
    },
    /// The kernel in it was built from other sources than this library.
    #[error(transparent)]
    Abi(#[from] Box<AbiMismatch>),
    /// The guest note says something else than the rest of the file.
    #[error("guest note: {field} is {problem}")]
    Note {
        /// What the note speaks of.
        field: &'static str,
        /// What it says, and what stands against it.
        problem: String,
    },
    /// The notes make no sense.
    #[error("notes: {0}")]
    Notes(String),
}

/// A memory image cannot be written.
#[derive(Debug, Error)]
pub enum ImageSaveError {
    /// The file cannot be written. None is left behind, and one of the same name is as it was.
    #[error("memory image `{}`: cannot {operation}: {source}{}", name(path), .needed.map_or(String::new(), |bytes| format!(" (it takes {} MiB)", bytes.div_ceil(1 << 20))))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// Bytes that the image takes on the disk, where the disk is full.
        needed: Option<u64>,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It cannot be written there at all. What is there is as it was.
    #[error("memory image {0}")]
    Output(#[from] OutputError),
    /// The guest cannot be read.
    #[error(transparent)]
    Source(#[from] crate::InspectError),
    /// Somebody wanted it to end. No file is left behind.
    #[error("interrupted")]
    Interrupted,
}
