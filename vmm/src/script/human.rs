//! The result of a run, for people.
//!
//! Text carries ANSI styles. The caller strips them where they do not belong.

use std::fmt::Write as _;

use super::diagnostic::shortened;
use super::outcome::{Ending, Failure};
use super::source::Source;
use super::{Diagnostic, Panic};
use crate::style::{BAD, FAINT, STRONG};
use crate::text::plain;

/// The errors of a script that cannot run.
#[must_use]
pub fn explain_errors(errors: &[Diagnostic], source: &Source) -> String {
    let mut out = String::new();
    for error in errors {
        let _ = writeln!(out, "{BAD}error:{BAD:#} {}", error.render(source));
    }
    out
}

/// How a run ended, with everything that helps to understand a failure; empty when all held.
#[must_use]
pub fn explain(ending: &Ending, source: &Source, log: &str) -> String {
    match ending {
        Ending::Finished | Ending::ExpectedPanic(_) => String::new(),
        Ending::Failed(failure) => failure_text("failed", failure, source),
        Ending::Panicked(panic, failure) => {
            let mut out = failure_text("the guest panicked", failure, source);
            panic_text(&mut out, panic);
            log_text(&mut out, log);
            out
        }
        Ending::Script(error) => explain_errors(std::slice::from_ref(error), source),
        Ending::Timeout(failure) => {
            let mut out = failure_text("time limit", failure, source);
            log_text(&mut out, log);
            out
        }
        Ending::Interrupted => format!("{BAD}interrupted{BAD:#}\n"),
        Ending::Host(failure) => failure_text("this host cannot go on", failure, source),
        Ending::Broken(failure) => {
            let mut out = failure_text("a bug of vmkern", failure, source);
            log_text(&mut out, log);
            out
        }
    }
}

fn failure_text(what: &str, failure: &Failure, source: &Source) -> String {
    let mut out = String::new();
    let (first, last) = (failure.statement.line, failure.span.line);
    let width = last.to_string().len();
    let _ = writeln!(out, "{BAD}{what}:{BAD:#} {STRONG}{}:{last}{STRONG:#}", source.name());
    let _ = writeln!(out, "{FAINT}{:width$} |{FAINT:#}", "");
    for line in first..=last {
        let text = shortened(source.line(line));
        if line == first || line == last {
            let _ = writeln!(out, "{FAINT}{line:width$} |{FAINT:#} {text}");
        }
    }
    let _ = writeln!(out, "{FAINT}{:width$} |{FAINT:#}", "");
    let mut rows = vec![("expected", failure.expected.as_str()), ("got", failure.got.as_str())];
    rows.extend(failure.called.as_deref().map(|called| ("called", called)));
    rows.extend(failure.values.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let column = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        let value = plain(value);
        let _ = writeln!(out, "{:width$} {FAINT}={FAINT:#} {name:column$}  {value}", "");
    }
    out
}

fn panic_text(out: &mut String, panic: &Panic) {
    let _ = writeln!(out, "\n{}", panic.text.trim_end());
}

fn log_text(out: &mut String, log: &str) {
    const LINES: usize = 20;
    let lines: Vec<_> = log.lines().collect();
    if lines.is_empty() {
        return;
    }
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    let _ = writeln!(out, "\n{STRONG}The kernel's log, last {} lines:{STRONG:#}", tail.len());
    for line in tail {
        let _ = writeln!(out, "{FAINT}|{FAINT:#} {}", line.escape_debug());
    }
}
