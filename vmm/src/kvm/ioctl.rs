//! KVM's ioctls, repeated when a signal or a shortage interrupts them.
//!
//! An ioctl returns EINTR when a signal is pending, even one that has no effect on the process: a
//! stop and a continue (Ctrl-Z and `fg`, a debugger, a freezer). It returns EAGAIN when the host
//! cannot create a thread for it at the moment. Neither is a result, so [`ioctl`] tries again:
//! after EINTR without a limit, and after EAGAIN for as long as [`Patience`] lasts, because a limit
//! of threads may never be raised. Every ioctl goes through it except `KVM_RUN`, for which EINTR
//! means that the vCPU is wanted; its loop has a [`Patience`] of its own.

use std::thread;
use std::time::Duration;

use kvm_ioctls::Error;

use super::KvmError;

/// How many times EAGAIN is followed by an immediate retry.
const TRIES_AT_ONCE: u32 = 16;
/// How many further retries wait for the host first.
const TRIES_LATER: u32 = 50;
/// How long such a retry waits: no event reports that a thread is available again.
const PAUSE: Duration = Duration::from_millis(10);

/// Counts consecutive EAGAINs that mean "try again". In total it lasts half a second.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    tries: u32,
}

impl Patience {
    /// Notes an EAGAIN, and waits if that may help. Returns whether to try again.
    pub(crate) fn lasts(&mut self) -> bool {
        self.tries += 1;
        if self.tries > TRIES_AT_ONCE {
            thread::sleep(PAUSE);
        }
        self.tries < TRIES_AT_ONCE + TRIES_LATER
    }

    /// A call has succeeded: the next EAGAIN counts as the first.
    pub(crate) fn restore(&mut self) {
        self.tries = 0;
    }
}

/// Calls `call` until its result is neither EINTR nor a tolerable EAGAIN. `operation` names it in
/// an error.
pub(crate) fn ioctl<T>(
    operation: impl Into<String>,
    mut call: impl FnMut() -> Result<T, Error>,
) -> Result<T, KvmError> {
    let mut patience = Patience::default();
    loop {
        match call() {
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) if error.errno() == libc::EAGAIN && patience.lasts() => {}
            other => return other.map_err(KvmError::of(operation)),
        }
    }
}

/// The result of an ioctl that returns a number, or a negative number with the error in `errno`
/// when it fails.
pub(crate) fn number(answer: i32) -> Result<i32, Error> {
    if answer < 0 { Err(Error::last()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a call that fails with `errno` `refusals` times and then returns 7, and the
    /// number of calls.
    fn after(errno: i32, refusals: u32) -> (Result<u32, KvmError>, u32) {
        let mut asked = 0;
        let answer = ioctl("KVM_FAKE", || {
            asked += 1;
            if asked > refusals { Ok(7) } else { Err(Error::new(errno)) }
        });
        (answer, asked)
    }

    #[test]
    fn an_interrupted_ioctl_is_tried_again_however_often_it_happens() {
        for refusals in [0, 1, 2, 10_000] {
            assert_eq!(after(libc::EINTR, refusals), (Ok(7), refusals + 1));
        }
    }

    #[test]
    fn an_ioctl_that_the_host_cannot_serve_now_is_tried_again_and_not_for_ever() {
        for refusals in [1, TRIES_AT_ONCE + 2] {
            assert_eq!(after(libc::EAGAIN, refusals), (Ok(7), refusals + 1));
        }
        let (answer, asked) = after(libc::EAGAIN, u32::MAX);
        assert_eq!(answer.map_err(|error| error.errno), Err(libc::EAGAIN));
        assert_eq!(asked, TRIES_AT_ONCE + TRIES_LATER);
    }

    #[test]
    fn any_other_error_is_the_answer() {
        for errno in [libc::EMFILE, libc::ENOMEM, libc::EINVAL] {
            let error = KvmError { operation: "KVM_FAKE".to_owned(), errno };
            assert_eq!(after(errno, 1), (Err(error), 1));
        }
    }
}
