//! Pressure on memory: first what hurts, then the numbers.

use std::fmt::Write as _;

use super::WIDTH;
use super::table::{Align, Table};
use super::text::{STRONG, count, fit, size};
use crate::report::{PressureLineReport, PressureReport};

/// Threads that are listed.
const THREADS: usize = 16;

pub(super) fn draw(report: &PressureReport) -> String {
    let mut out = String::new();
    // 1. The diagnosis.
    for sentence in &report.diagnosis {
        for line in fit(sentence, WIDTH) {
            let _ = writeln!(out, "{STRONG}{line}{STRONG:#}");
        }
    }
    // 2. The numbers.
    let _ = writeln!(out, "\nstalled now: {}, {} after the boot", report.state, time(report.now));
    out.push_str(&lines(report));
    out.push('\n');
    out.push_str(&free(report));
    out.push('\n');
    out.push_str(&causes(report));
    if !report.threads.is_empty() {
        out.push('\n');
        out.push_str(&threads(report));
    }
    out.push('\n');
    out.push_str(&maps(report));
    out
}

/// Seconds with all digits that a time has, at least three.
fn time(micros: u64) -> String {
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    if rest.is_multiple_of(1000) {
        format!("{seconds}.{:03} s", rest / 1000)
    } else {
        format!("{seconds}.{rest:06} s")
    }
}

fn lines(report: &PressureReport) -> String {
    let mut table = Table::new(&[
        ("PRESSURE", Align::Left),
        ("10 S", Align::Right),
        ("60 S", Align::Right),
        ("TOTAL", Align::Right),
    ]);
    let mut line = |name: &str, line: &PressureLineReport| {
        let shares = [line.avg10, line.avg60].map(|share| format!("{share} %"));
        table.row([name.to_owned()].into_iter().chain(shares).chain([time(line.total)]));
    };
    line("some", &report.some);
    line("full", &report.full);
    table.draw(0)
}

/// The free pages among their thresholds, the highest first.
fn free(report: &PressureReport) -> String {
    let mut table = Table::new(&[("PAGES", Align::Right), ("OF FREE PAGES", Align::Left)]);
    let mut rows: Vec<(u64, &str)> =
        report.thresholds.iter().map(|limit| (limit.pages, limit.name)).collect();
    let at = rows.iter().position(|(pages, ..)| *pages <= report.free_pages);
    rows.insert(at.unwrap_or(rows.len()), (report.free_pages, "<- free now"));
    table.row([report.pages.to_string(), "v_page_count".to_owned()]);
    let away =
        [("seized by the host", report.seized_pages), ("in the balloon", report.balloon_pages)];
    for (holder, pages) in away.into_iter().filter(|(_, pages)| *pages != 0) {
        table.row([pages.to_string(), holder.to_owned()]);
    }
    for (pages, name) in rows {
        table.row([pages.to_string(), name.to_owned()]);
    }
    table.draw(0)
}

fn causes(report: &PressureReport) -> String {
    let columns = [("CAUSE", Align::Left), ("ASLEEP", Align::Right), ("STALLED", Align::Right)];
    let mut table = Table::new(&columns);
    for cause in &report.causes {
        table.row([cause.cause.to_owned(), cause.sleepers.to_string(), time(cause.micros)]);
    }
    table.draw(0)
}

fn threads(report: &PressureReport) -> String {
    let mut table =
        Table::new(&[("THREAD", Align::Left), ("STALLED", Align::Right), ("NOW", Align::Left)]);
    for thread in report.threads.iter().take(THREADS) {
        let since = thread.for_micros.unwrap_or(0);
        let map = thread.map.as_ref().map(|map| format!(" of {map}")).unwrap_or_default();
        let now = thread.now.map(|now| format!("{now}{map} for {}", time(since)));
        table.row([thread.name.clone(), time(thread.micros), now.unwrap_or_default()]);
    }
    let mut out = table.draw(0);
    let left_out = report.threads.len().saturating_sub(THREADS) as u64;
    if left_out > 0 {
        let _ = writeln!(out, "and {} more", count(left_out, "thread"));
    }
    out
}

fn maps(report: &PressureReport) -> String {
    let mut table = Table::new(&[
        ("MAP", Align::Left),
        ("FREE", Align::Right),
        ("HOLES", Align::Right),
        ("LARGEST", Align::Right),
        ("WAITING", Align::Right),
    ]);
    for map in &report.maps {
        let numbers = [size(map.free_bytes), map.holes.to_string(), size(map.largest_hole)];
        let waiting = map.waiters.to_string();
        table.row([map.name.clone()].into_iter().chain(numbers).chain([waiting]));
    }
    table.draw(0)
}
