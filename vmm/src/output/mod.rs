//! Where output goes: images, logs, reports, and standard output itself.
//!
//! One rule for all of them: what is not an ordinary file keeps its place.
//!
//! | the path is | what happens |
//! |---|---|
//! | `-`, or the file that standard output goes to | standard output gets it |
//! | a character device, a FIFO that somebody reads | it is written to |
//! | nothing | a new file |
//! | a file, or a symbolic link to one | replaced or overwritten; it keeps its mode and its links |
//! | a FIFO that nobody reads, a socket, a block device, a directory, a dangling link | refused |
//!
//! [`Destination::of`] finds out which it is and opens what is to be written to as it is. Then a
//! file comes about in one of two ways: [`Destination::whole`] makes one that appears whole or not
//! at all, [`Destination::grows`] one that can be read while it grows.
//!
//! **Waiting.** Pipes and terminals may have no room. Nothing here waits for that without an end:
//! each wait asks its caller now and then whether to go on. Whoever does not read any more
//! ([`io::ErrorKind::BrokenPipe`]) wants no more, and that is not an error.

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

/// Whether to go on with output that has no room, asked now and then.
pub type GoOn<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

/// Who may read a new file. One that is replaced keeps its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner alone: it holds a guest's memory.
    Owner,
    /// Whoever may read new files, by the umask.
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

/// Where output is to go. What is no ordinary file is open.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    kind: Kind,
}

impl Destination {
    /// What `path` is, `-` being standard output.
    ///
    /// # Errors
    /// When nothing should be written there, or cannot be.
    pub fn of(path: impl AsRef<Path>) -> Result<Self, OutputError> {
        let path = path.as_ref();
        let kind = Kind::of(path).map_err(OutputError::at(path))?;
        Ok(Self { path: path.to_path_buf(), kind })
    }

    /// As [`Destination::of`], for bytes that a terminal can do nothing with.
    ///
    /// # Errors
    /// As there, and for a terminal.
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

    /// Output that appears whole or not at all where it becomes a file: it grows beside the one
    /// that is wanted, and [`Output::finish`] gives it its name.
    ///
    /// # Errors
    /// When the file cannot be made.
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

    /// Output that can be read while it grows. What was in a file is gone at once.
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
                    // Whatever has come there since is not ours to overwrite.
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

/// Output on its way. One that is dropped before [`Output::finish`] leaves no new file where it was
/// to be whole.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    sink: Sink,
    /// Bytes so far.
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
    /// When they cannot be written, or `go_on` had enough of waiting ([`io::ErrorKind::TimedOut`]).
    pub fn write(&mut self, bytes: &[u8], go_on: GoOn<'_>) -> io::Result<()> {
        self.len += bytes.len() as u64;
        match &mut self.sink {
            Sink::Stream(stream) => stream.write(bytes, go_on),
            Sink::File(file) => file.write_all(bytes),
            Sink::Whole(partial) => partial.file().write_all(bytes),
        }
    }

    /// Writes `bytes` zeros: as a hole, where there can be holes.
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

    /// Ends it: a file that was to appear whole takes its name.
    ///
    /// # Errors
    /// When that cannot be.
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
