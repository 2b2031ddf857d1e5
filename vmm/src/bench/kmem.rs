//! The cost of allocation inside the guest, and how it scales with the number of CPUs.
//!
//! One thread per vCPU allocates and frees in a loop inside the kernel ([`Workload::Pairs`]), so
//! the rings cost nothing. Guests with different numbers of vCPUs take turns, case by case and
//! round by round. Each round yields two ratios of throughput: one by elapsed time, and one by the
//! time for which the vCPUs had a core, which is the time that would elapse on a machine with a
//! free core for each.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::time::Instant;

use serde::Serialize;
use vmkern_abi::boot::TimeMode;
use vmkern_abi::control::{Allocator, MapId, MapKind, Op, Outcome, Workload};

use super::against::{self, AgainstBench, Figure};
use super::{BenchError, Progress, Summary, Watch};
use crate::guest::{Guest, ThreadId};
use crate::inspect::What;
use crate::inspect::report::{Body, LockClassReport, LockCounts, LocksReport};
use crate::kernel::KernelImage;

/// Bytes of each thread's map, and so the largest allocation.
pub const MAP_SIZE: u64 = 4 << 20;

/// A number for each lock class.
pub type ByClass<T> = Vec<(&'static str, T)>;

/// What [`kmem`] measures.
#[derive(Clone, Debug)]
pub struct KmemSetup {
    /// Rounds, at least one.
    pub rounds: usize,
    /// Pairs that each thread does in a round.
    pub pairs: u64,
    /// Bytes of an allocation.
    pub size: u64,
    /// Numbers of vCPUs; the first is the reference of the ratios.
    pub vcpus: Vec<u32>,
    /// Kernel tunables to set.
    pub settings: Vec<(String, u64)>,
}

/// What [`kmem`] measured.
#[derive(Clone, Debug, Serialize)]
pub struct KmemBench {
    /// Rounds.
    pub rounds: usize,
    /// Pairs that each thread did in a round.
    pub pairs: u64,
    /// Bytes of an allocation.
    pub size: u64,
    /// Each function on each kind of map with each number of vCPUs.
    pub cases: Vec<KmemCase>,
}

/// One function on one kind of map, with one number of vCPUs.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KmemCase {
    /// `kmem_malloc` or `kmem_alloc`.
    pub function: &'static str,
    /// `disjoint` (a map for each thread) or `one`.
    pub maps: &'static str,
    /// vCPUs, and threads.
    pub vcpus: u32,
    /// Microseconds per pair of allocation and free, all threads together.
    pub pair_us: Summary,
    /// Throughput relative to the first number of vCPUs, by elapsed time.
    pub scaling: Summary,
    /// Throughput relative to the first number of vCPUs, by the time for which the vCPUs ran.
    pub scaling_on_free_cores: Summary,
    /// Flushes per pair.
    pub flushes: f64,
    /// Other CPUs that also had to flush, per pair.
    pub asked: f64,
    /// Those of them that served it with a flush of their own, per pair.
    pub merged: f64,
    /// Those of them that had to be interrupted, per pair.
    pub interrupts: f64,
    /// Idle CPUs that did not have to flush, per pair.
    pub skipped: f64,
    /// Acquisitions of locks, per pair.
    pub acquired: f64,
    /// The same by lock class; classes that were never acquired are left out.
    pub locks: ByClass<f64>,
    /// Acquisitions that had to wait, per pair and lock class; classes that never waited are left
    /// out.
    pub contested: ByClass<f64>,
    /// Cycles of those waits, per pair and lock class.
    pub waited_cycles: ByClass<f64>,
}

const CASES: [(&str, Allocator, &str); 4] = [
    ("kmem_malloc", Allocator::Malloc, "disjoint"),
    ("kmem_malloc", Allocator::Malloc, "one"),
    ("kmem_alloc", Allocator::Alloc, "disjoint"),
    ("kmem_alloc", Allocator::Alloc, "one"),
];

/// A guest with a map for each vCPU.
struct Subject {
    guest: Guest,
    maps: Vec<MapId>,
}

/// Figures of a case with one number of vCPUs, one per round.
#[derive(Default)]
struct Figures {
    /// Elapsed seconds per pair.
    passed: Vec<f64>,
    /// Seconds per pair for which the busiest vCPU ran.
    ran: Vec<f64>,
    flushes: u64,
    asked: u64,
    merged: u64,
    interrupts: u64,
    skipped: u64,
    locks: ByClass<u64>,
    contested: ByClass<u64>,
    waited_cycles: ByClass<u64>,
}

