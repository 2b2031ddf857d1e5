//! The mappings of the page tables: adjacent entries with equal flags form one run.

use serde::Serialize;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::kva;
use vmkern_abi::pte::PteFlags;

use super::hex::Hex;
use super::survey::Survey;
use super::walk::{Region, flag_names};
use crate::read::leaves::{Leaf, Leaves};

/// The most runs that are kept; the rest is only counted.
const RUNS_MAX: usize = 1 << 18;

/// Adjacent entries of one size with equal flags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RunReport {
    /// First address.
    pub start: Hex,
    /// Last address that it maps.
    pub last: Hex,
    /// Bytes of an entry's page: 4 KiB, 2 MiB or 1 GiB.
    pub span: u64,
    /// Entries.
    pub entries: u64,
    /// The physical address behind `start`.
    pub phys: Hex,
    /// Whether physical addresses ascend with the virtual ones.
    pub contiguous: bool,
    /// What the whole path grants, and the entries' other flags.
    #[serde(serialize_with = "flag_names")]
    pub flags: PteFlags,
    /// The part of the address space.
    pub region: Region,
}

/// Page-table pages by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tables {
    /// Roots.
    pub pml4: u64,
    /// Page-directory-pointer tables.
    pub pdpt: u64,
    /// Page directories.
    pub pd: u64,
    /// Page tables.
    pub pt: u64,
}

impl Tables {
    pub(super) fn new([pt, pd, pdpt, pml4]: [u64; 4]) -> Self {
        Self { pml4, pdpt, pd, pt }
    }

    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.pml4 + self.pdpt + self.pd + self.pt
    }
}

/// `inspect pagetable [START..END]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageTableReport {
    /// The root page table.
    pub root: Hex,
    /// First address of the requested range.
    pub start: Hex,
    /// Last address of the requested range.
    pub last: Hex,
    /// Tables that were looked into.
    pub tables: Tables,
    /// Entries that map a page.
    pub entries: u64,
    /// Bytes that they map.
    pub bytes: u64,
    /// The runs, ascending.
    pub runs: Vec<RunReport>,
    /// The number of runs that are not listed.
    pub left_out: u64,
}

pub(super) fn page_table(
    survey: &Survey<'_, '_>,
    first: GuestVirt,
    last: GuestVirt,
) -> PageTableReport {
    // 1. An empty report of the range.
    let mut leaves = Leaves::new(survey.view, first, last);
    let virtual_avail = survey.roots().map_or(kva::KERNBASE, |roots| roots.virtual_avail.get());
    let mut report = PageTableReport {
        root: survey.view.pml4().into(),
        start: first.into(),
        last: last.into(),
        tables: Tables::default(),
        entries: 0,
        bytes: 0,
        runs: Vec::new(),
        left_out: 0,
    };
    // 2. The translations, joined into runs.
    let mut current: Option<RunReport> = None;
    for leaf in &mut leaves {
        let leaf = match leaf {
            Ok(leaf) => leaf,
            Err(error) => {
                survey.damage.note(error);
                continue;
            }
        };
        report.entries += 1;
        report.bytes = report.bytes.saturating_add(leaf.span);
        let region = Region::of(leaf.va, virtual_avail);
        if !current.as_mut().is_some_and(|run| extend(run, &leaf, region)) {
            keep(&mut report, current.replace(begin(&leaf, region)));
        }
    }
    // 3. The last run, and the tables that were visited.
    keep(&mut report, current);
    report.tables = Tables::new(leaves.tables());
    report
}

fn keep(report: &mut PageTableReport, run: Option<RunReport>) {
    if report.runs.len() < RUNS_MAX {
        report.runs.extend(run);
    } else {
        report.left_out += u64::from(run.is_some());
    }
}

fn begin(leaf: &Leaf, region: Region) -> RunReport {
    RunReport {
        start: leaf.va.into(),
        last: Hex(leaf.last()),
        span: leaf.span,
        entries: 1,
        phys: leaf.phys.into(),
        contiguous: true,
        flags: leaf.flags,
        region,
    }
}

/// Extends `run` by `leaf`, if `leaf` continues it.
fn extend(run: &mut RunReport, leaf: &Leaf, region: Region) -> bool {
    let follows = run.last.0.checked_add(1) == Some(leaf.va.get());
    let alike = run.span == leaf.span && run.flags == leaf.flags && run.region == region;
    if !follows || !alike {
        return false;
    }
    let expected =
        run.entries.checked_mul(run.span).and_then(|bytes| run.phys.0.checked_add(bytes));
    run.contiguous &= expected == Some(leaf.phys.get());
    run.last = Hex(leaf.last());
    run.entries += 1;
    true
}
