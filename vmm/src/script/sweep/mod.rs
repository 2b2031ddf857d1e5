//! Sweeps: every allocation failure that a set of scripts can meet, one in each run.
//!
//! A *point* is one hit of one fail site: of the boot, or of a script. Each point is visited by a
//! run of its own, in a fresh guest that is armed before its first instruction, in virtual time on
//! one CPU, where the n-th hit is the same hit in each run.
//!
//! 1. The *survey* of a script is its fault-free run. It counts the hits of every site at once, by
//!    programmes that never fail. It also takes the time, and the counts at the end.
//! 2. Each visit is a *shot* (`point`). Up to the fire it is the fault-free run and everything is
//!    judged as usual; afterwards the script goes on without being judged
//!    (`after_fire`), and each result is compared with the documented ones (`rows`).
//! 3. At the end of a run that did not panic, the sweep frees what the script still holds
//!    (`holdings`), and the counts must be those of the fault-free run at the same end
//!    (`ledger`).
//!
//! The boot is the same for each script with the same guest, so it is swept once for each guest, as
//! an item of its own; the hits of a script count from its first statement on.
//!
//! With [`Mode::Stacks`] each distinct call stack fails once in the whole sweep, in the first item
//! that reaches it. The surveys run one after the other in the order of the items, and each notes
//! the stacks that no earlier item has reached. After that the visits are independent of each
//! other: a visit knows the stacks of all earlier items, and those that its own site has failed.

mod campaign;
mod holdings;
mod ledger;
mod point;
mod rows;
#[cfg(test)]
mod tests;
mod watched;

use std::collections::BTreeMap;

use serde::Serialize;
use vmkern_abi::fail::FailSite;

pub use self::campaign::{Campaign, Item, Left, Load, Watcher, sweep};
pub use self::rows::{BOOT_PANICS, Ends, OpClass, PANICS, SITES, SiteRow, ends_of};

/// Which hits fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each hit, up to and including this number in each item.
    Every(u64),
    /// The first hit of each call stack.
    Stacks,
}

/// Whether each run ends with a check of everything in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checking {
    /// It does.
    Full,
    /// It does not.
    Off,
}

/// Something that no row documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unexpected {
    /// Which hit failed, counted from the first instruction of the kernel.
    pub hit: u64,
    /// The kind: `result`, `panic`, `no-progress`, `asleep`, `leak`, `check`, `unlike`, `broken`.
    pub kind: &'static str,
    /// The line of the statement, if it was one.
    pub line: Option<usize>,
    /// What was found, in one line.
    pub what: String,
    /// The calls at the fire, innermost first.
    pub failed_at: Vec<String>,
    /// Where it showed: the calls of a crash or of threads, or a check's findings.
    pub showed_at: Vec<String>,
    /// The command that repeats it.
    pub repeat: String,
}

/// The visits of one site in one item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SiteReport {
    /// The item.
    pub script: String,
    /// The site.
    pub site: &'static str,
    /// Points visited.
    pub points: u64,
    /// Points that there are, as far as the survey knows.
    pub known: u64,
    /// Visits by the result of the operation in which the site fired, or of the boot.
    pub outcomes: BTreeMap<String, u64>,
    /// What was not documented.
    pub unexpected: Vec<Unexpected>,
}

/// The sites that a sweep of `all` visits: those that can fail.
#[must_use]
pub fn all_sites() -> Vec<FailSite> {
    FailSite::ALL.into_iter().filter(|site| site.returns().value(None).is_some()).collect()
}
