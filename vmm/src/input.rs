//! Reading what others wrote: at most so many bytes, and no device by mistake.
//!
//! A file that the command maps or reads as a whole (a kernel, a dump) is a regular one:
//! [`open_regular`] looks before it opens, because to open a device may already do something to it,
//! and opens without waiting, because a FIFO may have taken the file's place meanwhile. A script
//! may come through a pipe: [`read_script`](crate::script::read_script).

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use crate::system::KvmError;

/// The longest script, in bytes.
pub const SCRIPT_MAX: u64 = 4 << 20;
/// The longest line of a script that comes line by line and need not end, in bytes.
pub const LINE_MAX: u64 = SCRIPT_MAX;

/// A file that was to be read cannot be.
#[derive(Error)]
pub enum InputError {
    /// The system says no.
    #[error("{0}")]
    Io(io::Error),
    /// The host is short of what it takes to read it.
    #[error("{error}. {remedy}", error = .0, remedy = .0.remedy())]
    Host(KvmError),
    /// It is something else than a regular file.
    #[error("it is {0}, but must be a file")]
    NotAFile(&'static str),
    /// It is longer than it may be, or has no end.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
    /// It did not come to its end in time.
    #[error("it did not end within the time limit of {0:?}")]
    TimeIsUp(Duration),
    /// Somebody wanted the run to end.
    #[error("interrupted")]
    Interrupted,
}

vmkern_inspect::debug_as_printed!(InputError);

impl From<io::Error> for InputError {
    fn from(error: io::Error) -> Self {
        let refusal = KvmError::io("opening it", &error);
        if refusal.is_shortage() { Self::Host(refusal) } else { Self::Io(error) }
    }
}

/// What a file is that is not a regular one; nothing for a regular one.
fn kind(file_type: FileType) -> Option<&'static str> {
    let kinds = [
        (file_type.is_dir(), "a directory"),
        (file_type.is_fifo(), "a FIFO"),
        (file_type.is_socket(), "a socket"),
        (file_type.is_char_device(), "a device"),
        (file_type.is_block_device(), "a block device"),
    ];
    (!file_type.is_file())
        .then(|| kinds.iter().find(|(is, _)| *is).map_or("no file", |(_, name)| name))
}

/// Opens `path` for reading, without waiting for whoever writes to it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Opens the regular file at `path`. Never waits, and never opens anything else.
///
/// # Errors
/// [`InputError::Io`], [`InputError::NotAFile`].
pub fn open_regular(path: &Path) -> Result<File, InputError> {
    if let Some(kind) = kind(std::fs::metadata(path)?.file_type()) {
        return Err(InputError::NotAFile(kind));
    }
    let file = open(path)?;
    match kind(file.metadata()?.file_type()) {
        None => Ok(file),
        Some(kind) => Err(InputError::NotAFile(kind)),
    }
}

/// The bytes of the regular file at `path`, which are `bound` at most.
///
/// # Errors
/// [`InputError::Io`], [`InputError::NotAFile`], [`InputError::TooLong`].
pub fn read_regular(path: &Path, bound: u64) -> Result<Vec<u8>, InputError> {
    let mut bytes = Vec::new();
    // One byte more tells a file that is too long, whatever the system says about its size.
    open_regular(path)?.take(bound.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bound { Err(InputError::TooLong(bound)) } else { Ok(bytes) }
}
