//! Checking a guest: whether all of its kernel's structures agree with each other and with the
//! hardware's page tables.
//!
//! A check never stops at the first thing that is wrong: the [`Report`] holds each [`Finding`] with
//! the rule that is broken and the place.
//!
//! ```
//! use vmkern::check;
//! use vmkern::prelude::*;
//!
//! let guest = Guest::builder().launch()?;
//! let report = guest.check()?;
//! assert!(report.is_clean(), "{report}");
//!
//! let list = check::rule("map-list").expect("there is such a rule");
//! assert!(guest.check_only(&[list])?.is_clean());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Report::of`] checks a [`Dump`](crate::dump::Dump), or any other
//! [`Source`](crate::inspect::Source).

#[doc(hidden)]
pub use vmkern_inspect::check::book;
pub use vmkern_inspect::check::{CheckStats, Finding, Group, Report, Rule, Updating, rule, rules};
