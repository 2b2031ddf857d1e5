//! What another CPU does while this one waits for it.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::machine::SimMachine;
use crate::vm::Vm;

/// Something that another CPU does.
pub type Work = Box<dyn FnOnce(&Vm<SimMachine>) + Send>;

/// Work that is to be done at the next occasion, once.
#[derive(Default)]
pub struct Elsewhere(Mutex<Option<Work>>);

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Elsewhere").finish_non_exhaustive()
    }
}

impl Elsewhere {
    pub fn set(&self, work: Work) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    pub fn take(&self) -> Option<Work> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
