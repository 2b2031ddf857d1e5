//! Physical memory: what its pages are used for, in numbers and as a picture.

use serde::Serialize;
use vmkern_abi::addr::PAGE_SHIFT;
use vmkern_abi::layout::{VM_FREELIST_ISADMA, VM_NFREELIST, VM_NFREEORDER};

use super::census::{Census, Queues, SegmentReport, Use};
use super::hex::Hex;
use super::page_caches::{PageCacheReport, page_caches};
use super::survey::Survey;

/// Cells in a row of the picture.
pub const ROW: usize = 64;
/// The most rows of the picture.
const ROWS_MAX: usize = 24;

/// Pages of one use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UseCount {
    /// The use.
    #[serde(rename = "use")]
    pub kind: Use,
    /// Pages.
    pub pages: u64,
}

/// Free blocks of one list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FreeList {
    /// `default`, or `isadma` for memory below 16 MiB.
    pub list: &'static str,
    /// Blocks by order: of 1, 2, 4, ... pages.
    pub blocks: Vec<u64>,
}

/// A counter of the kernel beside the number found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counted {
    /// The counter's name.
    pub counter: &'static str,
    /// Its value.
    pub says: u64,
    /// What was counted.
    pub found: u64,
}

/// All of physical memory, one character per cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Picture {
    /// Pages of a cell.
    pub pages_per_cell: u64,
    /// A string for each row of 64 cells, from physical address 0 up. A cell is the letter of a
    /// use: upper case if all its pages have that use; lower case if it is the most frequent use
    /// among the pages that are neither free nor unmanaged.
    pub rows: Vec<String>,
}

/// `inspect pages`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PagesReport {
    /// Pages of RAM.
    pub ram_pages: u64,
    /// Managed memory.
    pub segments: Vec<SegmentReport>,
    /// Pages by use.
    pub uses: Vec<UseCount>,
    /// Pages by queue.
    pub queues: Queues,
    /// Free blocks.
    pub free_lists: Vec<FreeList>,
    /// CPUs use their caches only while more pages than this are free; 0 when there are no caches.
    pub page_cache_floor: u64,
    /// CPUs' caches of free pages.
    pub page_caches: Vec<PageCacheReport>,
    /// The kernel's counters beside the numbers found.
    pub counters: Vec<Counted>,
    /// The picture.
    pub picture: Picture,
}

impl PagesReport {
    /// Pages of this use.
    #[must_use]
    pub fn count(&self, kind: Use) -> u64 {
        self.uses.iter().find(|count| count.kind == kind).map_or(0, |count| count.pages)
    }
}

/// First address of row `row`.
#[must_use]
pub fn row_address(picture: &Picture, row: usize) -> Hex {
    Hex((row as u64 * ROW as u64 * picture.pages_per_cell) << PAGE_SHIFT)
}

pub(super) fn pages(survey: &Survey<'_, '_>) -> PagesReport {
    let census = Census::take(survey);
    let uses: Vec<_> =
        census.counts().into_iter().map(|(kind, pages)| UseCount { kind, pages }).collect();
    let picture = picture(&census.uses);
    let free_lists = free_lists(survey);
    let mut report = PagesReport {
        ram_pages: survey.view.source().ram_size() >> PAGE_SHIFT,
        segments: census.segments,
        uses,
        queues: census.queues,
        free_lists,
        page_cache_floor: survey.roots().map_or(0, |roots| roots.page_cache_floor.get()),
        page_caches: page_caches(survey),
        counters: Vec::new(),
        picture,
    };
    report.counters = counters(survey, &report);
    report
}

