//! Pressure on memory: who waits for what, for how long, and where there is room.

use serde::{Serialize, Serializer};
use vmkern_abi::layout::{KernelRoots, Thread};
use vmkern_abi::pressure::{STALL_CAUSES, StallCause, StallLine, Stalls, WHOLE};

use super::census::segments;
use super::diagnosis::diagnosis;
use super::hex::Hex;
use super::maps::maps;
use super::survey::Survey;
use super::threads::{THREADS_MAX, label};
use crate::read::stalls;

/// A share in hundredths of a percent; in JSON, percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u64);

impl Share {
    /// An average of the kernel's.
    fn of(average: u64) -> Self {
        Self((average.min(WHOLE) * 10_000 + WHOLE / 2) / WHOLE)
    }
}

/// With two decimals, without a sign.
impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_precision_loss, reason = "it is at most 10,000")]
        serializer.serialize_f64(self.0 as f64 / 100.0)
    }
}

/// One of Linux's lines `some` and `full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PressureLineReport {
    /// Percent of the last 10 seconds, as Linux averages them.
    pub avg10: Share,
    /// Percent of the last 60 seconds.
    pub avg60: Share,
    /// Microseconds since the boot.
    pub total: u64,
}

impl PressureLineReport {
    fn of(line: StallLine) -> Self {
        Self { avg10: Share::of(line.avg10), avg60: Share::of(line.avg60), total: line.total }
    }
}

/// A threshold of free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ThresholdReport {
    /// The kernel's name for it.
    pub name: &'static str,
    /// Pages.
    pub pages: u64,
}

/// A reason to sleep for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CauseReport {
    /// The wait message.
    pub cause: &'static str,
    /// Threads that sleep so now.
    pub sleepers: u64,
    /// Microseconds that all threads together have slept so, up to now.
    pub micros: u64,
}

/// A thread that is or was stalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StalledThread {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Microseconds that it has been stalled, up to now.
    pub micros: u64,
    /// The same by cause, without causes that it never had.
    pub causes: Vec<(&'static str, u64)>,
    /// The cause of the stall that goes on.
    pub now: Option<&'static str>,
    /// Microseconds since that began.
    pub for_micros: Option<u64>,
    /// The map for whose address space it waits.
    pub map: Option<String>,
}

/// Room in a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapRoom {
    /// Its name.
    pub name: String,
    /// Bytes outside entries.
    pub free_bytes: u64,
    /// Holes.
    pub holes: u64,
    /// Bytes of the largest.
    pub largest_hole: u64,
    /// Threads that wait for room in it, or for the end of a wiring there.
    pub waiters: u64,
}

/// `inspect pressure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PressureReport {
    /// What is wrong, in words, the worst first.
    pub diagnosis: Vec<String>,
    /// Microseconds since the boot.
    pub now: u64,
    /// `none`, `some` or `full`.
    pub state: &'static str,
    /// At least one thread was stalled.
    pub some: PressureLineReport,
    /// At least one thread was stalled, and no thread worked.
    pub full: PressureLineReport,
    /// Free pages.
    pub free_pages: u64,
    /// Pages under management.
    pub pages: u64,
    /// Pages that the host has seized.
    pub seized_pages: u64,
    /// Pages in the balloon.
    pub balloon_pages: u64,
    /// Thresholds of free pages, the highest first.
    pub thresholds: Vec<ThresholdReport>,
    /// Free pages for which a thread waits that needs so many at once; 0 for none.
    pub pages_wanted: u64,
    /// All causes.
    pub causes: Vec<CauseReport>,
    /// Threads that were ever stalled, the longest first.
    pub threads: Vec<StalledThread>,
    /// All maps.
    pub maps: Vec<MapRoom>,
}

pub(super) fn pressure(survey: &Survey<'_, '_>) -> PressureReport {
    let none = KernelRoots::default();
    let roots = survey.roots().unwrap_or(&none);
    // 1. The lines, and the threads.
    let (state, now, [some, full]) = stalls::lines(survey.view, roots);
    let (causes, threads) = threads(survey, roots, now);
    // 2. The maps, with the threads that wait for each.
    let room = |map: super::MapReport| MapRoom {
        waiters: threads.iter().filter(|t| t.map.as_deref() == Some(&*map.name)).count() as u64,
        name: map.name.to_string(),
        free_bytes: map.free_bytes,
        holes: map.holes,
        largest_hole: map.largest_hole,
    };
    let maps = maps(survey).maps.into_iter().map(room).collect();
    // 3. What all of it means.
    let mut report = PressureReport {
        diagnosis: Vec::new(),
        now,
        state: match state {
            Stalls::None => "none",
            Stalls::Some => "some",
            Stalls::Full => "full",
        },
        some: PressureLineReport::of(some),
        full: PressureLineReport::of(full),
        free_pages: roots.meter.v_free_count.get(),
        pages: roots.meter.v_page_count.get(),
        seized_pages: seized(survey, roots),
        balloon_pages: roots.balloon.pages.get(),
        thresholds: thresholds(roots),
        pages_wanted: roots.vm_pages_wanted.get(),
        causes,
        threads,
        maps,
    };
    report.diagnosis = diagnosis(&report);
    report
}

