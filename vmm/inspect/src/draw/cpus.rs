//! CPUs with their registers.

use std::fmt::Write as _;

use super::text::STRONG;
use super::threads::backtrace;
use crate::report::{CachedPages, CpusReport};

pub(super) fn draw(report: &CpusReport) -> String {
    let mut out = String::new();
    for cpu in &report.cpus {
        let cpl = cpu.cpl.map(|cpl| format!(" at CPL{cpl}")).unwrap_or_default();
        let thread = cpu
            .thread
            .as_ref()
            .map(|thread| format!(", thread {}", thread.escape_debug()))
            .unwrap_or_default();
        let _ = writeln!(out, "{STRONG}cpu {}{STRONG:#}  {}{cpl}{thread}", cpu.cpu, cpu.state);
        if let Some(CachedPages { pages, max }) = cpu.page_cache {
            let _ = writeln!(out, "  keeps {} of {max} free pages for itself", pages);
        }
        for row in cpu.registers.chunks(3) {
            let cells: Vec<_> =
                row.iter().map(|r| format!("{:<6} {:016x}", r.name, r.value.0)).collect();
            let _ = writeln!(out, "  {}", cells.join("  "));
        }
        backtrace(&mut out, &cpu.backtrace);
    }
    out
}
