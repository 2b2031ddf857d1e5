//! The address space of a map as a row of cells.
//!
//! A kernel's address space is mostly one hole: at a single scale, a row would be dots and a single
//! mark. So holes that are larger than all the rest together are cut out and named, and the rest
//! shares the cells.

use serde::Serialize;
use vmkern_abi::addr::PAGE_SIZE;

use super::hex::Hex;

/// Cells of a bar.
pub const CELLS: u64 = 64;
/// Cells that a cut-out hole takes.
pub const CUT_CELLS: u64 = 11;
/// The most holes that are cut out.
const CUTS_MAX: usize = 2;

/// Nothing is allocated in the cell.
pub const FREE: char = '.';
/// Less than half of the cell is allocated.
pub const SOME: char = '-';
/// Half of the cell or more is allocated.
pub const MOST: char = '+';
/// All of the cell is allocated.
pub const FULL: char = '#';
/// A submap.
pub const SUBMAP: char = '~';

/// A stretch of a bar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stretch {
    /// First address.
    pub start: Hex,
    /// First address past it.
    pub end: Hex,
    /// Bytes of a cell; the last may be smaller.
    pub bytes_per_cell: u64,
    /// A character a cell: `.` free, `-` less than half taken, `+` half or more, `#` all, `~` a
    /// submap. Empty for a hole that is too large for its scale.
    pub cells: String,
}

/// A range of the map that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub start: u64,
    pub end: u64,
    pub is_submap: bool,
}

/// The bar of `[start, end)`. Ranges in `taken` that are not in ascending order or overlap the one
/// before are ignored.
pub(super) fn bar(start: u64, end: u64, taken: &[Taken]) -> Vec<Stretch> {
    if start >= end {
        return Vec::new();
    }
    let taken = in_order(start, end, taken);
    let cuts = cuts(start, end, &taken);
    let cut: u64 = cuts.iter().map(|(from, to)| to - from).sum();
    let cells = CELLS - CUT_CELLS * cuts.len() as u64;
    let shown = end - start - cut;
    // Each stretch may round up to one cell more.
    let bytes_per_cell = shown.div_ceil(cells - cuts.len() as u64).next_multiple_of(PAGE_SIZE);
    let mut stretches = Vec::new();
    let mut from = start;
    for (hole, next) in cuts.into_iter().chain([(end, end)]) {
        if from < hole {
            stretches.push(stretch(from, hole, bytes_per_cell, &taken));
        }
        if hole < next {
            let cells = String::new();
            stretches.push(Stretch {
                start: Hex(hole),
                end: Hex(next),
                bytes_per_cell: next - hole,
                cells,
            });
        }
        from = next;
    }
    stretches
}

fn in_order(start: u64, end: u64, taken: &[Taken]) -> Vec<Taken> {
    let mut below = start;
    let good = taken.iter().filter(|range| {
        let fits = range.start >= below && range.start < range.end && range.end <= end;
        if fits {
            below = range.end;
        }
        fits
    });
    good.copied().collect()
}

/// The holes to cut out, in order: each is larger than everything else that is left.
fn cuts(start: u64, end: u64, taken: &[Taken]) -> Vec<(u64, u64)> {
    let starts = taken.iter().map(|range| range.start).chain([end]);
    let ends = [start].into_iter().chain(taken.iter().map(|range| range.end));
    let mut holes: Vec<_> = ends.zip(starts).filter(|(from, to)| from < to).collect();
    holes.sort_by_key(|(from, to)| std::cmp::Reverse(to - from));
    let mut left = end - start;
    // Something must be left, and a few pages are not worth a cut.
    let fits = |hole: &(u64, u64)| {
        let size = hole.1 - hole.0;
        let rest = left - size;
        let cut = size > rest && rest > 0 && size >= CELLS * PAGE_SIZE;
        left -= if cut { size } else { 0 };
        cut
    };
    let mut cuts: Vec<_> = holes.into_iter().take(CUTS_MAX).filter(fits).collect();
    cuts.sort_unstable();
    cuts
}

