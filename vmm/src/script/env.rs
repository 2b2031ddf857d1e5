//! The values that names are bound to.

use std::collections::HashMap;

use vmkern_abi::control::{MapId, Outcome};

use super::ast::NameId;
use super::lexer::Radix;
use super::verbs::Gives;

/// A bound value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// A number, and how reports write it. Null is 0.
    Number(u64, Radix),
    /// A map that kmem_suballoc made.
    Map(MapId),
    /// The result of a statement that did not give a number. Boxed: a series has many values, and
    /// few of these.
    Other(Box<Outcome>),
    /// Nothing yet: its statement was started, and has not been joined.
    Started,
}

impl Bound {
    /// The value that a statement with this outcome binds.
    pub fn new(outcome: Outcome, gives: Gives) -> Self {
        match outcome {
            Outcome::Value(value) if gives == Gives::Map => Self::Map(MapId(value)),
            Outcome::Value(value) => Self::Number(value, Radix::Decimal),
            Outcome::Null => Self::Number(0, Radix::Decimal),
            Outcome::Ok
            | Outcome::Error(_)
            | Outcome::Mismatch { .. }
            | Outcome::Blocked { .. } => Self::Other(Box::new(outcome)),
        }
    }
}

/// Most elements that all series of a script have together: they live in the host's memory.
pub(super) const SERIES_MAX: usize = 1 << 20;

/// The series of a script have [`SERIES_MAX`] elements already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeriesFull;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Env {
    singles: Vec<Option<Bound>>,
    series: Vec<HashMap<u64, Bound>>,
    /// Elements of all series.
    elements: usize,
}

impl Env {
    /// Binds `name`, or `name[index]`.
    ///
    /// # Errors
    /// When the series have no room for another element.
    pub fn bind(
        &mut self,
        name: NameId,
        index: Option<u64>,
        value: Bound,
    ) -> Result<(), SeriesFull> {
        let Some(index) = index else {
            *slot(&mut self.singles, name) = Some(value);
            return Ok(());
        };
        let series = slot(&mut self.series, name);
        match series.get_mut(&index) {
            Some(element) => *element = value,
            None if self.elements == SERIES_MAX => return Err(SeriesFull),
            None => {
                series.insert(index, value);
                self.elements += 1;
            }
        }
        Ok(())
    }

    /// The value of `name`, or of `name[index]`.
    pub fn get(&self, name: NameId, index: Option<u64>) -> Option<Bound> {
        match index {
            None => self.singles.get(name.0)?.clone(),
            Some(index) => self.series.get(name.0)?.get(&index).cloned(),
        }
    }
}

/// The slot of `name`, made if there is none yet.
fn slot<T: Default>(slots: &mut Vec<T>, name: NameId) -> &mut T {
    if slots.len() <= name.0 {
        slots.resize_with(name.0 + 1, T::default);
    }
    &mut slots[name.0]
}
