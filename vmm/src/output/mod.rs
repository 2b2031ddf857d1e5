//! Destinations of output: dumps, logs, reports, and standard output itself.
//!
//! One rule for all of them: only an ordinary file is ever replaced.
//!
//! | the path is | what happens |
//! |---|---|
//! | `-`, or the file that standard output goes to | output goes to standard output |
//! | a character device, a FIFO with a reader | it is written to |
//! | nothing | a new file |
//! | a file, or a symbolic link to one | replaced or overwritten; it keeps its mode and its links |
//! | a FIFO without a reader, a socket, a block device, a directory, a dangling link | refused |
//!
//! [`Destination::of`] determines the kind and opens everything but files. A file is then created
//! in one of two ways: [`Destination::whole`] makes it appear complete or not at all; with
//! [`Destination::grows`], it can be read while it grows.
//!
//! **Waiting.** Pipes and terminals may have no room. No wait here is unbounded: each asks its
//! caller from time to time whether to continue. A reader that has gone away
//! ([`io::ErrorKind::BrokenPipe`]) is not an error; the rest of the output is dropped.

mod error;
mod kind;
mod partial;
mod stream;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

pub use self::error::{OutputError, OutputFault};
use self::kind::Kind;
pub use self::kind::reserve_stdout;
use self::partial::Partial;
pub use self::partial::abandon;
pub use self::stream::Stream;

/// Called from time to time while output waits for room: whether to continue.
pub type GoOn<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

/// Who may read a new file. A file that is replaced keeps its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Only its owner: it holds a guest's memory.
    Owner,
    /// According to the umask.
    Umask,
}

impl Readers {
    const fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Umask => 0o666,
        }
    }
}

/// A destination of output. Anything but an ordinary file is open already.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    kind: Kind,
}

impl Destination {
    /// The destination `path`; `-` is standard output.
    ///
    /// # Errors
    /// When nothing may or can be written there.
    pub fn of(path: impl AsRef<Path>) -> Result<Self, OutputError> {
        let path = path.as_ref();
        let kind = Kind::of(path).map_err(OutputError::at(path))?;
        Ok(Self { path: path.to_path_buf(), kind })
    }

    /// As [`Destination::of`], for output that is not text.
    ///
    /// # Errors
    /// As there; and a terminal is refused.
    pub fn of_bytes(path: impl AsRef<Path>) -> Result<Self, OutputError> {
        let destination = Self::of(path)?;
        match &destination.kind {
            Kind::Stream(stream) if stream.is_terminal() => {
                Err(OutputError::at(&destination.path)(OutputFault::Terminal))
            }
            _ => Ok(destination),
        }
    }

    /// The path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Output that, as a file, appears complete or not at all: it is written to a partial file
    /// beside it, which [`Output::finish`] renames.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn whole(self, readers: Readers) -> Result<Output, OutputError> {
        let fail = OutputError::at(&self.path);
        let sink = match self.kind {
            Kind::Stream(stream) => Sink::Stream(stream),
            Kind::File { file, there } => {
                Sink::Whole(Partial::beside(file, there, readers).map_err(fail)?)
            }
        };
        Ok(Output { path: self.path, sink, len: 0 })
    }

    /// Output that can be read while it grows. An existing file is truncated at once.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn grows(self, readers: Readers) -> Result<Output, OutputError> {
        let fail = OutputError::at(&self.path);
        let sink = match self.kind {
            Kind::Stream(stream) => Sink::Stream(stream),
            Kind::File { file, there } => {
                let open = || -> io::Result<File> {
                    let mut options = OpenOptions::new();
                    options
                        .write(true)
                        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
                    // Do not overwrite a file that has appeared since the check.
                    options.create_new(there.is_none()).mode(readers.mode());
                    let opened = options.open(&file)?;
                    if !opened.metadata()?.is_file() {
                        return Err(io::Error::other("it is no longer a regular file"));
                    }
                    opened.set_len(0)?;
                    Ok(opened)
                };
                Sink::File(open().map_err(|error| fail(OutputFault::io("open it", error)))?)
            }
        };
        Ok(Output { path: self.path, sink, len: 0 })
    }
}

#[derive(Debug)]
enum Sink {
    Stream(Stream),
    File(File),
    Whole(Partial),
}

/// Open output. If [`Destination::whole`] made it and it is dropped before [`Output::finish`], no
/// file appears.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    sink: Sink,
    /// Bytes written so far.
    len: u64,
}

impl Output {
    /// The path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When they cannot be written, or `go_on` ends the wait ([`io::ErrorKind::TimedOut`]).
    pub fn write(&mut self, bytes: &[u8], go_on: GoOn<'_>) -> io::Result<()> {
        self.len += bytes.len() as u64;
        match &mut self.sink {
            Sink::Stream(stream) => stream.write(bytes, go_on),
            Sink::File(file) => file.write_all(bytes),
            Sink::Whole(partial) => partial.file().write_all(bytes),
        }
    }

    /// Writes `bytes` zeros: as a hole, if it is a file.
    ///
    /// # Errors
    /// As for [`Output::write`].
    pub fn skip(&mut self, bytes: u64, go_on: GoOn<'_>) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let to = self.len.saturating_add(bytes);
        let file = match &mut self.sink {
            Sink::File(file) => file,
            Sink::Whole(partial) => partial.file(),
            Sink::Stream(stream) => {
                while self.len < to {
                    let count = usize::try_from(to - self.len)
                        .map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
                    stream.write(&ZEROS[..count], go_on)?;
                    self.len += count as u64;
                }
                return Ok(());
            }
        };
        file.seek(SeekFrom::Start(to))?;
        self.len = to;
        Ok(())
    }

    /// Ends the output: a partial file gets its final name.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(self) -> io::Result<()> {
        match self.sink {
            Sink::Stream(_) => Ok(()),
            Sink::File(file) => file.set_len(self.len),
            Sink::Whole(mut partial) => {
                partial.file().set_len(self.len)?;
                partial.persist()
            }
        }
    }
}

#[cfg(test)]
mod tests;
