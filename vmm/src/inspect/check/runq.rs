//! The run queue, and what the scheduler keeps besides.

use std::collections::HashSet;
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{Preempt, RQ_PPQ, RunQueue, Scheduler, Thread, ThreadList, ThreadState};

use super::context::Context;
use super::sched::label;

/// Checks the run queue.
pub(super) fn check(ctx: &Context<'_>) {
    let sched = &ctx.roots.sched;
    check_words(ctx, sched);
    if sched.lock.owner.get() != 0 {
        return;
    }
    let mut queued = HashSet::new();
    let base = ctx.root_of(&sched.runq);
    for (number, list) in sched.runq.queues.iter().enumerate() {
        let at = base.add((offset_of!(RunQueue, queues) + number * size_of::<ThreadList>()) as u64);
        let is_marked = sched.runq.status.get() >> number & 1 != 0;
        if is_marked == list.head.get().is_null() {
            ctx.finding("runq-status", "run queue", at, || {
                let head = list.head.get().addr();
                format!("the status bit of list {number} is {}, but its head is {head}", u8::from(is_marked))
            });
        }
        check_list(ctx, number, list, at, &mut queued);
    }
    for thread in &ctx.sched.threads {
        let t = &thread.value;
        let idles = thread.at == sched.idle.get() && t.priority.get() == t.base_priority.get();
        if t.state() == Some(ThreadState::Runnable) && !idles && !queued.contains(&thread.addr()) {
            ctx.finding("runq-missing", "thread", thread.addr(), || {
                format!("{} is Runnable, but on no run queue", label(t))
            });
        }
    }
}

fn check_list(ctx: &Context<'_>, number: usize, list: &ThreadList, at: GuestVirt, queued: &mut HashSet<GuestVirt>) {
    let (mut before, mut next) = (KPtr::NULL, list.head.get());
    while let Some(pointer) = next.non_null() {
        let Some(thread) = ctx.sched.thread(pointer) else {
            ctx.finding("runq-link", "run queue", at, || {
                format!("list {number} leads to {}, which is not on the list of threads", pointer.addr())
            });
            return;
        };
        let t: &Thread = &thread.value;
        if !queued.insert(thread.addr()) {
            ctx.finding("runq-link", "thread", thread.addr(), || {
                format!("{} is on the run queue twice, the second time on list {number}", label(t))
            });
            return;
        }
        if t.rq_prev.get() != before {
            ctx.finding("runq-link", "thread", thread.addr(), || {
                format!("its rq_prev is {}, but list {number} comes from {}", t.rq_prev.get().addr(), before.addr())
            });
        }
        if t.state() != Some(ThreadState::Runnable) {
            ctx.finding("runq-state", "thread", thread.addr(), || {
                format!("{} is on the run queue, but its state is {}", label(t), t.state.get())
            });
        }
        if usize::from(t.priority.get() / RQ_PPQ) != number {
            ctx.finding("runq-priority", "thread", thread.addr(), || {
                format!("{} has priority {}, but is on list {number}", label(t), t.priority.get())
            });
        }
        (before, next) = (pointer, t.rq_next.get());
    }
    if list.tail.get() != before {
        ctx.finding("runq-link", "run queue", at, || {
            format!("the tail of list {number} is {}, its last thread {}", list.tail.get().addr(), before.addr())
        });
    }
}

/// Words that have few values.
fn check_words(ctx: &Context<'_>, sched: &Scheduler) {
    let reason = sched.need_resched.get();
    if reason > Preempt::SliceOver as u32 {
        ctx.finding("sched-words", "scheduler", ctx.root_of(&sched.need_resched), || {
            format!("need_resched is {reason}, and has values 0 to {}", Preempt::SliceOver as u32)
        });
    }
    // Handlers run with interrupts deferred, so that there is one at the most, and none while a vCPU is held at rest.
    let (nesting, most) = (sched.intr_nesting.get(), u32::from(ctx.roots.held_locks.get() != 0));
    if nesting > most {
        ctx.finding("sched-words", "scheduler", ctx.root_of(&sched.intr_nesting), || {
            format!("intr_nesting is {nesting}, but no handler is running")
        });
    }
    if sched.cold.get() != 0 {
        ctx.finding("sched-words", "scheduler", ctx.root_of(&sched.cold), || {
            format!("cold is {}, but the kernel serves requests", sched.cold.get())
        });
    }
    let quantum = (ctx.roots.meter.hz.get() / 10).max(1);
    if sched.slice.get() > quantum {
        ctx.finding("sched-words", "scheduler", ctx.root_of(&sched.slice), || {
            format!("the time slice has {} ticks left, a whole one has {quantum}", sched.slice.get())
        });
    }
}
