//! Reading a script: from a file, or from a pipe whose writer may be slow or never end.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Status, Stop, TargetError};
use crate::input::{InputError, SCRIPT_MAX, open, read_regular};

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
    // This fails only if the counter is full, and then the wait ends as well.
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
    // Rounded up: a wait that ends has been long enough.
    let timeout = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    // SAFETY: two pollfds, which live through the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
    }
    Ok(fds[1].revents == 0 && fds[0].revents != 0)
}
