//! Whether the kernel is quiet.
//!
//! An operation that sleeps, or that was interrupted, leaves structures half made although no lock
//! is held: an entry that is not wired yet, a busy page. While no thread is in the middle of an
//! operation, these are errors. A running or runnable thread may also be between any two
//! instructions: it may have changed one word but not yet a related word that no lock guards.
//!
//! An idle thread is quiet unless an interrupt handler runs on its stack ([`Thread::intr_nesting`])
//! or it works for other CPUs ([`Pcpu::serving`]).

use std::collections::{HashMap, HashSet};

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{KernelRoots, Pcpu, Thread, ThreadState};

use super::memory::Memory;

/// Wait messages of threads that are between operations, or wait inside one that has left nothing
/// half made.
const QUIET: [&str; 10] =
    ["request", "settle", "sleep", "psleep", "pgzero", "nokva", "stress", "spin", "balloon", "-"];

/// Wait message of a page fault that finds the page busy.
const FAULT: &str = "vmpfw";

/// What a thread is occupied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupation {
    /// It waits for work or is idle.
    None,
    /// It sleeps in the middle of an operation.
    Asleep,
    /// It is running or runnable in the middle of an operation.
    Awake,
}

impl Occupation {
    /// The occupation of `thread`. For an idle thread, `serves` says whether it works for other
    /// CPUs.
    fn of(thread: &Thread, serves: Option<bool>) -> Self {
        match (thread.state(), thread.wait_message(), serves) {
            (Some(ThreadState::Sleeping), Some(message), _)
                if QUIET.contains(&message.to_string().as_str()) =>
            {
                Self::None
            }
            (Some(ThreadState::Sleeping), ..) => Self::Asleep,
            (.., Some(false)) if thread.intr_nesting.get() == 0 => Self::None,
            _ => Self::Awake,
        }
    }
}

/// What the threads are occupied with.
#[derive(Debug, Default)]
pub(super) struct Rest {
    is_quiet: bool,
    awake: u64,
    faults: u64,
    channels: HashSet<GuestVirt>,
}

impl Rest {
    /// Examines all threads. A damaged list of threads counts as busy.
    pub(super) fn read(memory: &Memory<'_>, roots: &KernelRoots) -> Self {
        let idle = idle_threads(memory, roots);
        let (mut seen, mut rest) = (HashSet::new(), Self { is_quiet: true, ..Self::default() });
        let mut next = roots.sched.all.head.get();
        while let Some(at) = next.non_null() {
            let thread: Result<Thread, _> = memory.get("thread", at);
            let Some(thread) = thread.ok().filter(|_| seen.insert(at.addr())) else {
                rest.is_quiet = false;
                rest.awake += 1;
                break;
            };
            let occupation = Occupation::of(&thread, idle.get(&at.addr()).copied());
            rest.is_quiet &= occupation == Occupation::None;
            rest.awake += u64::from(occupation == Occupation::Awake);
            if thread.state() == Some(ThreadState::Sleeping) {
                let in_fault =
                    thread.wait_message().is_some_and(|message| message.to_string() == FAULT);
                rest.faults += u64::from(in_fault);
                rest.channels.insert(thread.wchan.get());
            }
            next = thread.all_next.get();
        }
        rest.is_quiet &= !seen.is_empty();
        rest
    }

    /// Whether every thread waits for work, so nothing may be half made.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// The number of threads between two instructions of an operation, including interrupt handlers
    /// on idle threads.
    pub(super) fn awake(&self) -> u64 {
        self.awake
    }

    /// The number of threads whose page fault waits for a busy page.
    pub(super) fn faults(&self) -> u64 {
        self.faults
    }

    /// Whether a thread sleeps on `channel`.
    pub(super) fn has_sleeper(&self, channel: GuestVirt) -> bool {
        self.channels.contains(&channel)
    }
}

/// The idle thread of each CPU, and whether it works for other CPUs.
fn idle_threads(memory: &Memory<'_>, roots: &KernelRoots) -> HashMap<GuestVirt, bool> {
    let (mut idle, mut seen) = (HashMap::new(), HashSet::new());
    let mut next = roots.cpuhead.get();
    while let Some(at) = next.non_null().filter(|at| seen.insert(at.addr())) {
        let Ok(cpu): Result<Pcpu, _> = memory.get("pcpu", at) else { break };
        idle.insert(cpu.idlethread.get().addr(), cpu.serving.is_set());
        next = cpu.allcpu_next.get();
    }
    idle
}
