//! The kernel's account of stalls on memory.

use vmkern_abi::layout::{PressureLine, ThreadState};
use vmkern_abi::pressure::{PERIOD, StallCause, WHOLE};

use super::constants::{PAGEDAEMON_TID, PAGEZERO_TID};
use super::context::Context;
use super::rule::rules;
use super::sched::label;
use crate::read::clock;

rules! {
    Some(check);
    Threads {
        STALL_COUNT = "stall-count":
            "the scheduler's pressure counts the threads that sleep for memory, and those that \
             run or can run, without idle threads, pagedaemon and pagezero";
        STALL_TIME = "stall-time":
            "a thread that sleeps for memory has a beginning that is past, and no other thread \
             has one; what threads have been stalled is part of what all have; `full` is part of \
             `some`, which is part of the time since boot";
    }
}

/// Checks the account, unless it was being changed.
fn check(ctx: &Context<'_>) {
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    check_counts(ctx);
    let now = clock::now(ctx.memory.source()).map_or(0, |now| now.micros);
    check_threads(ctx, now);
    check_lines(ctx, now);
}

fn check_counts(ctx: &Context<'_>) {
    let pressure = &ctx.roots.sched.pressure;
    let threads = &ctx.sched.threads;
    let stalled = threads.iter().filter(|thread| thread.value.stall().is_some()).count();
    let daemons = [PAGEDAEMON_TID, PAGEZERO_TID];
    let working = threads.iter().filter(|thread| {
        let state = thread.value.state();
        matches!(state, Some(ThreadState::Running | ThreadState::Runnable))
            && ctx.sched.idles(thread.at).is_none()
            && !daemons.contains(&thread.value.tid.get())
    });
    let counts =
        [("stalled", &pressure.stalled, stalled), ("working", &pressure.working, working.count())];
    for (name, field, found) in counts {
        if field.get() as usize != found {
            ctx.finding(&STALL_COUNT, "scheduler", ctx.root_of(field), || {
                format!("it counts {} {name} threads, but there are {found}", field.get())
            });
        }
    }
}

/// Checks the times of each thread, and that all threads together have not more than the sum.
fn check_threads(ctx: &Context<'_>, now: u64) {
    // 1. The beginning of a sleep.
    for thread in &ctx.sched.threads {
        let (t, since) = (&thread.value, thread.value.stall_since.get());
        let latest = if t.stall().is_some() { now } else { 0 };
        if since > latest {
            ctx.finding(&STALL_TIME, "thread", thread.addr(), || {
                format!(
                    "{} has been stalled since {since} us, but sleeps in {:?} at {now} us",
                    label(t),
                    t.wait_message().map_or_else(String::new, |message| message.to_string())
                )
            });
        }
    }
    // 2. The sums. Threads that have exited are in the scheduler's only.
    for (cause, all) in StallCause::ALL.into_iter().zip(&ctx.roots.sched.pressure.micros) {
        let of = |thread: &super::sched::Item<_>| stalled(&thread.value, cause);
        let sum = ctx.sched.threads.iter().map(of).fold(0, u64::saturating_add);
        if sum > all.get() {
            ctx.finding(&STALL_TIME, "scheduler", ctx.root_of(all), || {
                format!(
                    "all threads have slept {} us in {:?}, but those that exist {sum} us",
                    all.get(),
                    cause.name()
                )
            });
        }
    }
}

fn stalled(thread: &vmkern_abi::layout::Thread, cause: StallCause) -> u64 {
    thread.stalled[cause.index()].get()
}

fn check_lines(ctx: &Context<'_>, now: u64) {
    let pressure = &ctx.roots.sched.pressure;
    let since = pressure.since.get();
    let wrong = |line: &PressureLine, detail: String| {
        ctx.finding(&STALL_TIME, "scheduler", ctx.root_of(line), || detail);
    };
    // 1. Each line within its bounds.
    for (name, line) in [("some", &pressure.some), ("full", &pressure.full)] {
        let now_values = line.get();
        if since > now || now_values.total > since || now_values.sampled > since % PERIOD {
            wrong(
                line,
                format!("{name} is {now_values:?}, accounted until {since} us of {now} us"),
            );
        } else if now_values.avg10.max(now_values.avg60) > WHOLE {
            wrong(line, format!("{name} is {now_values:?}, but the averages are at most {WHOLE}"));
        }
    }
    // 2. A full stall is a stall.
    let (some, full) = (pressure.some.get(), pressure.full.get());
    if full.total > some.total || full.sampled > some.sampled {
        wrong(&pressure.full, format!("full is {full:?}, more than some, which is {some:?}"));
    }
}
