//! Work of another CPU while this one waits for it.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::interrupts::Handler;

/// Work that is done once, at the next opportunity.
#[derive(Default)]
pub struct Elsewhere(Mutex<Option<Handler>>);

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Elsewhere").finish_non_exhaustive()
    }
}

impl Elsewhere {
    pub fn set(&self, work: Handler) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    pub fn take(&self) -> Option<Handler> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
