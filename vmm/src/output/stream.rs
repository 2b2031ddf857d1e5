//! Output in order to an open descriptor: standard output, a device, a pipe.
//!
//! A pipe that is ready takes [`CHUNK`] bytes without blocking, even if its descriptor is in
//! blocking mode. So a write of at most that many bytes after a successful poll does not block; all
//! waiting is done in the poll.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::GoOn;

/// Bytes that a ready pipe takes without blocking, and in one piece (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// How long to wait for room before the caller is asked whether to go on.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// An open descriptor that takes bytes in order. Any number of threads may write; up to 4,096 bytes
/// of one write stay together.
#[derive(Debug)]
pub struct Stream {
    to: To,
    /// Its reader has gone away.
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

    /// Writes all of `bytes`, without a lock. When the reader has gone away, this and all later
    /// output is dropped, which is not an error.
    ///
    /// # Errors
    /// When it cannot be written; [`io::ErrorKind::TimedOut`] when there is no room and `go_on`
    /// ends the wait, and at every later call.
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

    /// Writes `bytes`, at most 4,096, if that does not block.
    pub fn try_write(&self, bytes: &[u8]) {
        if matches!(self.ready(&Timespec { tv_sec: 0, tv_nsec: 0 }), Ok(true)) {
            let _ = rustix::io::write(self.fd(), &bytes[..bytes.len().min(CHUNK)]);
        }
    }

    /// Waits a moment for room.
    fn has_room(&self) -> io::Result<bool> {
        self.ready(&PATIENCE)
    }

    fn ready(&self, wait: &Timespec) -> io::Result<bool> {
        let fd = self.fd();
        match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(wait)) {
            // A pending error also counts: the write returns it.
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
