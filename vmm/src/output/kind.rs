//! The kind of a path, before anything is written there.

use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::error::OutputFault;
use super::stream::Stream;

/// What standard output is reserved for.
static RESERVED: OnceLock<&'static str> = OnceLock::new();

/// Reserves standard output for `what`, such as a report: from now on, it is refused as a
/// [`super::Destination`].
pub fn reserve_stdout(what: &'static str) {
    let _ = RESERVED.set(what);
}

/// The kinds of destination.
#[derive(Debug)]
pub(super) enum Kind {
    /// An open descriptor that takes bytes in order.
    Stream(Stream),
    /// A file.
    File {
        /// Its real path, with symbolic links resolved.
        file: PathBuf,
        /// The existing file, if any.
        there: Option<Metadata>,
    },
}

impl Kind {
    pub(super) fn of(path: &Path) -> Result<Self, OutputFault> {
        if path == Path::new("-") {
            return stdout();
        }
        let there = match fs::metadata(path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return nothing(path),
            Err(error) => return Err(OutputFault::io("examine it", error)),
        };
        let kind = there.file_type();
        if kind.is_dir() {
            Err(OutputFault::Directory)
        } else if kind.is_block_device() {
            Err(OutputFault::BlockDevice)
        } else if kind.is_socket() {
            Err(OutputFault::Socket)
        } else if kind.is_file() {
            ordinary(path, there)
        } else {
            special(path)
        }
    }
}

fn stdout() -> Result<Kind, OutputFault> {
    match RESERVED.get() {
        Some(what) => Err(OutputFault::Reserved(what)),
        None => Ok(Kind::Stream(Stream::stdout())),
    }
}

/// Nothing exists at `path`.
fn nothing(path: &Path) -> Result<Kind, OutputFault> {
    if let Ok(to) = fs::read_link(path) {
        return Err(OutputFault::DanglingLink(to));
    }
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(OutputFault::io(
            "create it",
            io::Error::new(io::ErrorKind::InvalidInput, "it has no file name"),
        ));
    }
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(directory) {
        Ok(parent) if parent.is_dir() => Ok(Kind::File { file: path.to_path_buf(), there: None }),
        Ok(_) => Err(OutputFault::io("create it", io::ErrorKind::NotADirectory.into())),
        Err(error) => Err(OutputFault::io("create a file in its directory", error)),
    }
}

/// A file exists at `path`.
fn ordinary(path: &Path, there: Metadata) -> Result<Kind, OutputFault> {
    // `/dev/stdout`, or the same file: two independent writers of one file would destroy each
    // other's output.
    if is_same(&there, &io::stdout()) {
        return stdout();
    }
    if is_same(&there, &io::stderr()) {
        return Ok(Kind::Stream(Stream::stderr()));
    }
    let file =
        fs::canonicalize(path).map_err(|error| OutputFault::io("follow its links", error))?;
    // A file in a writable directory could be replaced although it is not writable itself: refuse
    // that.
    let mut options = OpenOptions::new();
    let opened = options
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&file);
    opened.map_err(|error| OutputFault::io("write to it", error))?;
    Ok(Kind::File { file, there: Some(there) })
}

fn is_same(there: &Metadata, other: &impl AsFd) -> bool {
    let Ok(other) = rustix::fs::fstat(other) else { return false };
    (other.st_dev, other.st_ino) == (there.dev(), there.ino())
}

/// A character device or a FIFO exists at `path`.
fn special(path: &Path) -> Result<Kind, OutputFault> {
    let mut options = OpenOptions::new();
    // With O_NONBLOCK, opening a FIFO without a reader fails instead of waiting for one.
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.open(path) {
        Ok(file) => Ok(Kind::Stream(Stream::of(file))),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Err(OutputFault::NoReader),
        Err(error) => Err(OutputFault::io("open it", error)),
    }
}
