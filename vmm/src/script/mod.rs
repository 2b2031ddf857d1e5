//! The `.kmem` script language.
//!
//! [`parse`] reads a script and resolves every verb and name in it; its result can run. [`run`]
//! runs it against a [`Target`]: a guest ([`GuestTarget`]) or, in tests, a stand-in. [`RunReport`]
//! describes the end of a run as JSON, and [`explain`] for people.
//!
//! ```
//! use std::time::Duration;
//! use vmkern::Guest;
//! use vmkern::script::{Setup, Source, Status, Step, Stop, parse, run_script};
//!
//! let text = "p = kmem_malloc kmem_map 8K NOWAIT\nkmem_free kmem_map $p 8K\n";
//! let script = parse(&Source::new("pair.kmem", text)).map_err(|wrong| format!("{wrong:?}"))?;
//!
//! let setup = Setup { builder: Guest::builder(), seed: 0, console: None, pressure: None };
//! let stop = Stop::after(Duration::from_secs(60));
//! let mut steps = 0;
//! let session = run_script(&script, setup, &stop, &mut |_: &Step| steps += 1)?;
//! assert_eq!((session.ending.status(), steps), (Status::Ok, 2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Numbers are unsigned 64-bit. A time is a number of microseconds: `5ms` is 5000. `rand(LO,HI)`
//! includes both bounds.

mod advice;
mod after_fire;
mod ast;
mod complete;
mod compute;
mod diagnostic;
mod env;
mod eval;
mod expr;
mod fail;
mod fail_point;
mod guest;
mod guest_line;
mod human;
mod interpreter;
mod json;
mod judge;
mod lexer;
mod look;
mod names;
mod observe;
mod outcome;
mod parser;
mod perform;
mod pressed;
mod random;
mod read;
mod reference;
mod scope;
mod session;
mod show;
mod source;
mod started;
mod stop;
pub mod suite;
pub mod sweep;
mod target;
pub mod values;
mod verbs;
mod words;

#[cfg(test)]
mod tests;

pub use self::ast::{NameId, Runner, Script};
pub use self::complete::{Completion, complete};
pub use self::diagnostic::{Diagnostic, shortened};
pub use self::fail_point::{FailRequest, fail_sites};
pub use self::guest::GuestTarget;
pub use self::guest_line::GuestOptions;
pub use self::human::{explain, explain_errors};
pub use self::interpreter::{Interpreter, Progress, run};
pub use self::json::{
    EnvironmentReport, FailureReport, PanicReport, RunReport, RunStream, SCHEMA, Stat, StepReport,
};
pub use self::judge::Judging;
pub use self::look::Look;
pub use self::names::{MapField, map_name};
pub use self::observe::{Detail, Observer, Seen, TooMuch};
pub use self::outcome::{
    Ending, Failure, Status, StatusRow, Step, StepResult, number as show_number,
};
pub use self::parser::{parse, parse_with};
pub use self::pressed::{PressureRun, Thresholds};
pub use self::random::Random;
pub use self::read::read_script;
pub use self::reference::{LINES, Line, NAMES, NUMBERS, RESULTS};
pub use self::session::{
    Session, Setup, Standstill, Unlaunched, guest_status, launch_report, launch_status, run_script,
    run_script_then, stats,
};
pub use self::source::{NotUtf8, Source, Span};
pub use self::stop::Stop;
pub use self::target::{Panic, Reply, Swept, Target, TargetError, Wanted};
pub use self::verbs::{Build, FLAGS, Gives, Param, VERBS, Value, Verb};
// For the command `vmkern`, which is a crate of its own.
#[doc(hidden)]
pub use crate::spelling::closest;
#[doc(hidden)]
pub use crate::style::{BAD, FAINT, GOOD, STRONG};
