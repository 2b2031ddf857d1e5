//! Verifies every structure in a guest's memory: the host's independent witness.
//!
//! A check reads the kernel's structures (`maps`, `page_array`, and so on) into a `Context`, and
//! then checks its rules. A rule is a row of the table of its file ([`Rule`]); the file's function
//! adds a [`Finding`] for everything that contradicts it. A structure whose lock was held when the
//! guest was stopped is left out and listed as [`Updating`]. The half-made state of an operation
//! that sleeps is allowed while any thread is in the middle of an operation.
//!
//! No count or pointer is trusted: a list is followed until it reaches a place for the second time,
//! and every allocation is bounded by the memory that the source holds.

mod balloon;
mod callouts;
mod constants;
mod context;
mod finding;
mod free_lists;
mod handlers;
mod in_flight;
mod locks;
mod map_entry;
mod map_index;
mod map_list;
mod map_pool;
mod map_state;
mod maps;
mod memory;
mod meter;
mod object_rules;
mod objects;
mod owners;
mod page_array;
mod page_caches;
mod page_list;
mod page_state;
mod paging_queues;
mod rest;
mod rule;
mod runq;
mod sched;
mod seized;
mod sleepq;
mod stacks;
mod stalls;
mod table_rules;
mod tables;
#[cfg(test)]
mod tests;
mod threads;
mod translations;
mod waits;
mod zeros;
mod zones;

pub use self::finding::{CheckStats, Finding, Report, Updating};

pub use self::rule::{Group, Rule};

use self::context::Context;
use self::rule::Part;
use crate::error::InspectError;
use crate::source::Source;
use crate::view::View;

/// The tables of rules, in the order of a report: first the rules that are checked while structures
/// are read. Those about pages' states come when all pages have been claimed.
static PARTS: [&Part; 33] = [
    &finding::PART,
    &page_array::PART,
    &owners::PART,
    &map_index::PART,
    &objects::PART,
    &tables::PART,
    &sched::PART,
    &map_list::PART,
    &map_entry::PART,
    &map_state::PART,
    &map_pool::PART,
    &object_rules::PART,
    &table_rules::PART,
    &translations::PART,
    &threads::PART,
    &runq::PART,
    &sleepq::PART,
    &callouts::PART,
    &waits::PART,
    &stalls::PART,
    &locks::PART,
    &stacks::PART,
    &handlers::PART,
    &constants::PART,
    &zones::PART,
    &free_lists::PART,
    &page_caches::PART,
    &seized::PART,
    &balloon::PART,
    &paging_queues::PART,
    &meter::PART,
    &page_state::PART,
    &zeros::PART,
];

/// All rules, by group.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    let all = || PARTS.iter().flat_map(|part| part.rules.iter().copied());
    Group::ALL.into_iter().flat_map(move |group| all().filter(move |rule| rule.group == group))
}

/// The rule that findings call `id`.
#[must_use]
pub fn rule(id: &str) -> Option<&'static Rule> {
    rules().find(|rule| rule.id == id)
}

/// The tables of all rules for the book, in Markdown.
#[must_use]
pub fn book() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        let gap = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!("{gap}### {}\n\n", group.title()));
        text.push_str("| rule | holds when |\n|---|---|\n");
        for rule in rules().filter(|rule| rule.group == group) {
            text.push_str(&format!("| `{}` | {} |\n", rule.id, rule.says));
        }
    }
    text
}

impl Report {
    /// Checks every invariant of the kernel's memory in `source`.
    ///
    /// # Errors
    /// When the kernel has not published its roots, or they cannot be read; see [`InspectError`].
    /// Everything else that is wrong is in the report.
    pub fn of(source: &dyn Source) -> Result<Self, InspectError> {
        Self::through(&View::new(source)?)
    }

    /// As [`Report::of`], with an existing view.
    ///
    /// # Errors
    /// As there.
    pub fn through(view: &View<'_>) -> Result<Self, InspectError> {
        Self::run(view, None)
    }

    /// As [`Report::through`], for these rules only. Structures that cannot be read are always
    /// reported, because no rule can be checked for them.
    ///
    /// # Errors
    /// As there.
    pub fn only(view: &View<'_>, rules: &[&'static Rule]) -> Result<Self, InspectError> {
        Self::run(view, Some(rules.to_vec()))
    }

    fn run(view: &View<'_>, only: Option<Vec<&'static Rule>>) -> Result<Self, InspectError> {
        let ctx = Context::read(view, only)?;
        PARTS.iter().filter_map(|part| part.check).for_each(|check| check(&ctx));
        Ok(ctx.into_report())
    }
}