fn stretch(start: u64, end: u64, bytes_per_cell: u64, taken: &[Taken]) -> Stretch {
    let first = taken.partition_point(|range| range.end <= start);
    let mut rest = &taken[first..];
    let mut cells = String::new();
    let mut from = start;
    while from < end {
        let to = from.checked_add(bytes_per_cell).map_or(end, |to| to.min(end));
        let (mut used, mut submap) = (0, 0);
        while let Some(range) = rest.first().filter(|range| range.start < to) {
            let part = range.end.min(to) - range.start.max(from);
            used += part;
            submap += if range.is_submap { part } else { 0 };
            if range.end > to {
                break;
            }
            rest = &rest[1..];
        }
        cells.push(cell(used, submap, to - from));
        from = to;
    }
    Stretch { start: Hex(start), end: Hex(end), bytes_per_cell, cells }
}

fn cell(used: u64, submap: u64, size: u64) -> char {
    match used {
        0 => FREE,
        _ if submap > used / 2 => SUBMAP,
        _ if used == size => FULL,
        _ if used >= size / 2 => MOST,
        _ => SOME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(ranges: &[(u64, u64)]) -> Vec<Taken> {
        ranges
            .iter()
            .map(|&(start, end)| Taken { start: start << 12, end: end << 12, is_submap: false })
            .collect()
    }

    fn cells(pages: u64, taken: &[Taken]) -> String {
        bar(0, pages << 12, taken)
            .iter()
            .map(|s| if s.cells.is_empty() { "<>".to_owned() } else { s.cells.clone() })
            .collect()
    }

    #[test]
    fn a_cell_says_how_much_of_it_is_taken() {
        // Four pages a cell.
        let taken = plain(&[(0, 4), (5, 6), (8, 10), (12, 15), (20, 200)]);
        let bar = cells(256, &taken);
        assert_eq!(bar.len(), 64);
        assert!(bar.starts_with("#-++.###"), "{bar}");
        assert_eq!(bar.matches('#').count(), 1 + 45);
    }

    #[test]
    fn a_hole_larger_than_all_the_rest_is_cut_out() {
        let taken = plain(&[(0, 100), (1 << 27, (1 << 27) + 100)]);
        let bar = bar(0, ((1 << 27) + 200) << 12, &taken);
        let shape: Vec<_> =
            bar.iter().map(|s| (s.start.0 >> 12, s.end.0 >> 12, s.cells.len())).collect();
        assert_eq!(shape, [(0, 100, 17), (100, 1 << 27, 0), (1 << 27, (1 << 27) + 200, 34)]);
    }

    #[test]
    fn an_empty_map_is_all_dots_and_a_full_one_has_none() {
        assert_eq!(cells(6400, &[]), ".".repeat(64));
        assert_eq!(cells(6400, &plain(&[(0, 6400)])), "#".repeat(64));
        assert_eq!(cells(3, &plain(&[(1, 2)])), ".#.");
        assert!(bar(8, 8, &[]).is_empty() && bar(9, 8, &[]).is_empty());
    }

    #[test]
    fn ranges_that_make_no_sense_are_passed_over() {
        let wild = [(5, 3), (2, 1 << 40), (1, 2), (0, 1), (2, 3)];
        assert_eq!(cells(4, &plain(&wild)), ".##.");
    }

    #[test]
    fn a_bar_never_has_more_cells_than_there_are() {
        for pages in (1..3000).step_by(7) {
            for hole in [0, 1, pages / 3, pages / 2, pages - 1] {
                let total = pages + hole * 50;
                let taken = plain(&[(0, 1), (pages.min(1 + hole * 50), total)]);
                let width: u64 = bar(0, total << 12, &taken)
                    .iter()
                    .map(|s| if s.cells.is_empty() { CUT_CELLS } else { s.cells.len() as u64 })
                    .sum();
                assert!(width <= CELLS, "{pages} {hole}: {width}");
            }
        }
    }
}
