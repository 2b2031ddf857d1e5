//! Reports about a guest's memory, as data.
//!
//! An [`Inspection`] needs only a [`View`], so the guest may be running, dead, or a dump in a file.
//! `--json` prints it, and the drawings ([`super::draw`]) are made from it. A guest's memory may be
//! damaged: a report holds what could be read, and [`Inspection::damage`] lists what could not.

mod bar;
mod census;
mod cpus;
mod damage;
mod diagnosis;
mod diff;
mod entries;
mod fail;
mod hex;
mod locks;
mod maps;
mod objects;
mod page;
mod page_caches;
mod pages;
mod pagetable;
mod pressure;
mod stack;
mod summary;
mod survey;
mod threads;
mod walk;
mod what;

use serde::Serialize;
use thiserror::Error;
use vmkern_abi::addr::PAGE_SHIFT;

pub use self::bar::{CELLS, CUT_CELLS, FREE, FULL, MOST, SOME, SUBMAP, Stretch};
pub use self::census::{Queues, SegmentReport, Use};
pub use self::cpus::{CachedPages, CpuReport, CpusReport, RegisterReport};
pub use self::damage::Damage;
pub use self::diff::{
    Change, Changes, CounterChange, DiffReport, MapDiff, PageChange, PageChangeCount, PteChange,
    PteState,
};
pub use self::entries::EntryReport;
pub use self::fail::{FailPointReport, FailReport, FireReport};
pub use self::hex::Hex;
pub use self::locks::{InterruptReport, LockClassReport, LockCounts, LocksReport, TlbReport};
pub use self::maps::{MapEntriesReport, MapReport, MapsReport};
pub use self::objects::{ObjectBrief, ObjectReport, ObjectsReport};
pub use self::page::{MappingReport, PageReport, PageState};
pub use self::page_caches::PageCacheReport;
pub use self::pages::{Counted, FreeList, PagesReport, Picture, ROW, UseCount, row_address};
pub use self::pagetable::{PageTableReport, RunReport, Tables};
pub use self::pressure::{
    CauseReport, MapRoom, PressureLineReport, PressureReport, Share, StalledThread, ThresholdReport,
};
pub use self::summary::{LockReport, MapLine, RamReport, SummaryReport};
use self::survey::Survey;
pub use self::survey::{MAP_NAMES, MapName, ObjectRef};
pub use self::threads::{ThreadReport, ThreadsReport};
pub use self::walk::{MappedReport, Region, StepReport, VtopReport, bits, words};
pub use self::what::{What, WhatError};
use super::View;
use crate::symbols::Symbols;

/// Version of the JSON object. A new key does not change it; a new meaning of an old key does.
pub const SCHEMA: u32 = 1;

/// A report, with its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The source's name, such as a file's.
    pub source: String,
    /// What was found.
    #[serde(flatten)]
    pub body: Body,
    /// What could not be read, or made no sense.
    pub damage: Vec<Damage>,
    /// The amount of damage that is not listed.
    pub damage_left_out: u64,
}

/// The report proper, by request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "inspect", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Body {
    /// `summary`.
    Summary(Box<SummaryReport>),
    /// `maps`.
    Maps(MapsReport),
    /// `map NAME`.
    Map(Box<MapEntriesReport>),
    /// `objects`.
    Objects(ObjectsReport),
    /// `pages`.
    Pages(Box<PagesReport>),
    /// `page PFN`.
    Page(Box<PageReport>),
    /// `vtop ADDR`.
    Vtop(Box<VtopReport>),
    /// `pagetable [START..END]`.
    #[serde(rename = "pagetable")]
    PageTable(Box<PageTableReport>),
    /// `threads`.
    Threads(ThreadsReport),
    /// `cpus`.
    Cpus(CpusReport),
    /// `locks`.
    Locks(LocksReport),
    /// `fail`.
    Fail(FailReport),
    /// `pressure`.
    Pressure(Box<PressureReport>),
    /// `diff`.
    Diff(Box<DiffReport>),
}

