//! The values that names are bound to.

use std::collections::HashMap;

use vmkern_abi::control::{MapId, Outcome};

use super::ast::NameId;
use super::verbs::Gives;

/// A bound value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// A number. Null is 0.
    Number(u64),
    /// A map that kmem_suballoc made.
    Map(MapId),
    /// The result of a statement that gave no number.
    Other(Outcome),
}

impl Bound {
    /// What a statement that gives `gives` binds with this outcome.
    pub fn new(outcome: Outcome, gives: Gives) -> Self {
        match outcome {
            Outcome::Value(value) if gives == Gives::Map => Self::Map(MapId(value)),
            Outcome::Value(value) => Self::Number(value),
            Outcome::Null => Self::Number(0),
            Outcome::Ok | Outcome::Error(_) | Outcome::Mismatch { .. } | Outcome::Blocked { .. } => {
                Self::Other(outcome)
            }
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Env {
    singles: Vec<Option<Bound>>,
    series: Vec<HashMap<u64, Bound>>,
}

impl Env {
    /// Room for this many names, none of them bound.
    pub fn new(names: usize) -> Self {
        Self { singles: vec![None; names], series: vec![HashMap::new(); names] }
    }

    /// Binds `name`, or `name[index]`.
    pub fn bind(&mut self, name: NameId, index: Option<u64>, value: Bound) {
        match index {
            None => self.singles[name.0] = Some(value),
            Some(index) => {
                self.series[name.0].insert(index, value);
            }
        }
    }

    /// What `name`, or `name[index]`, is bound to.
    pub fn get(&self, name: NameId, index: Option<u64>) -> Option<Bound> {
        match index {
            None => self.singles[name.0],
            Some(index) => self.series[name.0].get(&index).copied(),
        }
    }
}
