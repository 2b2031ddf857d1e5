//! Which names the lines above have bound.

use std::collections::HashMap;

use super::ast::NameId;
use super::verbs::Gives;
use crate::spelling::closest;

/// What a name has been bound as. The two do not get in each other's way: `$a` and `$a[0]` are
/// different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `NAME =`.
    Single,
    /// `NAME[EXPR] =`.
    Series,
}

/// Whether a name has been bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Unbound,
    Bound,
    /// At least once to what can be a map.
    BoundToMap,
}

/// The names bound so far, and how deep in `repeat` blocks the current line stands.
#[derive(Debug, Default)]
pub(super) struct Scope {
    ids: HashMap<String, NameId>,
    names: Vec<String>,
    /// How each name has been bound, by form.
    bound: Vec<[Use; 2]>,
    /// Open `repeat` blocks around the current line.
    pub loops: usize,
}

impl Scope {
    /// The number of `name`, whether bound yet or not.
    pub fn id(&mut self, name: &str) -> NameId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = NameId(self.names.len());
        self.ids.insert(name.to_owned(), id);
        self.names.push(name.to_owned());
        self.bound.push([Use::Unbound; 2]);
        id
    }

    pub fn bind(&mut self, name: NameId, form: Form, gives: Gives) {
        let bound = if gives == Gives::Number { Use::Bound } else { Use::BoundToMap };
        let slot = &mut self.bound[name.0][form as usize];
        *slot = bound.max(*slot);
    }

    /// The number of `name` if a line above has bound it in this form.
    pub fn find(&self, name: &str, form: Form) -> Option<NameId> {
        self.ids.get(name).copied().filter(|id| self.bound[id.0][form as usize] > Use::Unbound)
    }

    /// Whether a line above has bound the name in this form to what can be a map.
    pub fn can_be_map(&self, name: NameId, form: Form) -> bool {
        self.bound[name.0][form as usize] == Use::BoundToMap
    }

    /// Names bound to what can be a map.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        let maps = self
            .names
            .iter()
            .zip(&self.bound)
            .filter(|(_, forms)| forms.contains(&Use::BoundToMap));
        maps.map(|(name, _)| name.as_str())
    }

    /// A bound name like `name`.
    pub fn suggest(&self, name: &str) -> Option<&str> {
        closest(name, self.bound())
    }

    /// Names bound in any form.
    pub fn bound(&self) -> impl Iterator<Item = &str> {
        let is_bound = |forms: &[Use; 2]| forms.iter().any(|form| *form > Use::Unbound);
        let bound = self.names.iter().zip(&self.bound).filter(move |(_, forms)| is_bound(forms));
        bound.map(|(name, _)| name.as_str())
    }
}
