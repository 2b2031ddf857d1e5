//! The account of stalls on memory: for how long each thread has slept for it, and Linux's pressure
//! (`kernel/sched/psi.c`).
//!
//! A thread is stalled from the moment it is put to sleep with a wait message of
//! [`StallCause`] to the wakeup or the time-out. It works while it runs or can run, unless it is an
//! idle thread or one of the kernel's own daemons: what the pagedaemon does is part of the wait,
//! and pagezero works when nothing else does.
//!
//! **Protocol.** The threads are counted where their states change. The clock is read when a thread
//! stalls, when its stall ends, and when the state of the system changes; other sleeps and wakeups
//! only count. Readers compute the time since the last change themselves, so nothing here runs
//! because time passes. Locks: the scheduler's, throughout.

use vmkern_abi::addr::KPtr;
use vmkern_abi::kmem::WaitMessage;
use vmkern_abi::layout::{Thread, ThreadState};
use vmkern_abi::pressure::{StallCause, Stalls};

use super::Kern;
use super::sched::PRI_MAX_IDLE;
use super::thread::{PAGEDAEMON_TID, PAGEZERO_TID};
use crate::machine::{Cpu, PhysMem};

/// Whether `t` works while it runs or can run.
fn is_worker(t: &Thread) -> bool {
    t.base_priority.get() != PRI_MAX_IDLE && ![PAGEDAEMON_TID, PAGEZERO_TID].contains(&t.tid.get())
}

/// Records that `thread`, whose state is still the one before, goes to sleep with this message.
pub(super) fn sleeps<M: PhysMem + Cpu>(kern: &Kern<M>, thread: KPtr<Thread>, wmesg: WaitMessage) {
    let (t, pressure) = (kern.get(thread), &kern.sched().pressure);
    let before = pressure.stalls();
    // 1. A new thread that begins asleep has not worked yet.
    if t.state() == Some(ThreadState::Running) && is_worker(t) {
        pressure.working.dec();
    }
    // 2. A sleep for memory begins.
    let now = StallCause::of(wmesg).map(|_| {
        let now = kern.machine().micros();
        t.stall_since.set(now);
        pressure.stalled.inc();
        now
    });
    changed(kern, before, now);
}

/// Records that the sleep of `thread`, whose wait message is still there, ends.
pub(super) fn wakes<M: PhysMem + Cpu>(kern: &Kern<M>, thread: KPtr<Thread>) {
    let (t, pressure) = (kern.get(thread), &kern.sched().pressure);
    let Some(cause) = t.stall() else { return };
    let before = pressure.stalls();
    let now = kern.machine().micros();
    let slept = now.saturating_sub(t.stall_since.get());
    for micros in [&t.stalled[cause.index()], &pressure.micros[cause.index()]] {
        micros.update_locked(|micros| micros.saturating_add(slept));
    }
    t.stall_since.set(0);
    pressure.stalled.dec();
    changed(kern, before, Some(now));
}

/// Records that `thread`, which slept or is new, can run.
pub(super) fn can_run<M: PhysMem + Cpu>(kern: &Kern<M>, thread: KPtr<Thread>) {
    if is_worker(kern.get(thread)) {
        let before = kern.sched().pressure.stalls();
        kern.sched().pressure.working.inc();
        changed(kern, before, None);
    }
}

/// Records that `thread`, which runs, exits.
pub(super) fn exits<M: PhysMem + Cpu>(kern: &Kern<M>, thread: KPtr<Thread>) {
    if is_worker(kern.get(thread)) {
        let before = kern.sched().pressure.stalls();
        kern.sched().pressure.working.dec();
        changed(kern, before, None);
    }
}

/// Accounts the time during which the state was `before`, if that has changed. `now` is the time,
/// if the caller has read it.
fn changed<M: PhysMem + Cpu>(kern: &Kern<M>, before: Stalls, now: Option<u64>) {
    let pressure = &kern.sched().pressure;
    if pressure.stalls() != before {
        pressure.account(before, now.unwrap_or_else(|| kern.machine().micros()));
    }
}