/// The requested item does not exist.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotThere {
    /// No such map.
    #[error("there is no map {asked}; this guest has {}", there.join(" "))]
    Map {
        /// What was asked for.
        asked: String,
        /// The maps that exist.
        there: Vec<String>,
    },
    /// No such page.
    #[error("there is no page {pfn:#x}: RAM is {}", there.join(" and "))]
    Page {
        /// What was asked for.
        pfn: u64,
        /// The pages that exist.
        there: Vec<String>,
    },
}

crate::debug_as_printed!(NotThere);

impl Inspection {
    /// Reports on `what` in `view`, whose source has the name `source`. `symbols` are those of the
    /// guest's kernel; they are needed if [`What::has_backtraces`] is true.
    ///
    /// # Errors
    /// When the map or the page that `what` names does not exist.
    pub fn of(
        source: &str,
        view: &View<'_>,
        what: &What,
        symbols: &Symbols,
    ) -> Result<Self, NotThere> {
        let survey = Survey::new(view);
        let body = match what {
            // 1. The whole guest, and its maps.
            What::Summary => Body::Summary(Box::new(summary::summary(&survey))),
            What::Maps => Body::Maps(maps::maps(&survey)),
            What::Map(name) => {
                Body::Map(Box::new(maps::map(&survey, name).ok_or_else(|| NotThere::Map {
                    asked: name.to_string(),
                    there: survey.maps().iter().map(|map| map.name.to_string()).collect(),
                })?))
            }
            // 2. Objects and pages.
            What::Objects => Body::Objects(objects::report(&survey)),
            What::Pages => Body::Pages(Box::new(pages::pages(&survey))),
            What::Page(pfn) => {
                Body::Page(Box::new(page::page(&survey, *pfn).ok_or_else(|| {
                    let pages = |end: u64| end >> PAGE_SHIFT;
                    let range = |s: &std::ops::Range<vmkern_abi::addr::GuestPhys>| {
                        format!(
                            "pages {:#x} to {:#x}",
                            pages(s.start.get()),
                            pages(s.end.get()).saturating_sub(1)
                        )
                    };
                    NotThere::Page {
                        pfn: *pfn,
                        there: view.source().segments().iter().map(range).collect(),
                    }
                })?))
            }
            // 3. Addresses, threads, CPUs, locks, fail points and pressure.
            What::Vtop(va) => Body::Vtop(Box::new(walk::vtop(&survey, *va))),
            What::PageTable(first, last) => {
                Body::PageTable(Box::new(pagetable::page_table(&survey, *first, *last)))
            }
            What::Threads => Body::Threads(threads::threads(&survey, symbols)),
            What::Cpus => Body::Cpus(cpus::cpus(&survey, symbols)),
            What::Locks => Body::Locks(locks::locks(&survey)),
            What::Fail => Body::Fail(fail::fail(&survey, symbols)),
            What::Pressure => Body::Pressure(Box::new(pressure::pressure(&survey))),
        };
        Ok(Self::new(source, body, [survey]))
    }

    /// The differences from `before` to `after`. Each is a source's name with its view.
    #[must_use]
    pub fn diff(before: (&str, &View<'_>), after: (&str, &View<'_>)) -> Self {
        let (old, new) = (Survey::new(before.1), Survey::new(after.1));
        let diff = diff::diff(&old, &new, [before.0.to_owned(), after.0.to_owned()]);
        Self::new(after.0, Body::Diff(Box::new(diff)), [old, new])
    }

    fn new<'v, 'a: 'v>(
        source: &str,
        body: Body,
        surveys: impl IntoIterator<Item = Survey<'v, 'a>>,
    ) -> Self {
        let (mut damage, mut damage_left_out) = (Vec::new(), 0);
        for survey in surveys {
            let (found, left_out) = survey.damage.into_parts();
            damage.extend(found);
            damage_left_out += left_out;
        }
        Self { schema: SCHEMA, source: source.to_owned(), body, damage, damage_left_out }
    }
}
