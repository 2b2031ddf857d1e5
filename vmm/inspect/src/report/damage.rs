//! Structures that could not be read, or made no sense, while a report was made.

use std::cell::RefCell;

use serde::Serialize;
use vmkern_abi::addr::GuestVirt;

use super::hex::Hex;
use crate::InspectError;

/// The most damage that a report lists; the rest is only counted.
const DAMAGE_MAX: usize = 64;

/// A structure that could not be read, or contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// The structure.
    pub structure: String,
    /// Its address, where it has one.
    pub at: Option<Hex>,
    /// What is wrong with it.
    pub problem: String,
}

impl From<InspectError> for Damage {
    fn from(error: InspectError) -> Self {
        let (structure, at) = match error {
            InspectError::Damaged { what, at, .. }
            | InspectError::NotMapped { what, at, .. }
            | InspectError::Misaligned { what, at } => (what, Some(at)),
            InspectError::NotRam { what, .. } => (what, None),
            _ => ("guest", None),
        };
        Self { structure: structure.to_owned(), at: at.map(Hex::from), problem: error.problem() }
    }
}

/// All damage met so far.
#[derive(Debug, Default)]
pub(super) struct Damages {
    found: RefCell<Vec<Damage>>,
    left_out: RefCell<u64>,
}

impl Damages {
    /// Notes `error`.
    pub fn note(&self, error: InspectError) {
        let mut found = self.found.borrow_mut();
        if found.len() < DAMAGE_MAX {
            let damage = Damage::from(error);
            if !found.contains(&damage) {
                found.push(damage);
            }
        } else {
            *self.left_out.borrow_mut() += 1;
        }
    }

    /// Notes that `what` at `at` is damaged; `problem` describes how.
    pub fn say(&self, what: &'static str, at: GuestVirt, problem: impl FnOnce() -> String) {
        if self.found.borrow().len() < DAMAGE_MAX {
            self.note(InspectError::damaged(what, at, problem()));
        } else {
            *self.left_out.borrow_mut() += 1;
        }
    }

    /// The result's value; notes an error.
    pub fn ok<T>(&self, result: Result<T, InspectError>) -> Option<T> {
        result.map_err(|error| self.note(error)).ok()
    }

    /// The damage that is listed, and the number of those left out.
    pub fn into_parts(self) -> (Vec<Damage>, u64) {
        (self.found.into_inner(), self.left_out.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_once_and_its_amount_is_bounded() {
        let damages = Damages::default();
        for at in [1, 1, 1, 2] {
            damages.say("entry", GuestVirt::new(at), || "bent".to_owned());
        }
        assert_eq!(damages.found.borrow().len(), 2);
        for at in 0..1000 {
            damages.say("entry", GuestVirt::new(at * 8), || "bent".to_owned());
        }
        let (found, left_out) = damages.into_parts();
        assert_eq!((found.len(), left_out), (DAMAGE_MAX, 1000 - (DAMAGE_MAX as u64 - 2)));
    }
}
