//! Threads, each with its stack.

use std::fmt::Write as _;

use super::WIDTH;
use super::text::{FAINT, GOOD, STRONG, count, fit};
use crate::report::{ThreadReport, ThreadsReport};

pub(super) fn draw(report: &ThreadsReport) -> String {
    let mut out = String::new();
    let threads = count(report.threads.len() as u64, "thread");
    let _ = writeln!(out, "{STRONG}{threads}{STRONG:#} at tick {}", report.ticks);
    for thread in &report.threads {
        one(&mut out, thread, report.ticks);
    }
    out
}

fn one(out: &mut String, thread: &ThreadReport, ticks: u64) {
    // 1. Its name and state; for a sleeping thread, what it sleeps on.
    let name: String = thread.name.chars().flat_map(char::escape_debug).collect();
    let waits =
        thread.wait_message.as_ref().map(|message| format!(" in {message:?}")).unwrap_or_default();
    let channel = thread.wait_channel.map(|channel| format!(" on {channel}")).unwrap_or_default();
    let state = &thread.state;
    let state = if state == "running" {
        format!("{GOOD}{state}{GOOD:#}")
    } else {
        format!("{state}{waits}{channel}")
    };
    let _ = writeln!(out, "\n{STRONG}{name}{STRONG:#}  tid {}  {state}", thread.tid);
    // 2. Only facts that apply.
    let mut facts = vec![format!("priority {}", thread.priority)];
    facts.extend(
        (thread.base_priority != thread.priority)
            .then(|| format!("own priority {}", thread.base_priority)),
    );
    facts.extend(thread.stack.map(|(low, high)| format!("stack {low}-{high}")));
    facts.extend(
        thread
            .wakes_at
            .map(|tick| format!("wakes in {}", count(tick.saturating_sub(ticks), "tick"))),
    );
    facts.extend(
        (thread.sx_held > 0).then(|| format!("owns {}", count(thread.sx_held.into(), "sx lock"))),
    );
    // 3. The facts, wrapped, and the backtrace.
    for line in fit(&facts.join(", "), WIDTH - 4) {
        let _ = writeln!(out, "  {FAINT}{line}{FAINT:#}");
    }
    backtrace(out, &thread.backtrace);
}

/// Calls, innermost first.
pub(super) fn backtrace(out: &mut String, frames: &[String]) {
    for (depth, frame) in frames.iter().enumerate() {
        for line in fit(&format!("#{depth:<2} {frame}"), WIDTH - 4) {
            let _ = writeln!(out, "  {line}");
        }
    }
}
