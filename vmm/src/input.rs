//! Reading what others wrote: at most so many bytes, within a time, and no device by mistake.
//!
//! A script may come through a pipe, and whoever writes into it may be slow or never end. It is
//! read as long as the run's time limit lasts and nobody interrupts. A file that the command maps
//! or reads as a whole (a kernel, an image) is a regular one: [`open_regular`] looks before it
//! opens, because to open a device may already do something to it, and opens without waiting,
//! because a FIFO may have taken the file's place meanwhile.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::kvm::KvmError;
use crate::script::{Status, Stop, TargetError};

/// The longest script, in bytes.
pub const SCRIPT_MAX: u64 = 4 << 20;

/// A file that was to be read cannot be.
#[derive(Debug, Error)]
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

impl From<io::Error> for InputError {
    fn from(error: io::Error) -> Self {
        let refusal = KvmError::io("opening it", &error);
        if refusal.is_shortage() { Self::Host(refusal) } else { Self::Io(error) }
    }
}

impl InputError {
    /// The exit status that a script which cannot be read means.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::TimeIsUp(_) => Status::Timeout,
            Self::Interrupted => Status::Interrupted,
            Self::Host(_) => Status::NoKvm,
            Self::Io(_) | Self::NotAFile(_) | Self::TooLong(_) => Status::Usage,
        }
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

fn open(path: &Path) -> io::Result<File> {
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

/// The script at `path`, or on standard input for `-`, as long as `stop` lets it take.
///
/// # Errors
/// See [`InputError`].
pub fn read_script(path: &Path, stop: &Stop) -> Result<Vec<u8>, InputError> {
    if path == Path::new("-") {
        let stdin = io::stdin().lock();
        return read_stream(stdin.as_raw_fd(), stdin, stop);
    }
    let file_type = std::fs::metadata(path)?.file_type();
    if file_type.is_fifo() || file_type.is_char_device() {
        let file = open(path)?;
        return read_stream(file.as_raw_fd(), file, stop);
    }
    read_regular(path, SCRIPT_MAX)
}

/// Reads `stream`, whose descriptor is `fd`, to its end.
fn read_stream(fd: i32, mut stream: impl Read, stop: &Stop) -> Result<Vec<u8>, InputError> {
    let interrupted = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
    let bell = Arc::clone(&interrupted);
    // Fails only when the counter is full, and then it can be read all the same.
    stop.on_interrupt(move || drop(bell.write(1)));
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        stop.check_now().map_err(|error| match error {
            TargetError::Timeout { limit, .. } => InputError::TimeIsUp(limit),
            _ => InputError::Interrupted,
        })?;
        if !wait_readable(fd, interrupted.as_raw_fd(), stop.left())? {
            continue;
        }
        match stream.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error.into()),
        }
        if bytes.len() as u64 > SCRIPT_MAX {
            return Err(InputError::TooLong(SCRIPT_MAX));
        }
    }
}

/// Waits until `fd` can be read, `bell` rings or `left` has passed. Whether it can be read.
fn wait_readable(fd: i32, bell: i32, left: Duration) -> io::Result<bool> {
    let mut fds = [fd, bell].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // Rounded up: whoever comes back has waited long enough.
    let timeout = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    // SAFETY: two pollfds, which live through the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
    }
    Ok(fds[1].revents == 0 && fds[0].revents != 0)
}