/// Measures according to `setup`; `watch` follows the rounds.
///
/// # Errors
/// When a guest fails.
pub fn kmem(setup: &KmemSetup, watch: Watch<'_>) -> Result<KmemBench, BenchError> {
    // 1. A guest for each number of vCPUs.
    let kernel = KernelImage::embedded();
    let mut subjects = setup
        .vcpus
        .iter()
        .map(|&vcpus| launch(setup, vcpus, &kernel))
        .collect::<Result<Vec<_>, _>>()?;
    let mut figures: Vec<Vec<Figures>> =
        CASES.iter().map(|_| subjects.iter().map(|_| Figures::default()).collect()).collect();
    // 2. The first round warms up.
    for round in 0..=setup.rounds {
        watch(Progress { done: round, total: setup.rounds + 1 });
        for (case, figures) in CASES.iter().zip(&mut figures) {
            for (subject, figures) in subjects.iter_mut().zip(figures) {
                subject.guest.restart_clock();
                let mut fresh = Figures::default();
                measure(setup, case, subject, if round == 0 { &mut fresh } else { figures })?;
            }
        }
    }
    // 3. Each case against the guest with the first number.
    let cases = CASES.iter().zip(&figures).flat_map(|(case, of_case)| {
        let counts = setup.vcpus.iter().zip(of_case);
        counts.map(|(&vcpus, figures)| summarise(setup, case, vcpus, figures, &of_case[0]))
    });
    Ok(KmemBench {
        rounds: setup.rounds,
        pairs: setup.pairs,
        size: setup.size,
        cases: cases.collect(),
    })
}

/// Measures according to `setup`, in each round with guests of the built-in kernel and with guests
/// of `other`; `watch` follows the rounds.
///
/// # Errors
/// When a guest fails.
pub fn kmem_against(
    other: &KernelImage,
    setup: &KmemSetup,
    watch: Watch<'_>,
) -> Result<AgainstBench, BenchError> {
    against::in_turns(other, setup.rounds, watch, |kernel| {
        let mut rows = Vec::new();
        for &vcpus in &setup.vcpus {
            let mut subject = launch(setup, vcpus, kernel)?;
            for case in &CASES {
                let mut figures = Figures::default();
                measure(setup, case, &mut subject, &mut figures)?;
                let of = if case.2 == "one" { "one map" } else { "disjoint maps" };
                rows.push(Figure {
                    what: format!("pair of {}, {of}, {vcpus} vCPUs", case.0),
                    us: Summary::of(&figures.passed).median * 1e6,
                });
            }
        }
        Ok(rows)
    })
}

fn launch(setup: &KmemSetup, vcpus: u32, kernel: &KernelImage) -> Result<Subject, BenchError> {
    let mut builder = Guest::builder().kernel(kernel.clone()).vcpus(vcpus).time(TimeMode::Real);
    for (name, value) in &setup.settings {
        builder = builder.tunable(name, *value);
    }
    let mut guest = super::launch(builder)?;
    let mut maps = Vec::new();
    for _ in 0..vcpus {
        let op = Op::KmemSuballoc { parent: MapId::KERNEL, size: MAP_SIZE, kind: MapKind::System };
        match guest.call(ThreadId::MAIN, op)?.outcome {
            Outcome::Value(map) => maps.push(MapId(map)),
            other => return Err(BenchError::Answer(format!("{other:?}"))),
        }
    }
    Ok(Subject { guest, maps })
}

fn measure(
    setup: &KmemSetup,
    &(_, allocator, maps): &(&str, Allocator, &str),
    subject: &mut Subject,
    figures: &mut Figures,
) -> Result<(), BenchError> {
    // 1. Start the work on all vCPUs, in one shared map or in a map for each.
    let before = locks(&subject.guest)?;
    let (start, ran) = (Instant::now(), vcpu_times());
    for (thread, &own) in ThreadId::all().zip(&subject.maps) {
        let map = if maps == "one" { subject.maps[0] } else { own };
        subject.guest.submit(
            thread,
            Op::Work(Workload::Pairs { map, size: setup.size, count: setup.pairs, allocator }),
        )?;
    }
    // 2. Wait for the last to end.
    for _ in &subject.maps {
        match subject.guest.next_response()?.outcome {
            Outcome::Ok => {}
            other => return Err(BenchError::Answer(format!("{other:?}"))),
        }
    }
    // 3. Seconds per pair: by the clock, and by the time for which the vCPUs had a core.
    let all = setup.pairs as f64 * subject.maps.len() as f64;
    figures.passed.push(start.elapsed().as_secs_f64() / all);
    let ran = vcpu_times()
        .into_iter()
        .map(|(vcpu, time)| time.saturating_sub(ran.get(&vcpu).copied().unwrap_or(0)))
        .max();
    figures.ran.push(ran.unwrap_or(0) as f64 / 1e9 / all);
    figures.count(&before, &locks(&subject.guest)?);
    Ok(())
}

