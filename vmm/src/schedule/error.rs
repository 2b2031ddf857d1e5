//! Mistakes in schedules.

use thiserror::Error;

/// A schedule that cannot be used.
#[derive(Clone, PartialEq, Eq, Error)]
#[error(
    "{file}:{line}: {problem}{}",
    .help.as_ref().map_or(String::new(), |help| format!("; {help}"))
)]
#[non_exhaustive]
pub struct ScheduleError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, with the key.
    pub problem: String,
    /// What is allowed, or what was probably meant.
    pub help: Option<String>,
}

vmkern_inspect::debug_as_printed!(ScheduleError);
