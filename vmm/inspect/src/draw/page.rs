//! One page.

use std::fmt::Write as _;

use super::text::{FAINT, STRONG, count, fit, flags, span};
use crate::report::{EntryReport, MappingReport, ObjectRef, PageReport, PageState};

pub(super) fn draw(report: &PageReport) -> String {
    let mut out = String::new();
    let (pfn, phys) = (report.pfn, report.phys);
    let _ = writeln!(
        out,
        "{STRONG}page {pfn:#x}{STRONG:#} ({pfn}), physical {phys}: {}",
        report.kind.words()
    );
    match &report.state {
        Some(state) => out.push_str(&lines(state)),
        None => out.push_str("  the page array has no structure for it\n"),
    }
    let mappings = count(report.mappings.len() as u64 + report.left_out, "virtual address");
    let mappings = mappings.replace("addresss", "addresses");
    let _ = writeln!(out, "\n{STRONG}{mappings}{STRONG:#}");
    for mapping in &report.mappings {
        mapped(&mut out, mapping);
    }
    if report.left_out > 0 {
        let _ = writeln!(out, "  and {} more", report.left_out);
    }
    let _ = writeln!(out, "{FAINT}{}{FAINT:#}", super::text::FLAGS_LEGEND);
    out
}

fn mapped(out: &mut String, mapping: &MappingReport) {
    let _ = writeln!(
        out,
        "  {}  {}  in a page of {}, entry at {}",
        mapping.va,
        flags(mapping.flags),
        span(mapping.span),
        mapping.pte_at,
    );
    if let (Some(map), Some(entry)) = (&mapping.map, &mapping.entry) {
        let _ = writeln!(out, "      in {map}: {}", entry_words(entry));
    }
}

/// An entry in words.
pub(super) fn entry_words(entry: &EntryReport) -> String {
    let pages = count(entry.pages(), "page");
    let wired = if entry.wired > 0 { format!(", wired {}", entry.wired) } else { String::new() };
    format!("{}-{}, {pages}, {}{wired}", entry.start, entry.end, entry.protection)
}

/// What a page's structure says.
pub(super) fn lines(state: &PageState) -> String {
    // 1. What the page's fields say, in words.
    let mut out = String::new();
    let names: Vec<_> = state
        .flags
        .iter_names()
        .map(|(n, _)| n)
        .chain(state.oflags.iter_names().map(|(n, _)| n))
        .collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(" ").to_lowercase() };
    let object = match &state.object {
        ObjectRef::None => "none".to_owned(),
        object => format!("{object}, page {}", state.pindex),
    };
    // 2. A row each, for a free block's head first.
    let mut rows = vec![
        ("object", object),
        (
            "wired",
            format!(
                "{}; held {}; queue {}",
                count(state.wired.into(), "time"),
                state.held,
                state.queue
            ),
        ),
        ("flags", names),
        ("contents", format!("valid {}, dirty {}", state.valid, state.dirty)),
        ("vm_page", state.at.to_string()),
    ];
    if let Some(order) = state.heads_block_of_order {
        rows.insert(
            0,
            (
                "heads",
                format!("a free block of order {order}: {}", count(1 << order.min(63), "page")),
            ),
        );
    }
    // 3. Long values continue on the next lines.
    for (name, value) in rows {
        for (number, line) in fit(&value, 66).into_iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let _ = writeln!(out, "  {name:<9} {line}");
        }
    }
    out
}
