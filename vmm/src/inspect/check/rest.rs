//! Whether the kernel is at rest.
//!
//! An operation that sleeps, or that was interrupted, leaves structures half made although no lock is held: an entry
//! that is not wired yet, a busy page, a pinned leaf of an object's index. While no thread is in the middle of an
//! operation, none of these may be.

use std::collections::HashSet;

use vmkern_abi::layout::{KernelRoots, Thread, ThreadState};

use super::memory::Memory;

/// Wait messages of threads that are between operations, or wait inside one with nothing half made.
const QUIET: [&str; 6] = ["request", "settle", "sleep", "psleep", "pgzero", "nokva"];

/// How much may be half made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing: every thread waits for work.
    Quiet,
    /// What an operation makes before it is done.
    Busy,
}

impl Rest {
    /// Looks at all threads. A list of threads that makes no sense counts as busy.
    pub(super) fn read(memory: &Memory<'_>, roots: &KernelRoots) -> Self {
        let idle = roots.boot_pcpu.idlethread.get();
        let mut seen = HashSet::new();
        let mut next = roots.sched.all.head.get();
        while let Some(at) = next.non_null() {
            let Ok(thread): Result<Thread, _> = memory.get("thread", at) else { return Self::Busy };
            if !seen.insert(at.addr()) {
                return Self::Busy;
            }
            let is_quiet = match (thread.state(), thread.wait_message()) {
                (Some(ThreadState::Sleeping), Some(message)) => QUIET.contains(&message.to_string().as_str()),
                _ => at == idle,
            };
            if !is_quiet {
                return Self::Busy;
            }
            next = thread.all_next.get();
        }
        if seen.is_empty() { Self::Busy } else { Self::Quiet }
    }
}
