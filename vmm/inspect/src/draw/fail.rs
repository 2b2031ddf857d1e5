//! Fail points.

use std::fmt::Write as _;

use super::WIDTH;
use super::table::{Align, Table};
use super::text::{STRONG, fit};
use super::threads::backtrace;
use crate::report::{FailPointReport, FailReport};

/// Characters of a programme in a line.
const PROGRAMME: usize = 34;

pub(super) fn draw(report: &FailReport) -> String {
    // 1. A row for each site. A long programme goes on below.
    let mut table = Table::new(&[
        ("SITE", Align::Left),
        ("HITS", Align::Right),
        ("FIRES", Align::Right),
        ("PROGRAMME", Align::Left),
    ]);
    for site in &report.sites {
        let mut pieces = pieces(programme(site)).into_iter();
        let first = pieces.next().unwrap_or_default();
        table.row([site.site.to_owned(), site.hits.to_string(), site.fires.to_string(), first]);
        for piece in pieces {
            table.row([String::new(), String::new(), String::new(), piece]);
        }
    }
    let mut out = table.draw(0);
    // 2. What failing means.
    let _ = writeln!(out, "\n{STRONG}what failing there means{STRONG:#}");
    for site in &report.sites {
        for line in fit(&format!("{}: {}", site.site, site.effect), WIDTH - 4) {
            let _ = writeln!(out, "  {line}");
        }
    }
    // 3. Where it failed last.
    let Some(last) = &report.last else {
        let _ = writeln!(out, "\nnothing has failed there yet");
        return out;
    };
    let thread =
        last.thread.map_or("before there were threads".to_owned(), |tid| format!("tid {tid}"));
    let _ = writeln!(
        out,
        "\n{STRONG}last failure{STRONG:#}  {}, hit {}, {thread}",
        last.site, last.hit
    );
    backtrace(&mut out, &last.backtrace);
    out
}

/// A programme in pieces that a cell has room for, broken between terms where possible.
fn pieces(programme: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (number, term) in programme.split("->").enumerate() {
        let term: Vec<char> = if number == 0 {
            term.chars().collect()
        } else {
            format!("->{term}").chars().collect()
        };
        for part in term.chunks(PROGRAMME) {
            match pieces.last_mut() {
                Some(piece) if piece.len() + part.len() <= PROGRAMME => piece.extend(part),
                _ => pieces.push(part.iter().collect()),
            }
        }
    }
    pieces
}

/// The programme in a cell.
fn programme(site: &FailPointReport) -> &str {
    match (&site.programme, site.armed) {
        (Some(programme), _) => programme,
        (None, true) => "not a programme",
        (None, false) => "-",
    }
}
