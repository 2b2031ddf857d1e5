//! Maps as trees of bars, and a map's entries.

use std::fmt::Write as _;

use vmkern_abi::layout::{EntryFlags, VmMapEntry};

use super::WIDTH;
use super::text::{BAD, FAINT, GOOD, STRONG, count, percent, size};
use crate::report::{
    CUT_CELLS, EntryReport, FREE, MapEntriesReport, MapReport, MapsReport, ObjectRef, SUBMAP,
    Stretch,
};

/// The depth from which on maps are not indented any further.
const DEPTH_MAX: u32 = 3;

pub(super) fn draw(report: &MapsReport) -> String {
    let mut out = String::new();
    for map in &report.maps {
        head(&mut out, map, &"    ".repeat(usize::try_from(map.depth.min(DEPTH_MAX)).unwrap_or(0)));
    }
    let _ = writeln!(
        out,
        "{FAINT}. free  - less than half taken  + half or more  # all  ~ submap  <SIZE> a \
         hole{FAINT:#}"
    );
    out
}

/// The map in four lines.
fn head(out: &mut String, map: &MapReport, indent: &str) {
    let lock = map
        .locked_by
        .map(|tid| format!("  {BAD}locked by thread {tid}{BAD:#}"))
        .unwrap_or_default();
    let kind = if map.system { "" } else { ", pageable" };
    let (name, start, end) = (&map.name, map.start, map.end);
    let bytes = size(end.0.saturating_sub(start.0));
    let _ = writeln!(out, "{indent}{STRONG}{name}{STRONG:#}  {start}-{end}  {bytes}{kind}{lock}");
    let _ = writeln!(out, "{indent}{}", bar(&map.bar));
    let used = percent(map.used_bytes, end.0.saturating_sub(start.0));
    let entries = count(map.entry_count, "entry");
    let _ = writeln!(
        out,
        "{indent}{entries}, {} used ({used}); largest hole {}, {} % fragmented\n",
        size(map.used_bytes),
        size(map.largest_hole),
        map.fragmentation,
    );
}

/// The address space.
fn bar(stretches: &[Stretch]) -> String {
    let mut bar = format!("{FAINT}[{FAINT:#}");
    for stretch in stretches {
        if stretch.cells.is_empty() {
            let width = usize::try_from(CUT_CELLS).unwrap_or(0) - 2;
            let _ =
                write!(bar, "{FAINT}<{:^width$}>{FAINT:#}", size(stretch.end.0 - stretch.start.0));
        }
        // Neighbours of one colour share its escape sequences.
        for run in stretch.cells.as_bytes().chunk_by(|a, b| style(*a) == style(*b)) {
            let text = String::from_utf8_lossy(run);
            match style(run[0]) {
                Paint::Faint => {
                    let _ = write!(bar, "{FAINT}{text}{FAINT:#}");
                }
                Paint::Plain => bar.push_str(&text),
                Paint::Good => {
                    let _ = write!(bar, "{GOOD}{text}{GOOD:#}");
                }
            }
        }
    }
    let _ = write!(bar, "{FAINT}]{FAINT:#}");
    bar
}

#[derive(PartialEq, Eq)]
enum Paint {
    Faint,
    Plain,
    Good,
}

fn style(cell: u8) -> Paint {
    match char::from(cell) {
        FREE => Paint::Plain,
        SUBMAP => Paint::Faint,
        _ => Paint::Good,
    }
}

/// `inspect map NAME`.
pub(super) fn draw_entries(report: &MapEntriesReport) -> String {
    let mut out = String::new();
    head(&mut out, &report.map, "");
    let title =
        format!("{:<37} {:>8} {:<3} {:>2} {:<3} OBJECT", "START-END", "PAGES", "PRO", "W", "FL");
    let _ = writeln!(out, "{STRONG}{title}{STRONG:#}");
    for entry in &report.entries {
        out.push_str(&line(entry, WIDTH));
        out.push('\n');
    }
    if report.left_out > 0 {
        let _ = writeln!(out, "and {} more entries", report.left_out);
    }
    let _ = writeln!(
        out,
        "{FAINT}W: times wired; FL: c copy on write, n nofault, t in transition,\n\
         w wakeup wanted, d being deleted{FAINT:#}"
    );
    out
}

/// An entry in a line of at most `width` columns, or in two.
pub(super) fn line(entry: &EntryReport, width: usize) -> String {
    // 1. The columns: wirings, flags as letters, the object and where in it.
    let EntryReport { start, end, protection, wired, object, offset, flags, .. } = entry;
    let wired = match *wired {
        0 => "-".to_owned(),
        VmMapEntry::WIRE_FAILED => "!!".to_owned(),
        wired => wired.to_string(),
    };
    let letters = [
        (EntryFlags::COW, 'c'),
        (EntryFlags::NOFAULT, 'n'),
        (EntryFlags::IN_TRANSITION, 't'),
        (EntryFlags::NEEDS_WAKEUP, 'w'),
        (EntryFlags::DELETING, 'd'),
    ];
    let letters: String =
        letters.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, c)| c).collect();
    // The offset in the kernel's own objects follows from the address.
    let natural = start.0.wrapping_sub(vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS.get());
    let object = match object {
        ObjectRef::None => "-".to_owned(),
        ObjectRef::Kernel | ObjectRef::Kmem if offset.0 == natural => object.to_string(),
        ObjectRef::SubMap(name) => format!("map {name}"),
        _ => format!("{object}{}", plus(offset.0)),
    };
    // 2. The object stands on a line of its own where it does not fit.
    let range = format!("{start}-{end}");
    let pages = entry.pages();
    let head = format!("{range:<37} {pages:>8} {protection} {wired:>2} {letters:<3}");
    if head.len() + object.len() < width {
        format!("{head} {object}")
    } else {
        format!("{}\n{:>79}", head.trim_end(), object)
    }
}

/// `+N` for a byte that is N pages in, nothing for the first.
fn plus(offset: u64) -> String {
    match offset {
        0 => String::new(),
        offset if offset.is_multiple_of(4096) => format!(" +{}", offset / 4096),
        offset => format!("+{offset:#x}"),
    }
}
