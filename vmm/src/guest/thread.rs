//! The kernel threads on which a guest runs operations.

use std::fmt;

use vmkern_abi::control::{Context, MAX_THREADS};

use super::error::RequestError;

/// A kernel thread of the guest, `t0` to `t63`. The kernel creates it for its first operation.
///
/// ```
/// use vmkern::ThreadId;
///
/// assert_eq!(ThreadId::new(3), Some(ThreadId::nth::<3>()));
/// assert_eq!(ThreadId::new(64), None);
/// assert_eq!(ThreadId::MAIN.to_string(), "t0");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(u16);

impl ThreadId {
    /// Thread 0, the default thread of operations.
    pub const MAIN: Self = Self(0);
    /// The number of threads.
    pub const COUNT: u16 = MAX_THREADS;

    /// The thread with this number; `None` if it is [`ThreadId::COUNT`] or more.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        let number = number as u16;
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The thread with a number that is known at compile time. A number without a thread does not
    /// compile:
    ///
    /// ```compile_fail
    /// let thread = vmkern::ThreadId::nth::<64>();
    /// ```
    #[must_use]
    pub const fn nth<const NUMBER: u16>() -> Self {
        const { assert!(NUMBER < Self::COUNT, "threads are t0 to t63") };
        Self(NUMBER)
    }

    /// All threads, in the order of their numbers.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator + Clone {
        (0..Self::COUNT).map(Self)
    }

    /// The number, below [`ThreadId::COUNT`].
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// From the word for a thread on the wire.
impl TryFrom<u16> for ThreadId {
    type Error = RequestError;

    fn try_from(number: u16) -> Result<Self, RequestError> {
        if number < Self::COUNT { Ok(Self(number)) } else { Err(RequestError::Thread(number)) }
    }
}

impl From<ThreadId> for u16 {
    fn from(thread: ThreadId) -> Self {
        thread.number()
    }
}

/// Runs on the thread, with an answer.
impl From<ThreadId> for Context {
    fn from(thread: ThreadId) -> Self {
        Self::Thread(thread.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_64_threads_and_no_number_makes_another() {
        assert_eq!(ThreadId::all().len(), 64);
        assert!(ThreadId::all().map(ThreadId::number).eq(0..64));
        let last = ThreadId::new(63).expect("it exists");
        assert_eq!((ThreadId::all().next_back(), last.to_string()), (Some(last), "t63".to_owned()));
        assert_eq!((ThreadId::new(64), ThreadId::new(u8::MAX)), (None, None));
        assert_eq!(ThreadId::try_from(64), Err(RequestError::Thread(64)));
        assert_eq!(Context::from(last), Context::Thread(63));
    }
}