impl Figures {
    /// Adds the counts between two looks.
    fn count(&mut self, before: &LocksReport, after: &LocksReport) {
        for (old, new) in before.tlb.iter().zip(&after.tlb) {
            self.flushes += new.flushes.saturating_sub(old.flushes);
            self.asked += new.asked.saturating_sub(old.asked);
            self.merged += new.merged.saturating_sub(old.merged);
            self.interrupts += new.interrupts.saturating_sub(old.interrupts);
            self.skipped += new.skipped.saturating_sub(old.skipped);
        }
        self.locks = added(&self.locks, before, after, |counts| counts.acquired);
        self.contested = added(&self.contested, before, after, |counts| counts.contested);
        self.waited_cycles =
            added(&self.waited_cycles, before, after, |counts| counts.waited_cycles);
    }
}

/// `sums`, empty at first, plus the counts between two looks.
fn added(
    sums: &ByClass<u64>,
    before: &LocksReport,
    after: &LocksReport,
    count: fn(&LockCounts) -> u64,
) -> ByClass<u64> {
    let more = before.classes.iter().zip(&after.classes).enumerate();
    let sum = |(number, (old, new)): (usize, (&LockClassReport, &LockClassReport))| {
        let sum = sums.get(number).map_or(0, |&(_, sum)| sum);
        (new.class, sum + count(&new.total).saturating_sub(count(&old.total)))
    };
    more.map(sum).collect()
}

fn summarise(
    setup: &KmemSetup,
    &(function, _, maps): &(&'static str, Allocator, &'static str),
    vcpus: u32,
    figures: &Figures,
    reference: &Figures,
) -> KmemCase {
    // 1. Counts per pair, without the lock classes that were never acquired.
    let pairs = setup.pairs as f64 * f64::from(vcpus) * setup.rounds as f64;
    let each = |count: u64| count as f64 / pairs;
    let by_class = |counts: &[(&'static str, u64)]| {
        counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|&(class, count)| (class, each(count)))
            .collect()
    };
    // 2. Times in microseconds, and ratios to the reference guest.
    let us: Vec<f64> = figures.passed.iter().map(|seconds| seconds * 1e6).collect();
    KmemCase {
        function,
        maps,
        vcpus,
        pair_us: Summary::of(&us),
        scaling: Summary::of_ratios(&reference.passed, &figures.passed),
        scaling_on_free_cores: Summary::of_ratios(&reference.ran, &figures.ran),
        flushes: each(figures.flushes),
        asked: each(figures.asked),
        merged: each(figures.merged),
        interrupts: each(figures.interrupts),
        skipped: each(figures.skipped),
        acquired: each(figures.locks.iter().map(|(_, count)| count).sum()),
        locks: by_class(&figures.locks),
        contested: by_class(&figures.contested),
        waited_cycles: by_class(&figures.waited_cycles),
    }
}

fn locks(guest: &Guest) -> Result<LocksReport, BenchError> {
    match guest.inspect("bench", &What::Locks)?.body {
        Body::Locks(report) => Ok(report),
        other => Err(BenchError::Answer(format!("{other:?}"))),
    }
}

/// Nanoseconds for which each of this process's vCPU threads has had a core, as far as Linux
/// reports it.
fn vcpu_times() -> HashMap<OsString, u64> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return HashMap::new() };
    let time = |task: fs::DirEntry| {
        let is_vcpu = fs::read_to_string(task.path().join("comm")).ok()?.starts_with("vmkern-vcpu");
        let stat = fs::read_to_string(task.path().join("schedstat")).ok().filter(|_| is_vcpu)?;
        Some((task.file_name(), stat.split_whitespace().next()?.parse().ok()?))
    };
    tasks.flatten().filter_map(time).collect()
}
