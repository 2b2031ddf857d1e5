//! The page tables in runs.

use std::fmt::Write as _;

use super::text::{FAINT, FLAGS_LEGEND, STRONG, count, flags, size, span};
use crate::report::{PageTableReport, RunReport};

pub(super) fn draw(report: &PageTableReport) -> String {
    let mut out = String::new();
    let tables = report.tables;
    let _ = writeln!(
        out,
        "{STRONG}root {}{STRONG:#}, {} looked into: {} PML4, {} PDPT, {} PD, {} PT",
        report.root,
        count(tables.total(), "table"),
        tables.pml4,
        tables.pdpt,
        tables.pd,
        tables.pt,
    );
    let mapped = count(report.entries, "entry");
    let runs = count(report.runs.len() as u64 + report.left_out, "run");
    let _ = writeln!(out, "{mapped} mapping {}, in {runs}", size(report.bytes));
    for group in report.runs.chunk_by(|a, b| a.region == b.region) {
        let _ = writeln!(out, "\n{STRONG}{}{STRONG:#}", group[0].region.name());
        for run in group {
            let _ = writeln!(out, " {}", line(run));
        }
    }
    if report.left_out > 0 {
        let _ = writeln!(out, "and {} more runs", report.left_out);
    }
    let _ = writeln!(out, "\n{FAINT}{FLAGS_LEGEND}{FAINT:#}");
    out
}

fn line(run: &RunReport) -> String {
    let pages = format!("{} x {}", run.entries, span(run.span));
    let phys = if run.contiguous { run.phys.to_string() } else { "scattered".to_owned() };
    let end = run.last.0.checked_add(1).map_or("2^64".to_owned(), |end| format!("{end:#x}"));
    let range = format!("{}-{end}", run.start);
    format!("{range:<37}  {pages:>11}  -> {phys:<12}  {}", flags(run.flags))
}
