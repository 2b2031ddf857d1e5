//! The bell that wakes the host's side: an eventfd.
//!
//! A vCPU's thread rings it (for the guest's doorbell, or at the vCPU's end), and so does every
//! interrupt, also from a signal handler: ringing is one `write` system call. One thread waits at a
//! time.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::KvmError;

/// The bell.
#[derive(Debug)]
pub(crate) struct Bell {
    event: EventFd,
    interrupted: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> Result<Arc<Self>, KvmError> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|error| KvmError::io("eventfd", &error))?;
        Ok(Arc::new(Self { event, interrupted: AtomicBool::new(false) }))
    }

    /// Wakes the waiter, now or when it waits next.
    pub(crate) fn ring(&self) {
        // This fails only if the counter is full, and then the waiter wakes anyway.
        let _ = self.event.write(1);
    }

    /// Waits for a ring, until `deadline`. May return early.
    pub(crate) fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        poll(&self.event, left);
        // It is not readable if nobody rang.
        let _ = self.event.read();
    }

    /// Whether it was rung since the last call or wait.
    #[cfg(test)]
    pub(crate) fn take_ring(&self) -> bool {
        self.event.read().is_ok()
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Whether there was an interrupt since the last call.
    pub(crate) fn take_interrupt(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) && self.interrupted.swap(false, Ordering::SeqCst)
    }
}

fn poll(event: &EventFd, timeout: Duration) {
    let mut fd = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: one pollfd, a timespec and no signal mask, all of which live through the call.
    // Whatever it returns, the waiter checks its condition again.
    unsafe { libc::ppoll(&raw mut fd, 1, &raw const timeout, std::ptr::null()) };
}

/// Interrupts the thread that waits for a guest. Any thread may hold a handle, and it does not keep
/// the guest alive.
#[derive(Clone, Debug)]
pub struct InterruptHandle(pub(crate) Arc<Bell>);

impl InterruptHandle {
    /// Makes the call that waits for the guest, or the next such call, return
    /// [`GuestError::Interrupted`](crate::GuestError::Interrupted). The guest itself keeps running.
    /// Safe to call from a signal handler.
    pub fn interrupt(&self) {
        self.0.interrupt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_before_the_wait_is_not_lost() {
        let bell = Bell::new().expect("an eventfd can be created");
        let far = Instant::now() + Duration::from_secs(3600);
        bell.ring();
        bell.ring();
        bell.wait(far);
        bell.wait(Instant::now());
        InterruptHandle(Arc::clone(&bell)).interrupt();
        bell.wait(far);
        assert!(bell.take_interrupt());
        assert!(!bell.take_interrupt());
    }
}
