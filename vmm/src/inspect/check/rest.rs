//! Whether the kernel is at rest.
//!
//! An operation that sleeps, or that was interrupted, leaves structures half made although no lock is held: an entry
//! that is not wired yet, a busy page, a pinned leaf of an object's index. While no thread is in the middle of an
//! operation, none of these may be.

use std::collections::HashSet;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{KernelRoots, Pcpu, Thread, ThreadState};

use super::memory::Memory;

/// Wait messages of threads that are between operations, or wait inside one with nothing half made.
const QUIET: [&str; 8] = ["request", "settle", "sleep", "psleep", "pgzero", "nokva", "stress", "spin"];

/// What the threads are at.
#[derive(Debug, Default)]
pub(super) struct Rest {
    is_quiet: bool,
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
                break;
            };
            rest.is_quiet &= match (thread.state(), thread.wait_message()) {
                (Some(ThreadState::Sleeping), Some(message)) => QUIET.contains(&message.to_string().as_str()),
                _ => idle.contains(&at.addr()),
            };
            if thread.state() == Some(ThreadState::Sleeping) {
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

    /// Whether somebody sleeps on `channel`.
    pub(super) fn has_sleeper(&self, channel: GuestVirt) -> bool {
        self.channels.contains(&channel)
    }
}

/// The idle thread of each CPU.
fn idle_threads(memory: &Memory<'_>, roots: &KernelRoots) -> Vec<GuestVirt> {
    let (mut idle, mut seen) = (Vec::new(), HashSet::new());
    let mut next = roots.cpuhead.get();
    while let Some(at) = next.non_null().filter(|at| seen.insert(at.addr())) {
        let Ok(cpu): Result<Pcpu, _> = memory.get("pcpu", at) else { break };
        idle.push(cpu.idlethread.get().addr());
        next = cpu.allcpu_next.get();
    }
    idle
}
