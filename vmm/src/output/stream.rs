//! Output that goes in order to something that is open: standard output, a device, a pipe.
//!
//! A pipe that is ready takes [`CHUNK`] bytes without a wait, whether or not its descriptor was
//! opened to wait; so a write of at most so many, after a look, does not hang, and whoever waits
//! does it in the look.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::GoOn;

/// Bytes that a ready pipe takes at once, as atomically as without a wait (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// How long to wait for room before the caller is asked whether to go on.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Something open that takes bytes in order. Any number of threads may write; what each writes at
/// once, up to 4,096 bytes, stays together.
#[derive(Debug)]
pub struct Stream {
    to: To,
    /// Its reader has gone away, or never takes anything.
    ended: AtomicBool,
    stuck: AtomicBool,
}

#[derive(Debug)]
enum To {
    Stdout(io::Stdout),
    Stderr(io::Stderr),
    File(File),
}

impl Stream {
    fn new(to: To) -> Self {
        Self { to, ended: AtomicBool::new(false), stuck: AtomicBool::new(false) }
    }

    /// Standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self::new(To::Stdout(io::stdout()))
    }

    /// Standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self::new(To::Stderr(io::stderr()))
    }

    pub(super) fn of(file: File) -> Self {
        Self::new(To::File(file))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.to {
            To::Stdout(stdout) => stdout.as_fd(),
            To::Stderr(stderr) => stderr.as_fd(),
            To::File(file) => file.as_fd(),
        }
    }

    /// Whether it is a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.fd().is_terminal()
    }

    /// Writes all of `bytes`, and takes no lock. When the reader has gone away, this and all that
    /// follows is dropped, which is not an error.
    ///
    /// # Errors
    /// When it cannot be written; [`io::ErrorKind::TimedOut`] when there is no room and
    /// `go_on` has had enough of waiting, and ever after.
    pub fn write(&self, mut bytes: &[u8], go_on: GoOn<'_>) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            if self.stuck.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it has no reader"));
            }
            if !self.has_room()? {
                if go_on() == ControlFlow::Break(()) {
                    self.stuck.store(true, Ordering::Relaxed);
                }
                continue;
            }
            match rustix::io::write(self.fd(), &bytes[..bytes.len().min(CHUNK)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::PIPE) => self.ended.store(true, Ordering::Relaxed),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes `bytes`, at most 4,096, if that takes no wait.
    pub fn try_write(&self, bytes: &[u8]) {
        if matches!(self.ready(&Timespec { tv_sec: 0, tv_nsec: 0 }), Ok(true)) {
            let _ = rustix::io::write(self.fd(), &bytes[..bytes.len().min(CHUNK)]);
        }
    }

    /// Waits for room for a moment.
    fn has_room(&self) -> io::Result<bool> {
        self.ready(&PATIENCE)
    }

    fn ready(&self, wait: &Timespec) -> io::Result<bool> {
        let fd = self.fd();
        match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(wait)) {
            // Errors are what the write says.
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
