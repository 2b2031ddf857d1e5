//! Errors of destinations for output.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::text::name;

/// Output cannot go to this path.
#[derive(Error)]
#[error("`{}`: {fault}", name(path))]
#[non_exhaustive]
pub struct OutputError {
    /// The path as given.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: OutputFault,
}

impl OutputError {
    /// Adds the path.
    pub(super) fn at(path: &Path) -> impl FnOnce(OutputFault) -> Self + use<> {
        let path = path.to_path_buf();
        |fault| Self { path, fault }
    }
}

/// Why a path cannot take output.
#[derive(Error)]
#[non_exhaustive]
pub enum OutputFault {
    /// A directory.
    #[error("is a directory; name a file in it")]
    Directory,
    /// A disk, or a part of one.
    #[error("is a block device, which is not overwritten; name a file")]
    BlockDevice,
    /// A socket.
    #[error("is a socket, which cannot be written to by its name; name a file or a FIFO")]
    Socket,
    /// A dangling symbolic link.
    #[error(
        "is a symbolic link to `{}`, which does not exist; remove the link, or name that file",
        name(.0)
    )]
    DanglingLink(PathBuf),
    /// A FIFO without a reader.
    #[error("is a FIFO without a reader; start the reader first")]
    NoReader,
    /// A terminal, for output that is not text.
    #[error("is a terminal, but the output is not text; name a file or a pipe")]
    Terminal,
    /// Standard output, which is reserved for something else.
    #[error("standard output holds {0}; name a file")]
    Reserved(&'static str),
    /// The system refused.
    #[error("cannot {operation}: {source}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
}

vmkern_inspect::debug_as_printed!(OutputError, OutputFault);

impl OutputFault {
    pub(super) fn io(operation: &'static str, source: io::Error) -> Self {
        Self::Io { operation, source }
    }
}
