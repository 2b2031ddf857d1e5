//! The differences between two looks.

use std::fmt::Write as _;

use super::WIDTH;
use super::maps::line;
use super::text::{BAD, FAINT, FLAGS_LEGEND, GOOD, STRONG, count, flags, span};
use crate::report::{Changes, DiffReport, PageChange, PteChange};

/// The most lines of one kind; the JSON object has them all.
const LINES: usize = 40;

pub(super) fn draw(report: &DiffReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{STRONG}from {} to {}{STRONG:#}", report.before, report.after);
    counters(&mut out, report);
    maps(&mut out, report);
    pages(&mut out, report);
    page_table(&mut out, report);
    out
}

fn heading(out: &mut String, what: &str, changed: bool) {
    let unchanged = if changed { "" } else { ": unchanged" };
    let _ = writeln!(out, "\n{STRONG}{what}{STRONG:#}{unchanged}");
}

/// Says how many changes there are besides those shown.
fn rest<T>(out: &mut String, changes: &Changes<T>) {
    let more = changes.changes.len().saturating_sub(LINES) as u64 + changes.left_out;
    if more > 0 {
        let _ = writeln!(out, "  and {more} more; --json has them");
    }
}

fn counters(out: &mut String, report: &DiffReport) {
    heading(out, "counters", !report.counters.is_empty());
    for change in &report.counters {
        let (before, after) = (change.before, change.after);
        let by = i128::from(after) - i128::from(before);
        let _ = writeln!(out, "  {:<22} {before:>12} -> {after:<12} {by:+}", change.counter);
    }
}

fn maps(out: &mut String, report: &DiffReport) {
    heading(out, "maps", !report.maps.is_empty());
    for map in &report.maps {
        let present = match map.present {
            "before" => " is gone",
            "after" => " is new",
            _ => "",
        };
        let _ = writeln!(out, "{}{present}", map.name);
        for change in map.entries.changes.iter().take(LINES) {
            if let Some(before) = &change.before {
                let _ = writeln!(out, "{BAD}-{BAD:#}{}", line(before, WIDTH - 1));
            }
            if let Some(after) = &change.after {
                let _ = writeln!(out, "{GOOD}+{GOOD:#}{}", line(after, WIDTH - 1));
            }
        }
        rest(out, &map.entries);
    }
}

fn pages(out: &mut String, report: &DiffReport) {
    heading(out, "pages", !report.page_changes.is_empty());
    for change in &report.page_changes {
        let _ = writeln!(
            out,
            "  {:>8}  {} -> {}",
            change.pages,
            change.before.words(),
            change.after.words()
        );
    }
    if report.pages.changes.len() <= LINES {
        for PageChange { pfn, pages, before, after } in &report.pages.changes {
            let last = pfn + pages - 1;
            let range =
                if *pages == 1 { format!("{pfn:#x}") } else { format!("{pfn:#x} to {last:#x}") };
            let _ = writeln!(out, "  {range:<24} {} -> {}", before.letter(), after.letter());
        }
    }
}

fn page_table(out: &mut String, report: &DiffReport) {
    heading(out, "page tables", !report.page_table.changes.is_empty());
    for change in report.page_table.changes.iter().take(LINES) {
        pte(out, change);
    }
    rest(out, &report.page_table);
    if report.accessed_or_modified > 0 {
        let entries = count(report.accessed_or_modified, "entry");
        let _ = writeln!(out, "  and in {entries} only what the CPU sets: accessed or modified");
    }
    if !report.page_table.changes.is_empty() {
        let _ = writeln!(out, "{FAINT}{FLAGS_LEGEND}{FAINT:#}");
    }
}

fn pte(out: &mut String, change: &PteChange) {
    let pages = format!("{} x {}", change.entries, span(change.span));
    let (mark, style, text) = match (change.before, change.after) {
        (None, Some(after)) => ("+", GOOD, flags(after.flags)),
        (Some(before), None) => ("-", BAD, flags(before.flags)),
        (Some(before), Some(after)) if before.flags == after.flags => {
            ("~", STRONG, format!("{} -> {}", before.phys, after.phys))
        }
        (Some(before), Some(after)) => {
            ("~", STRONG, format!("{} -> {}", flags(before.flags), flags(after.flags)))
        }
        (None, None) => return,
    };
    let _ = writeln!(out, "{style}{mark}{style:#} {} {pages:>10}  {text}", change.start);
}
