//! Whether everything in a guest's memory agrees: the host's independent witness.
//!
//! A check reads the kernel's structures (`maps`, `page_array`, and so on), which gives a
//! `Context`, and then runs rules over it. A rule is a function that adds a [`Finding`] for
//! everything that contradicts it. What somebody was changing when the guest was stopped, which its
//! lock tells, is left out and listed as [`Updating`]; what an operation that sleeps has half made
//! is allowed as long as some thread is in the middle of one.
//!
//! Nothing here believes a count or a pointer: lists are followed until they come to a place for
//! the second time, and nothing is allocated that memory itself does not bound.

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
mod page_state;
mod paging_queues;
mod rest;
mod runq;
mod sched;
mod sleepq;
mod stacks;
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

use self::context::Context;
use crate::error::InspectError;
use crate::source::Source;
use crate::view::View;

/// The rules, in the order in which a report tells them. Those about pages' states come when all
/// pages have been claimed.
const RULES: [fn(&Context<'_>); 24] = [
    map_list::check,
    map_entry::check,
    map_state::check,
    map_pool::check,
    object_rules::check,
    table_rules::check,
    translations::check,
    threads::check,
    runq::check,
    sleepq::check,
    callouts::check,
    waits::check,
    locks::check,
    stacks::check,
    handlers::check,
    constants::check,
    zones::check,
    free_lists::check,
    page_caches::check,
    paging_queues::check,
    meter::check,
    page_state::check,
    page_state::check_lost,
    zeros::check,
];

impl Report {
    /// Checks every invariant of the kernel's memory in `source`.
    ///
    /// # Errors
    /// When there is nothing to begin with: the kernel has not published its roots, or they cannot
    /// be read; see [`InspectError`]. What is wrong beyond that is in the report.
    pub fn of(source: &dyn Source) -> Result<Self, InspectError> {
        Self::through(&View::new(source)?)
    }

    /// As [`Report::of`], in one look that has begun.
    ///
    /// # Errors
    /// As there.
    pub fn through(view: &View<'_>) -> Result<Self, InspectError> {
        let ctx = Context::read(view)?;
        RULES.iter().for_each(|rule| rule(&ctx));
        Ok(ctx.into_report())
    }
}
