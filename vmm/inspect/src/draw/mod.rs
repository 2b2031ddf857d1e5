//! Drawings: reports as text that can be read at a glance.
//!
//! Plain ASCII, at most [`WIDTH`] columns, made only from reports ([`super::report`]). The text
//! carries ANSI styles; the code that prints it strips them where they do not belong.

mod cpus;
mod diff;
mod fail;
mod locks;
mod maps;
mod objects;
mod page;
mod pages;
mod pagetable;
mod pressure;
mod summary;
mod table;
mod text;
mod threads;
mod vtop;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use self::text::{BAD, fit};
use super::report::{Body, Damage, Inspection};

/// Columns of a line.
pub const WIDTH: usize = 80;

/// The report as text.
#[must_use]
pub fn draw(inspection: &Inspection) -> String {
    let mut out = match &inspection.body {
        Body::Summary(report) => summary::draw(report),
        Body::Maps(report) => maps::draw(report),
        Body::Map(report) => maps::draw_entries(report),
        Body::Objects(report) => objects::draw(report),
        Body::Pages(report) => pages::draw(report),
        Body::Page(report) => page::draw(report),
        Body::Vtop(report) => vtop::draw(report),
        Body::PageTable(report) => pagetable::draw(report),
        Body::Threads(report) => threads::draw(report),
        Body::Cpus(report) => cpus::draw(report),
        Body::Locks(report) => locks::draw(report),
        Body::Fail(report) => fail::draw(report),
        Body::Pressure(report) => pressure::draw(report),
        Body::Diff(report) => diff::draw(report),
    };
    damage(&mut out, &inspection.damage, inspection.damage_left_out);
    out
}

/// Appends what could not be read, below everything else.
fn damage(out: &mut String, damage: &[Damage], left_out: u64) {
    if damage.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{BAD}damaged:{BAD:#} the report above shows only what could be read");
    for Damage { structure, at, problem } in damage {
        let at = at.map(|at| format!(" at {at}")).unwrap_or_default();
        for line in fit(&format!("{structure}{at}: {problem}"), WIDTH - 4) {
            let _ = writeln!(out, "  {line}");
        }
    }
    if left_out > 0 {
        let _ = writeln!(out, "  and {left_out} more");
    }
}
