//! The path from a virtual address to its page.

use std::fmt::Write as _;

use super::page;
use super::text::{BAD, GOOD, STRONG, count, fit, size};
use crate::report::{ObjectBrief, StepReport, VtopReport, bits, words};

pub(super) fn draw(report: &VtopReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{STRONG}{}{STRONG:#}  {}", report.va, report.region.name());
    if !report.canonical {
        let _ =
            writeln!(out, "  {BAD}not canonical{BAD:#}: bits 48 to 63 are not all equal to bit 47");
    }
    for (depth, step) in report.steps.iter().enumerate() {
        level(&mut out, depth, step);
    }
    let depth = " ".repeat(2 * report.steps.len());
    match &report.mapping {
        Some(mapping) => {
            let granted: Vec<_> = words(mapping.flags).collect();
            let _ = writeln!(
                out,
                "  {depth}{GOOD}= physical {}{GOOD:#}, in a page of {}",
                mapping.phys,
                size(mapping.span)
            );
            let _ = writeln!(out, "  {depth}  the whole path grants: {}", permissions(&granted));
        }
        None => nowhere(&mut out, &depth, report),
    }
    out.push('\n');
    behind(&mut out, report);
    out
}

/// Why the walk ends without a page.
fn nowhere(out: &mut String, depth: &str, report: &VtopReport) {
    let why = match (report.reserved, &report.unreadable) {
        (Some(reserved), _) => {
            format!("the CPU refuses the entry: reserved bits set: {}", bits(reserved.0))
        }
        (None, Some(problem)) => format!("the next table cannot be read: {problem}"),
        (None, None) => "nothing is mapped".to_owned(),
    };
    for line in fit(&format!("= {why}"), 76_usize.saturating_sub(depth.len()).max(30)) {
        let _ = writeln!(out, "  {depth}{BAD}{line}{BAD:#}");
    }
}

fn level(out: &mut String, depth: usize, step: &StepReport) {
    let indent = " ".repeat(2 * depth);
    let slot = format!("{}[{}]", step.level, step.index);
    let leads = step.leads_to.map_or("nothing".to_owned(), |to| to.to_string());
    let _ = writeln!(
        out,
        "  {indent}{STRONG}{slot}{STRONG:#} at {} = {} -> {leads}",
        step.at, step.bits
    );
    let flags: Vec<_> = words(step.flags).collect();
    let flags = if flags.is_empty() { "no flags".to_owned() } else { flags.join(" ") };
    for line in fit(&flags, 72 - 2 * depth) {
        let _ = writeln!(out, "  {indent}  {line}");
    }
}

/// What code may do there, in words.
fn permissions(granted: &[&str]) -> String {
    let has = |word: &str| granted.contains(&word);
    let mut words = vec!["read"];
    words.extend(has("writable").then_some("write"));
    words.extend((!has("no-execute")).then_some("execute"));
    let who = if has("user") { "at any CPL" } else { "below CPL3 only" };
    format!("{} ({who})", words.join(", "))
}

/// Entry, object and page.
fn behind(out: &mut String, report: &VtopReport) {
    match (&report.map, &report.entry) {
        (Some(map), Some(entry)) => {
            let _ = writeln!(out, "map       {map}\nentry     {}", page::entry_words(entry));
        }
        _ => out.push_str("entry     none: no map has anything there\n"),
    }
    match &report.object {
        Some(object) => {
            let _ = writeln!(out, "object    {}", object_words(object));
        }
        None => out.push_str("object    none\n"),
    }
    match (report.pfn, &report.page) {
        (Some(pfn), Some(state)) => {
            let _ = writeln!(out, "page      {pfn:#x} ({pfn})");
            out.push_str(&page::lines(state));
        }
        (Some(pfn), None) => {
            let _ = writeln!(out, "page      {pfn:#x} ({pfn}), not in the page array");
        }
        (None, _) => out.push_str("page      none\n"),
    }
}

fn object_words(object: &ObjectBrief) -> String {
    let ObjectBrief { name, kind, references, resident, .. } = object;
    let (references, resident) =
        (count((*references).into(), "reference"), count(*resident, "page"));
    format!("{name}, {kind}, {references}, {resident} resident")
}
