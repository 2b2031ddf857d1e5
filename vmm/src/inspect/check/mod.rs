//! Whether everything in a guest's memory agrees: the host's independent witness.
//!
//! A check reads the kernel's structures (`maps`, `page_array`, and so on), which gives a `Context`, and then runs
//! rules over it. A rule is a function that adds a [`Finding`] for everything that contradicts it. What somebody was changing when
//! the guest was stopped, which its lock tells, is left out and listed as [`Updating`]; what an operation that sleeps
//! has half made is allowed as long as some thread is in the middle of one.
//!
//! Nothing here believes a count or a pointer: lists are followed until they come to a place for the second time, and
//! nothing is allocated that memory itself does not bound.

mod context;
mod finding;
mod map_entry;
mod map_index;
mod map_list;
mod map_pool;
mod map_state;
mod maps;
mod memory;
mod object_rules;
mod objects;
mod owners;
mod page_array;
mod rest;
mod table_rules;
mod tables;
#[cfg(test)]
mod tests;
mod translations;

pub use self::finding::{CheckStats, Finding, Report, Updating};

use self::context::Context;
use super::InspectError;
use super::view::View;
use crate::control::Guest;

/// The rules, in the order in which a report tells them.
const RULES: [fn(&Context<'_>); 7] = [
    map_list::check,
    map_entry::check,
    map_state::check,
    map_pool::check,
    object_rules::check,
    table_rules::check,
    translations::check,
];

/// Checks everything.
///
/// # Errors
/// When there is nothing to begin with: the kernel has not published its roots, or they cannot be read.
pub(super) fn check(view: &View<'_>) -> Result<Report, InspectError> {
    let ctx = Context::read(view)?;
    RULES.iter().for_each(|rule| rule(&ctx));
    Ok(ctx.into_report())
}

impl Guest {
    /// Checks every invariant of the kernel's memory from the outside; of a dead guest, as it was at its death.
    ///
    /// # Errors
    /// When there is nothing to begin with; see [`InspectError`]. What is wrong beyond that is in the report.
    pub fn check(&self) -> Result<Report, InspectError> {
        self.look(check)
    }
}
