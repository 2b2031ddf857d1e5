//! Which names the lines above have bound.

use std::collections::HashMap;

use super::ast::NameId;
use super::diagnostic::closest;

/// What a name has been bound as. The two do not get in each other's way: `$a` and `$a[0]` are different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `NAME =`.
    Single,
    /// `NAME[EXPR] =`.
    Series,
}

/// The names bound so far, and how deep in `repeat` blocks the current line stands.
#[derive(Debug, Default)]
pub(super) struct Scope {
    ids: HashMap<String, NameId>,
    names: Vec<String>,
    bound: Vec<[bool; 2]>,
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
        self.bound.push([false; 2]);
        id
    }

    pub fn bind(&mut self, name: NameId, form: Form) {
        self.bound[name.0][form as usize] = true;
    }

    /// The number of `name` if a line above has bound it in this form.
    pub fn find(&self, name: &str, form: Form) -> Option<NameId> {
        self.ids.get(name).copied().filter(|id| self.bound[id.0][form as usize])
    }

    /// A bound name like `name`.
    pub fn suggest(&self, name: &str) -> Option<&str> {
        let bound = self.names.iter().zip(&self.bound).filter(|(_, forms)| forms.contains(&true));
        closest(name, bound.map(|(name, _)| name.as_str()))
    }

    pub fn into_names(self) -> Vec<String> {
        self.names
    }
}
