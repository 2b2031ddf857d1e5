//! Errors of the host's system: the error, the limit that was reached, and what would help.

pub(crate) mod limits;

use thiserror::Error;

/// A KVM operation, or a system call that it needs, failed. [`KvmError::remedy`] says what would
/// help.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("{operation}: {}", std::io::Error::from_raw_os_error(*errno))]
#[non_exhaustive]
pub struct KvmError {
    /// The operation, with its size or address.
    pub operation: String,
    /// The system's error number.
    pub errno: i32,
}

vmkern_inspect::debug_as_printed!(KvmError);

impl KvmError {
    /// What would help, as sentences: the limit that was reached, with its name and value, and how
    /// to raise it.
    #[must_use]
    pub fn remedy(&self) -> String {
        limits::remedy(&self.operation, self.errno)
    }

    /// Whether the host was short of something that others may release: files, threads, memory.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        limits::is_shortage(self.errno)
    }

    /// The error of `operation`, for `map_err`.
    pub(crate) fn of(operation: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self { operation: operation.into(), errno: error.errno() }
    }

    /// `error` as the error of `operation`.
    pub(crate) fn io(operation: impl Into<String>, error: &std::io::Error) -> Self {
        Self { operation: operation.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}
