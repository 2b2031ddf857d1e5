//! Physical memory as a picture.

use std::fmt::Write as _;

use super::table::{Align, Table};
use super::text::{BAD, FAINT, GOOD, STRONG, count, gauge, pages_size, percent};
use crate::report::{Hex, PagesReport, Picture, Use, UseCount, row_address};

/// Columns of a gauge.
const GAUGE: u64 = 16;

pub(super) fn draw(report: &PagesReport) -> String {
    let mut out = String::new();
    let managed: u64 = report.segments.iter().map(|segment| segment.end - segment.start).sum();
    let _ = writeln!(
        out,
        "{STRONG}{} of RAM{STRONG:#}, {}, {managed} of them managed, in {}\n",
        pages_size(report.ram_pages),
        count(report.ram_pages, "page"),
        count(report.segments.len() as u64, "segment"),
    );
    out.push_str(&uses(&report.uses, report.ram_pages));
    picture(&mut out, &report.picture);
    free_lists(&mut out, report);
    page_caches(&mut out, report);
    counters(&mut out, report);
    out
}

/// A line for each use that at least one page has.
pub(super) fn uses(uses: &[UseCount], whole: u64) -> String {
    let mut out = String::new();
    for UseCount { kind, pages } in
        uses.iter().filter(|count| count.pages > 0 && count.kind != Use::Hole)
    {
        let gauge = gauge(*pages, whole, GAUGE);
        let share = percent(*pages, whole);
        let letter = kind.letter();
        let _ = writeln!(
            out,
            "  {letter}  {:<37} {pages:>9} {share:>7} {GOOD}{gauge}{GOOD:#}",
            kind.words()
        );
    }
    out
}

fn picture(out: &mut String, picture: &Picture) {
    let cell = count(picture.pages_per_cell, "page");
    let _ = writeln!(
        out,
        "\nA cell is {cell} ({}). Upper case: the whole cell; lower case: a part.",
        pages_size(picture.pages_per_cell)
    );
    let rows = picture.rows.len();
    let width = row_address(picture, rows.saturating_sub(1)).to_string().len();
    let mut row = 0;
    while row < rows {
        let text = &picture.rows[row];
        let line = |at: Hex| format!("{at:>width$}");
        let _ = writeln!(
            out,
            "{} {FAINT}|{FAINT:#}{text}{FAINT}|{FAINT:#}",
            line(row_address(picture, row))
        );
        let alike = picture.rows[row + 1..].iter().take_while(|next| *next == text).count();
        if alike > 1 {
            let _ = writeln!(out, "{:>width$} {FAINT}|{} more rows like this{FAINT:#}", "*", alike);
            row += alike;
        }
        row += 1;
    }
}

fn free_lists(out: &mut String, report: &PagesReport) {
    if report.free_lists.is_empty() {
        return;
    }
    let sizes =
        ["4K", "8K", "16K", "32K", "64K", "128K", "256K", "512K", "1M", "2M", "4M", "8M", "16M"];
    let sizes: String = sizes.iter().map(|size| format!("{size:>5}")).collect();
    let _ = writeln!(out, "\n{STRONG}free blocks of{STRONG:#}{sizes}");
    for list in &report.free_lists {
        let blocks: String =
            list.blocks.iter().map(|blocks| format!("{:>5}", short(*blocks))).collect();
        let _ = writeln!(out, "{:>14}{blocks}", list.list);
    }
}

/// CPUs' caches of free pages, where there are any.
fn page_caches(out: &mut String, report: &PagesReport) {
    if report.page_cache_floor == 0 {
        return;
    }
    let mut table = Table::new(&[
        ("PAGE CACHES", Align::Left),
        ("PAGES", Align::Right),
        ("ALLOCS", Align::Right),
        ("FREES", Align::Right),
        ("REFILLS", Align::Right),
        ("SPILLS", Align::Right),
        ("DRAINED", Align::Right),
    ]);
    for cache in &report.page_caches {
        let numbers =
            [cache.pages, cache.allocs, cache.frees, cache.refills, cache.spills, cache.drained];
        let cells = numbers.map(|number| number.to_string());
        table.row(std::iter::once(format!("cpu {}", cache.cpu)).chain(cells));
    }
    let floor = report.page_cache_floor;
    let _ = writeln!(
        out,
        "\n{}{FAINT}used while more than {floor} pages are free{FAINT:#}",
        table.draw(0)
    );
}

/// A number in at most four columns; zero is a dash.
fn short(number: u64) -> String {
    match number {
        0 => "-".to_owned(),
        number if number < 10_000 => number.to_string(),
        number if number < 1_000_000 => format!("{}k", number / 1000),
        number if number < 1_000_000_000 => format!("{}M", number / 1_000_000),
        _ => "many".to_owned(),
    }
}

fn counters(out: &mut String, report: &PagesReport) {
    out.push('\n');
    for counted in &report.counters {
        let (name, says, found) = (counted.counter, counted.says, counted.found);
        let _ = if says == found {
            writeln!(out, "  {name:<18} {says:>9}  {GOOD}as found{GOOD:#}")
        } else {
            writeln!(out, "  {name:<18} {says:>9}  {BAD}but {found} were found{BAD:#}")
        };
    }
}