fn counters(survey: &Survey<'_, '_>, report: &PagesReport) -> Vec<Counted> {
    let Some(roots) = survey.roots() else { return Vec::new() };
    let managed: u64 = report.segments.iter().map(|segment| segment.limit - segment.start).sum();
    let free: u64 =
        report.uses.iter().filter(|count| count.kind.is_free()).map(|count| count.pages).sum();
    let meter = &roots.meter;
    let counters = [
        ("v_page_count", meter.v_page_count.get(), managed),
        ("v_free_count", meter.v_free_count.get(), free),
        ("v_wire_count", meter.v_wire_count.get(), report.queues.wired),
        ("v_active_count", meter.v_active_count.get(), report.queues.active),
        ("v_inactive_count", meter.v_inactive_count.get(), report.queues.inactive),
    ];
    counters
        .into_iter()
        .map(|(counter, says, found)| {
            if says != found {
                let at = survey.view.roots().addr();
                survey.damage.say("kernel roots", at, || {
                    format!("{counter} is {says}, but {found} pages were found")
                });
            }
            Counted { counter, says, found }
        })
        .collect()
}

fn free_lists(survey: &Survey<'_, '_>) -> Vec<FreeList> {
    let Some(roots) = survey.roots() else { return Vec::new() };
    let lists = (0..VM_NFREELIST).zip(&roots.vm_phys_free_queues);
    lists
        .map(|(number, orders)| FreeList {
            list: if number == VM_FREELIST_ISADMA { "isadma" } else { "default" },
            blocks: orders.iter().take(VM_NFREEORDER).map(|list| list.count.get()).collect(),
        })
        .collect()
}

/// The picture of pages with these uses.
fn picture(uses: &[Use]) -> Picture {
    let mut pages_per_cell = 1;
    while uses.len().div_ceil(pages_per_cell) > ROW * ROWS_MAX {
        pages_per_cell *= 2;
    }
    let cells: Vec<char> = uses.chunks(pages_per_cell).map(cell).collect();
    let rows = cells.chunks(ROW).map(|row| row.iter().collect()).collect();
    Picture { pages_per_cell: pages_per_cell as u64, rows }
}

/// The character of a cell of these pages.
fn cell(pages: &[Use]) -> char {
    let mut counts = [0_u64; Use::ALL.len()];
    for page in pages {
        counts[*page as usize] += 1;
    }
    let all = pages.len() as u64;
    let most = |kinds: &mut dyn Iterator<Item = Use>| {
        kinds.filter(|kind| counts[*kind as usize] > 0).max_by_key(|kind| counts[*kind as usize])
    };
    let quiet = |kind: &Use| kind.is_free() || matches!(kind, Use::Unmanaged | Use::Hole);
    match most(&mut Use::ALL.into_iter().filter(|kind| !quiet(kind))) {
        Some(kind) if counts[kind as usize] == all => kind.letter(),
        Some(kind) => kind.letter().to_ascii_lowercase(),
        None => most(&mut Use::ALL.into_iter()).map_or(' ', Use::letter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_what_uses_it_however_little_that_is() {
        assert_eq!(cell(&[Use::Kmem; 8]), 'M');
        assert_eq!(cell(&[Use::Fresh, Use::Fresh, Use::Kmem, Use::Fresh]), 'm');
        assert_eq!(cell(&[Use::Kernel, Use::Kmem, Use::Kernel, Use::Unmanaged]), 'k');
        assert_eq!(
            [cell(&[Use::Fresh; 3]), cell(&[Use::Free; 3]), cell(&[Use::Unmanaged; 3])],
            ['.', ':', '=']
        );
        assert_eq!(cell(&[Use::Unreadable, Use::Free]), '?');
    }

    #[test]
    fn a_picture_has_a_bounded_number_of_rows_whatever_the_memory() {
        for pages in [1, 63, 64, 65, 16384, 16 << 20] {
            let picture = picture(&vec![Use::Free; pages]);
            assert!(
                picture.rows.len() <= ROWS_MAX && picture.rows.iter().all(|row| row.len() <= ROW)
            );
            let cells: usize = picture.rows.iter().map(String::len).sum();
            assert_eq!(cells as u64, (pages as u64).div_ceil(picture.pages_per_cell));
        }
    }

    #[test]
    fn every_use_has_a_letter_of_its_own() {
        let letters: std::collections::HashSet<_> = Use::ALL.into_iter().map(Use::letter).collect();
        assert_eq!(letters.len(), Use::ALL.len());
    }
}
