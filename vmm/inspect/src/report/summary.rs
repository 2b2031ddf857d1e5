//! A guest at a glance.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::Arc;

use serde::Serialize;
use vmkern_abi::control::ControlRegion;
use vmkern_abi::crash::CrashRecord;
use vmkern_abi::layout::{KernelRoots, Mtx, VmMeter};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::census::Census;
use super::hex::Hex;
use super::maps::maps;
use super::pages::UseCount;
use super::pagetable::Tables;
use super::survey::Survey;
use super::threads::threads;
use crate::crash::Crash;
use crate::symbols::Symbols;

/// A range of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RamReport {
    /// First byte.
    pub start: Hex,
    /// First byte past it.
    pub end: Hex,
}

/// A map in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapLine {
    /// Its name.
    pub name: Arc<str>,
    /// How many maps it is nested in.
    pub depth: u32,
    /// Bytes of its address space.
    pub bytes: u64,
    /// Bytes in entries.
    pub used_bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Percent of the free bytes that lie outside the largest hole.
    pub fragmentation: u8,
}

/// A mutex that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockReport {
    /// Its name.
    pub lock: &'static str,
    /// Number of the thread that holds it.
    pub thread: u32,
}

/// `inspect summary`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SummaryReport {
    /// RAM.
    pub ram: Vec<RamReport>,
    /// Version of the ABI between host and guest; null if the roots cannot be read.
    pub abi: Option<u32>,
    /// The kernel's panic message, if it is dead.
    pub panic: Option<String>,
    /// CPUs by run state: `running`, `halted`, `ended`.
    pub cpus: BTreeMap<&'static str, u64>,
    /// Threads by state.
    pub threads: BTreeMap<String, u64>,
    /// Sleeping threads by wait message.
    pub waits: BTreeMap<String, u64>,
    /// The kernel's own mutexes that are held.
    pub locks: Vec<LockReport>,
    /// Maps.
    pub maps: Vec<MapLine>,
    /// Objects.
    pub objects: u64,
    /// Pages by use.
    pub uses: Vec<UseCount>,
    /// Page-table pages.
    pub tables: Tables,
    /// The kernel's counters.
    pub counters: BTreeMap<&'static str, u64>,
}

pub(super) fn summary(survey: &Survey<'_, '_>) -> SummaryReport {
    // 1. Count pages, CPUs by state, and threads by state and by wait message.
    let census = Census::take(survey);
    let segments = survey.view.source().segments().iter();
    let mut cpus = BTreeMap::new();
    for cpu in survey.damage.ok(survey.view.source().cpus()).unwrap_or_default() {
        *cpus.entry(super::cpus::state_name(cpu.state)).or_default() += 1;
    }
    let (mut states, mut waits) = (BTreeMap::new(), BTreeMap::new());
    for thread in threads(survey, &Symbols::none()).threads {
        *states.entry(thread.state).or_default() += 1;
        if let Some(message) = thread.wait_message {
            *waits.entry(message).or_default() += 1;
        }
    }
    // 2. A line for each map.
    let lines = maps(survey).maps.into_iter().map(|map| MapLine {
        name: map.name,
        depth: map.depth,
        bytes: map.end.0.saturating_sub(map.start.0),
        used_bytes: map.used_bytes,
        entries: map.entry_count,
        fragmentation: map.fragmentation,
    });
    // 3. The report.
    SummaryReport {
        ram: segments
            .map(|segment| RamReport { start: segment.start.into(), end: segment.end.into() })
            .collect(),
        abi: survey.roots().map(|roots| roots.abi_version.get()),
        panic: panic(survey),
        cpus,
        threads: states,
        waits,
        locks: survey.roots().map(locks).unwrap_or_default(),
        maps: lines.collect(),
        objects: census.objects.len() as u64,
        uses: census.counts().into_iter().map(|(kind, pages)| UseCount { kind, pages }).collect(),
        tables: Tables::new(census.tables),
        counters: survey.roots().map(counters).unwrap_or_default(),
    }
}

fn counters(roots: &KernelRoots) -> BTreeMap<&'static str, u64> {
    let value = |name: &&'static str| Some((*name, roots.meter.by_name(name)?.get()));
    VmMeter::NAMES.iter().filter_map(value).collect()
}

/// The kernel's mutexes that are held.
fn locks(roots: &KernelRoots) -> Vec<LockReport> {
    let all: [(&str, &Mtx); 9] = [
        ("kernel_object", &roots.kernel_object.lock),
        ("kmem_object", &roots.kmem_object.lock),
        ("kernel_pmap", &roots.kernel_pmap.lock),
        ("eventhandler_mtx", &roots.eventhandler_mtx),
        ("map_sleep_mtx", &roots.map_sleep_mtx),
        ("vm_page_queue_free_mtx", &roots.vm_page_queue_free_mtx),
        ("vm_page_queue_mtx", &roots.vm_page_queue_mtx),
        ("driver_mtx", &roots.driver_mtx),
        ("sched_lock", &roots.sched.lock),
    ];
    let owned = |(lock, mutex): (&'static str, &Mtx)| {
        Some(LockReport { lock, thread: (mutex.owner.get() & 0xffff).checked_sub(1)? })
    };
    all.into_iter().filter_map(owned).collect()
}

/// The kernel's panic message, from its crash record.
fn panic(survey: &Survey<'_, '_>) -> Option<String> {
    let offset = offset_of!(ControlRegion, crash) as u64;
    let at = survey.view.source().anchors().control.checked_add(offset)?;
    let mut record = CrashRecord::new_zeroed();
    survey.view.source().read(at, record.as_mut_bytes()).ok()?;
    Some(Crash::from_record(&record, &Symbols::none()).ok()?.message)
}