/// Pages that the host has seized: at the ends of segments, and in blocks.
fn seized(survey: &Survey<'_, '_>, roots: &KernelRoots) -> u64 {
    let fresh = segments(survey).into_iter().map(|segment| segment.limit - segment.end);
    fresh.fold(roots.seized_in_blocks(), u64::saturating_add)
}

/// The thresholds, the highest first.
fn thresholds(roots: &KernelRoots) -> Vec<ThresholdReport> {
    let meter = &roots.meter;
    let mut all: Vec<_> = [
        ("v_free_target", &meter.v_free_target),
        ("v_free_min", &meter.v_free_min),
        ("v_free_severe", &meter.v_free_severe),
        ("v_free_reserved", &meter.v_free_reserved),
        ("v_pageout_free_min", &meter.v_pageout_free_min),
        ("v_interrupt_free_min", &meter.v_interrupt_free_min),
    ]
    .map(|(name, pages)| ThresholdReport { name, pages: pages.get() })
    .into();
    all.sort_by_key(|threshold| std::cmp::Reverse(threshold.pages));
    all
}

/// All causes, and the threads that were ever stalled.
fn threads(
    survey: &Survey<'_, '_>,
    roots: &KernelRoots,
    now: u64,
) -> (Vec<CauseReport>, Vec<StalledThread>) {
    // 1. The sleeps that have ended.
    let all = StallCause::ALL.iter().zip(&roots.sched.pressure.micros);
    let cause = |(cause, micros): (&StallCause, &vmkern_abi::field::Field<u64>)| CauseReport {
        cause: cause.name(),
        sleepers: 0,
        micros: micros.get(),
    };
    let mut causes: Vec<CauseReport> = all.map(cause).collect();
    // 2. Each thread, with the sleep that goes on.
    let mut threads = Vec::new();
    let first = roots.sched.all.head.get();
    for item in
        survey.view.list("thread", first, |thread| thread.all_next.get()).at_most(THREADS_MAX)
    {
        let Some((_, thread)) = survey.damage.ok(item) else { break };
        let going_on = stalls::going_on(&thread, now);
        if let Some((cause, micros)) = going_on {
            let all = &mut causes[cause.index()];
            (all.sleepers, all.micros) = (all.sleepers + 1, all.micros.saturating_add(micros));
        }
        threads.extend(stalled(survey, &thread, going_on));
    }
    threads.sort_by_key(|thread| std::cmp::Reverse(thread.micros));
    (causes, threads)
}

/// The report of a thread, if it was ever stalled.
fn stalled(
    survey: &Survey<'_, '_>,
    thread: &Thread,
    going_on: Option<(StallCause, u64)>,
) -> Option<StalledThread> {
    let mut times: [u64; STALL_CAUSES] = std::array::from_fn(|i| thread.stalled[i].get());
    if let Some((cause, micros)) = going_on {
        times[cause.index()] = times[cause.index()].saturating_add(micros);
    }
    let micros = times.iter().fold(0, |sum: u64, &micros| sum.saturating_add(micros));
    let causes = StallCause::ALL.iter().zip(times).filter(|(_, micros)| *micros != 0);
    (micros != 0 || going_on.is_some()).then(|| StalledThread {
        tid: thread.tid.get(),
        name: label(thread),
        micros,
        causes: causes.map(|(cause, micros)| (cause.name(), micros)).collect(),
        now: going_on.map(|(cause, _)| cause.name()),
        for_micros: going_on.map(|(_, micros)| micros),
        map: going_on.and_then(|(cause, _)| map(survey, thread, cause)),
    })
}

/// The name of the map for whose room `thread` waits.
fn map(survey: &Survey<'_, '_>, thread: &Thread, cause: StallCause) -> Option<String> {
    match cause {
        // Only kmem_malloc sleeps so, and retries for kmem_map.
        StallCause::Nokva => Some("kmem_map".to_owned()),
        StallCause::Vmmaps => {
            let offset = std::mem::offset_of!(vmkern_abi::layout::VmMap, index) as u64;
            let at = thread.wchan.get().get().checked_sub(offset)?;
            let known = survey.maps().into_iter().find(|map| map.at.addr().get() == at);
            Some(known.map_or_else(|| Hex(at).to_string(), |map| map.name.to_string()))
        }
        _ => None,
    }
}
