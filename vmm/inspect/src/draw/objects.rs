//! Objects in a table.

use std::fmt::Write as _;

use super::table::{Align, Table};
use super::text::FAINT;
use crate::report::{ObjectReport, ObjectsReport};

pub(super) fn draw(report: &ObjectsReport) -> String {
    // 1. A row for each object. The two numbers of pages differ only in a damaged guest.
    let mut table = Table::new(&[
        ("OBJECT", Align::Left),
        ("TYPE", Align::Left),
        ("REFS", Align::Right),
        ("ENTRIES", Align::Right),
        ("PAGES", Align::Right),
        ("SIZE", Align::Right),
        ("FLAGS", Align::Left),
    ]);
    for ObjectReport { object, entries, pages } in &report.objects {
        let flags: Vec<_> =
            object.flags.iter_names().map(|(name, _)| name.to_lowercase()).collect();
        let resident = if object.resident == *pages {
            pages.to_string()
        } else {
            format!("{} ({pages})", object.resident)
        };
        let lock = object.locked_by.map(|tid| format!(" locked:{tid}")).unwrap_or_default();
        table.row([
            object.name.to_string(),
            object.kind.clone(),
            object.references.to_string(),
            entries.to_string(),
            resident,
            object.size.to_string(),
            flags.join(" ") + &lock,
        ]);
    }
    // 2. What the columns mean.
    let mut out = table.draw(0);
    let _ = writeln!(
        out,
        "{FAINT}ENTRIES: map entries that name it; PAGES: resident; SIZE: pages it can \
         hold{FAINT:#}"
    );
    out
}
