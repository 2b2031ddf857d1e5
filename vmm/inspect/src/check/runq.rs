//! The CPUs' run queues, and other words of a CPU.

use std::collections::HashSet;
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{Pcpu, Preempt, RQ_PPQ, RunQueue, Thread, ThreadList, ThreadState};

use super::context::Context;
use super::rule::rules;
use super::sched::{Item, label};
use super::threads::CPU;
use super::waits::FLAG_WORD;

rules! {
    Some(check);
    Threads {
        COLD = "cold":
            "the boot is over";
        RUNQ_LINK = "runq-link":
            "a run queue is linked both ways, and a thread on no queue has no links";
        RUNQ_STATUS = "runq-status":
            "the status bits are those of the run queues that are not empty";
        RUNQ_PRIORITY = "runq-priority":
            "a thread is on the run queue of its priority";
        RUNQ_STATE = "runq-state":
            "a thread on a run queue is runnable";
        RUNQ_MISSING = "runq-missing":
            "a runnable thread is on a run queue";
    }
}

/// Checks the run queues.
fn check(ctx: &Context<'_>) {
    check_cold(ctx);
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    let mut queued = HashSet::new();
    for cpu in &ctx.sched.cpus {
        check_words(ctx, cpu);
        let queues = cpu.addr().add((offset_of!(Pcpu, runq) + offset_of!(RunQueue, queues)) as u64);
        let runq = &cpu.value.runq;
        for (number, list) in runq.queues.iter().enumerate() {
            let at = queues.add((number * size_of::<ThreadList>()) as u64);
            let is_marked = runq.status.get() >> number & 1 != 0;
            if is_marked == list.head.get().is_null() {
                ctx.finding(&RUNQ_STATUS, "run queue", at, || {
                    let head = list.head.get().addr();
                    format!(
                        "the status bit of list {number} is {}, but its head is {head}",
                        u8::from(is_marked)
                    )
                });
            }
            check_list(ctx, number, list, at, &mut queued);
        }
    }
    ctx.sched.threads.iter().for_each(|thread| check_thread(ctx, thread, &queued));
}

/// Checks that a runnable thread is on a run queue, unless it is an idle thread, and that a thread
/// on no run queue has no links.
fn check_thread(ctx: &Context<'_>, thread: &Item<Thread>, queued: &HashSet<GuestVirt>) {
    let t = &thread.value;
    let is_queued = queued.contains(&thread.addr());
    let idles = ctx.sched.idles(thread.at).is_some() && t.priority.get() == t.base_priority.get();
    if t.state() == Some(ThreadState::Runnable) && idles == is_queued {
        ctx.finding(&RUNQ_MISSING, "thread", thread.addr(), || {
            let place = if idles {
                "on a run queue, where idle threads are not"
            } else {
                "on no run queue"
            };
            format!("{} is Runnable, but {place}", label(t))
        });
    }
    let (next, prev) = (t.rq_next.get(), t.rq_prev.get());
    let has_links = !next.is_null() || !prev.is_null();
    if !is_queued && has_links {
        ctx.finding(&RUNQ_LINK, "thread", thread.addr(), || {
            let (next, prev) = (next.addr(), prev.addr());
            format!("{} is on no run queue, but has rq_next {next} and rq_prev {prev}", label(t))
        });
    }
}

fn check_list(
    ctx: &Context<'_>,
    number: usize,
    list: &ThreadList,
    at: GuestVirt,
    queued: &mut HashSet<GuestVirt>,
) {
    // 1. The threads: on the list of all threads, visited once, linked to the previous one.
    let (mut before, mut next) = (KPtr::NULL, list.head.get());
    while let Some(pointer) = next.non_null() {
        let Some(thread) = ctx.sched.thread(pointer) else {
            ctx.finding(&RUNQ_LINK, "run queue", at, || {
                format!(
                    "list {number} leads to {}, which is not on the list of threads",
                    pointer.addr()
                )
            });
            return;
        };
        let t: &Thread = &thread.value;
        if !queued.insert(thread.addr()) {
            ctx.finding(&RUNQ_LINK, "thread", thread.addr(), || {
                format!("{} is on the run queues twice, the second time on list {number}", label(t))
            });
            return;
        }
        if t.rq_prev.get() != before {
            ctx.finding(&RUNQ_LINK, "thread", thread.addr(), || {
                format!(
                    "its rq_prev is {}, but list {number} comes from {}",
                    t.rq_prev.get().addr(),
                    before.addr()
                )
            });
        }
        // 2. Each is runnable, with a priority of this list.
        check_queued(ctx, thread, number);
        (before, next) = (pointer, t.rq_next.get());
    }
    // 3. The list's tail.
    if list.tail.get() != before {
        ctx.finding(&RUNQ_LINK, "run queue", at, || {
            format!(
                "the tail of list {number} is {}, but its last thread is {}",
                list.tail.get().addr(),
                before.addr()
            )
        });
    }
}

/// Checks that a thread may be on the run queue, on list `number`.
fn check_queued(ctx: &Context<'_>, thread: &Item<Thread>, number: usize) {
    let t: &Thread = &thread.value;
    if t.state() != Some(ThreadState::Runnable) {
        ctx.finding(&RUNQ_STATE, "thread", thread.addr(), || {
            format!("{} is on the run queue, but its state is {}", label(t), t.state.get())
        });
    }
    if usize::from(t.priority.get() / RQ_PPQ) != number {
        ctx.finding(&RUNQ_PRIORITY, "thread", thread.addr(), || {
            format!("{} has priority {}, but is on list {number}", label(t), t.priority.get())
        });
    }
}

/// Checks a CPU's words that have only a few valid values.
fn check_words(ctx: &Context<'_>, cpu: &Item<Pcpu>) {
    let reason = cpu.value.need_resched.get();
    if reason.known().is_none() {
        ctx.finding(&CPU, "CPU", cpu.addr(), || {
            format!("need_resched is {reason}, expected 0 to {}", Preempt::SliceOver.code())
        });
    }
    if !cpu.value.serving.get().is_known() {
        ctx.finding(&FLAG_WORD, "CPU", cpu.addr(), || {
            format!("serving is {}, expected 0 or 1", cpu.value.serving.get())
        });
    }
    let quantum = (ctx.roots.meter.hz.get() / 10).max(1);
    if cpu.value.slice.get() > quantum {
        ctx.finding(&CPU, "CPU", cpu.addr(), || {
            format!(
                "its time slice has {} ticks left, but a whole one has {quantum}",
                cpu.value.slice.get()
            )
        });
    }
}

fn check_cold(ctx: &Context<'_>) {
    let cold = &ctx.roots.sched.cold;
    if cold.is_set() {
        ctx.finding(&COLD, "scheduler", ctx.root_of(cold), || {
            format!("cold is {}, but the kernel serves requests", cold.get())
        });
    }
}
