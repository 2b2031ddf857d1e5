//! Statistics of locks, and of TLB shootdowns.

use serde::Serialize;
use vmkern_abi::layout::{LOCK_CLASS_NAMES, LockStats, Pcpu, SX_CLASS, TlbStats};

use super::survey::Survey;
use super::threads::CPUS_MAX;

/// Statistics of the locks of a class. Cycles are TSC cycles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockCounts {
    /// Acquisitions; of a recursive lock, the outermost ones.
    pub acquired: u64,
    /// Acquisitions that had to wait for another thread.
    pub contested: u64,
    /// Cycles spent spinning in them.
    pub waited_cycles: u64,
    /// Cycles for which the locks were held.
    pub held_cycles: u64,
    /// The longest single hold, in cycles.
    pub longest_cycles: u64,
}

impl LockCounts {
    fn of(stats: &LockStats) -> Self {
        Self {
            acquired: stats.acquired.get(),
            contested: stats.contested.get(),
            waited_cycles: stats.waited.get(),
            held_cycles: stats.held.get(),
            longest_cycles: stats.longest.get(),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            acquired: self.acquired.saturating_add(other.acquired),
            contested: self.contested.saturating_add(other.contested),
            waited_cycles: self.waited_cycles.saturating_add(other.waited_cycles),
            held_cycles: self.held_cycles.saturating_add(other.held_cycles),
            longest_cycles: self.longest_cycles.max(other.longest_cycles),
        }
    }
}

/// A class of locks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockClassReport {
    /// The kernel's name for its locks.
    pub class: &'static str,
    /// `mutex` or `sx`.
    pub kind: &'static str,
    /// All CPUs together.
    pub total: LockCounts,
    /// Each CPU, by number.
    pub cpus: Vec<LockCounts>,
}

/// A CPU's statistics of TLB flushes and shootdowns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TlbReport {
    /// Ranges that it flushed for itself.
    pub flushes: u64,
    /// Ranges for which it asked other CPUs to flush, too.
    pub shootdowns: u64,
    /// CPUs that it asked.
    pub asked: u64,
    /// CPUs that it had to interrupt.
    pub interrupts: u64,
    /// Idle CPUs that it left alone.
    pub skipped: u64,
    /// Requests of other CPUs that it answered.
    pub answered: u64,
    /// Answers that took no extra flush.
    pub merged: u64,
    /// Full flushes after it had been left alone.
    pub caught_up: u64,
}

impl TlbReport {
    fn of(stats: &TlbStats) -> Self {
        Self {
            flushes: stats.flushes.get(),
            shootdowns: stats.shootdowns.get(),
            asked: stats.asked.get(),
            interrupts: stats.interrupts.get(),
            skipped: stats.skipped.get(),
            answered: stats.answered.get(),
            merged: stats.merged.get(),
            caught_up: stats.caught_up.get(),
        }
    }
}

/// A CPU's statistics of interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InterruptReport {
    /// Timer interrupts.
    pub clock_interrupts: u64,
    /// The most pages that it processed while it held a mutex, without a point at which it could
    /// take interrupts.
    pub longest_pages: u64,
}

/// `inspect locks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LocksReport {
    /// Whether hold times are counted: `debug.lock.prof.enable`.
    pub profiling: bool,
    /// The classes in the order of nesting, outermost first; sx locks last.
    pub classes: Vec<LockClassReport>,
    /// Translations, by CPU.
    pub tlb: Vec<TlbReport>,
    /// Interrupts, by CPU.
    pub cpus: Vec<InterruptReport>,
}

pub(super) fn locks(survey: &Survey<'_, '_>) -> LocksReport {
    let first = survey.roots().map(|roots| roots.cpuhead.get()).unwrap_or_default();
    let list = survey.view.list("pcpu", first, |cpu| cpu.allcpu_next.get()).at_most(CPUS_MAX);
    let cpus: Vec<Pcpu> =
        list.map_while(|item| survey.damage.ok(item)).map(|(_, cpu)| cpu).collect();
    let class = |(number, &class): (usize, &&'static str)| {
        let cpus: Vec<_> = cpus.iter().map(|cpu| LockCounts::of(&cpu.locks[number])).collect();
        let total = cpus.iter().fold(LockCounts::default(), |sum, &counts| sum.plus(counts));
        LockClassReport {
            class,
            kind: if number == SX_CLASS { "sx" } else { "mutex" },
            total,
            cpus,
        }
    };
    LocksReport {
        profiling: cpus.first().is_some_and(|cpu| cpu.lock_prof.is_set()),
        classes: LOCK_CLASS_NAMES.iter().enumerate().map(class).collect(),
        tlb: cpus.iter().map(|cpu| TlbReport::of(&cpu.tlb)).collect(),
        cpus: cpus.iter().map(interrupts).collect(),
    }
}

fn interrupts(cpu: &Pcpu) -> InterruptReport {
    InterruptReport {
        clock_interrupts: cpu.clock_interrupts.get(),
        longest_pages: cpu.longest_pages.get(),
    }
}
