//! A guest at a glance.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use super::table::{Align, Table};
use super::text::{BAD, STRONG, fit, gauge, percent, size};
use crate::report::{MapLine, SummaryReport};

/// The most telling counters, in the order in which they are shown.
const COUNTERS: [&str; 12] = [
    "v_page_count",
    "v_free_count",
    "v_wire_count",
    "v_active_count",
    "v_inactive_count",
    "v_free_reserved",
    "v_faults",
    "v_zfod",
    "v_pdwakeups",
    "lowmem_events",
    "ticks",
    "hz",
];

pub(super) fn draw(report: &SummaryReport) -> String {
    // 1. The machine, and why it stopped.
    let mut out = String::new();
    let ram: u64 = report.ram.iter().map(|range| range.end.0 - range.start.0).sum();
    let abi = report.abi.map(|abi| format!(", ABI version {abi}")).unwrap_or_default();
    let _ = writeln!(out, "{STRONG}{} of RAM{STRONG:#}{abi}", size(ram));
    if let Some(panic) = &report.panic {
        for (number, line) in fit(panic, 68).iter().enumerate() {
            let head = if number == 0 { "panic" } else { "" };
            let _ = writeln!(out, "{BAD}{head:<9}{BAD:#} {line}");
        }
    }
    // 2. CPUs, threads, and the locks that are held.
    facts(&mut out, "cpus", &report.cpus);
    facts(&mut out, "threads", &report.threads);
    facts(&mut out, "waiting", &report.waits);
    let locks: Vec<_> = report
        .locks
        .iter()
        .map(|lock| format!("{} by thread {}", lock.lock, lock.thread))
        .collect();
    if !locks.is_empty() {
        let _ = writeln!(out, "locked    {}", fit(&locks.join(", "), 68).join("\n          "));
    }
    // 3. What memory is used for, the maps, the counters.
    let tables = report.tables;
    let _ = writeln!(out, "objects   {}; page tables {}\n", report.objects, tables.total());
    out.push_str(&super::pages::uses(&report.uses, ram >> 12));
    out.push('\n');
    maps(&mut out, &report.maps);
    out.push('\n');
    counters(&mut out, &report.counters);
    out
}

/// A line of names, each with its count.
fn facts<K: Display>(out: &mut String, name: &str, facts: &BTreeMap<K, u64>) {
    if facts.is_empty() {
        return;
    }
    let text: Vec<_> = facts.iter().map(|(what, number)| format!("{number} {what}")).collect();
    for (number, line) in fit(&text.join(", "), 68).iter().enumerate() {
        let head = if number == 0 { name } else { "" };
        let _ = writeln!(out, "{head:<9} {line}");
    }
}

fn maps(out: &mut String, maps: &[MapLine]) {
    let mut table = Table::new(&[
        ("MAP", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Right),
        ("", Align::Left),
        ("", Align::Right),
        ("ENTRIES", Align::Right),
        ("FRAG", Align::Right),
    ]);
    for map in maps {
        let indent = "  ".repeat(usize::try_from(map.depth.min(3)).unwrap_or(0));
        table.row([
            format!("{indent}{}", map.name),
            size(map.bytes),
            size(map.used_bytes),
            gauge(map.used_bytes, map.bytes, 10),
            percent(map.used_bytes, map.bytes),
            map.entries.to_string(),
            format!("{} %", map.fragmentation),
        ]);
    }
    out.push_str(&table.draw(0));
}

fn counters(out: &mut String, counters: &BTreeMap<&'static str, u64>) {
    let shown: Vec<_> =
        COUNTERS.iter().filter_map(|name| Some((name, counters.get(name)?))).collect();
    for row in shown.chunks(3) {
        let cells: Vec<_> =
            row.iter().map(|(name, value)| format!("{name:<16} {value:>8}")).collect();
        let _ = writeln!(out, "{}", cells.join(" "));
    }
}
