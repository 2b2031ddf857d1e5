//! Whether the kernel is at rest.
//!
//! An operation that sleeps, or that was interrupted, leaves structures half made although no lock
//! is held: an entry that is not wired yet, a busy page. While no thread is in the middle of an
//! operation, none of these may be. A thread that runs, or could, stands between any two
//! instructions besides: it may have changed one word and not yet another that no lock holds
//! together with it.
//!
//! An idle thread is at rest unless an interrupt handler works on its stack
//! ([`Thread::intr_nesting`]) or it serves others ([`Pcpu::serving`]).

use std::collections::{HashMap, HashSet};

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{KernelRoots, Pcpu, Thread, ThreadState};

use super::memory::Memory;

/// Wait messages of threads that are between operations, or wait inside one with nothing half made.
const QUIET: [&str; 9] =
    ["request", "settle", "sleep", "psleep", "pgzero", "nokva", "stress", "spin", "-"];

/// Wait message of a page fault that finds the page busy.
const FAULT: &str = "vmpfw";

/// What a thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupation {
    /// It waits for work, or rests.
    None,
    /// It sleeps in the middle of something.
    Asleep,
    /// It runs, or could, in the middle of something.
    Awake,
}

impl Occupation {
    /// That of `thread`; `serves` says whether it does something for others, of an idle thread.
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

/// What the threads are at.
#[derive(Debug, Default)]
pub(super) struct Rest {
    is_quiet: bool,
    awake: u64,
    faults: u64,
    channels: HashSet<GuestVirt>,
}

impl Rest {
    /// Looks at all threads. A list of threads that makes no sense counts as busy.
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

    /// Whether nothing may be half made: every thread waits for work.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Threads that stand between two instructions of an operation, interrupt handlers on idle
    /// threads included.
    pub(super) fn awake(&self) -> u64 {
        self.awake
    }

    /// Threads that sleep in a page fault until a page is not busy any more.
    pub(super) fn faults(&self) -> u64 {
        self.faults
    }

    /// Whether somebody sleeps on `channel`.
    pub(super) fn has_sleeper(&self, channel: GuestVirt) -> bool {
        self.channels.contains(&channel)
    }
}

/// The idle thread of each CPU, and whether it does something for others.
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
