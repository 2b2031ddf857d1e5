//! Time-outs: the pairing heap that links the threads with a time-out.

use std::collections::{HashMap, HashSet};

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{Callout, Thread};

use super::context::Context;
use super::rule::rules;
use super::sched::{Item, label};

rules! {
    Some(check);
    Threads {
        CALLOUT_QUEUED = "callout-queued":
            "exactly the threads with a time-out are in the heap";
        CALLOUT_LINK = "callout-link":
            "the heap of time-outs is linked";
        CALLOUT_ORDER = "callout-order":
            "no time-out is due before the one above it in the heap";
        CALLOUT_SEQUENCE = "callout-sequence":
            "time-outs are numbered in the order in which they were armed";
        CALLOUT_DUE = "callout-due":
            "no time-out is overdue";
    }
}

/// Checks the heap of time-outs.
fn check(ctx: &Context<'_>) {
    let sched = &ctx.roots.sched;
    if sched.lock.owner.get() != 0 {
        return;
    }
    // 1. The heap, from the root down: each thread in it once, linked both ways.
    let mut queued = HashSet::new();
    check_root(ctx, sched.callouts.get());
    // Each entry is a thread in the heap, with the thread above it.
    let mut below: Vec<(KPtr<Thread>, Option<KPtr<Thread>>)> = vec![(sched.callouts.get(), None)];
    while let Some((first, parent)) = below.pop() {
        check_siblings(ctx, first, parent, &mut queued, &mut below);
    }
    // 2. The threads: each knows whether it is in the heap, under a unique number.
    let mut sequences: HashMap<u64, GuestVirt> = HashMap::new();
    for thread in &ctx.sched.threads {
        let (t, callout) = (&thread.value, &thread.value.callout);
        let sequence = callout.sequence.get();
        if (sequence != 0) != queued.contains(&thread.addr()) {
            ctx.finding(&CALLOUT_QUEUED, "thread", thread.addr(), || {
                let place = if sequence == 0 {
                    "in the heap of time-outs"
                } else {
                    "not in the heap of time-outs"
                };
                format!("{} has the time-out number {sequence}, but is {place}", label(t))
            });
        }
        if sequence == 0 {
            continue;
        }
        check_armed(ctx, thread, &mut sequences);
    }
}

/// Checks an armed time-out: its number is unique, and its tick is in the future.
fn check_armed(ctx: &Context<'_>, thread: &Item<Thread>, sequences: &mut HashMap<u64, GuestVirt>) {
    let (t, callout) = (&thread.value, &thread.value.callout);
    let (sched, sequence) = (&ctx.roots.sched, callout.sequence.get());
    if sequence > sched.callout_sequence.get() {
        ctx.finding(&CALLOUT_SEQUENCE, "thread", thread.addr(), || {
            format!(
                "its time-out has number {sequence}, but only {} were armed",
                sched.callout_sequence.get()
            )
        });
    }
    if let Some(other) = sequences.insert(sequence, thread.addr()) {
        ctx.finding(&CALLOUT_SEQUENCE, "thread", thread.addr(), || {
            format!("its time-out has the same number, {sequence}, as that of {other}")
        });
    }
    // A pause lets time-outs that are due wake their threads first.
    let (deadline, ticks) = (callout.deadline.get(), ctx.roots.meter.ticks.get());
    if deadline <= ticks {
        ctx.finding(&CALLOUT_DUE, "thread", thread.addr(), || {
            format!("{} was due at tick {deadline}, but sleeps at tick {ticks}", label(t))
        });
    }
}

fn check_root(ctx: &Context<'_>, root: KPtr<Thread>) {
    let Some(thread) = root.non_null().and_then(|root| ctx.sched.thread(root)) else { return };
    let Callout { sibling, prev, .. } = &thread.value.callout;
    if !sibling.get().is_null() || !prev.get().is_null() {
        ctx.finding(&CALLOUT_LINK, "thread", thread.addr(), || {
            let (sibling, prev) = (sibling.get().addr(), prev.get().addr());
            format!(
                "it is the root of the heap of time-outs, but has sibling {sibling} and prev {prev}"
            )
        });
    }
}

/// Checks the children of `parent` from `first` on, and adds their children to `below`.
fn check_siblings(
    ctx: &Context<'_>,
    first: KPtr<Thread>,
    parent: Option<KPtr<Thread>>,
    queued: &mut HashSet<GuestVirt>,
    below: &mut Vec<(KPtr<Thread>, Option<KPtr<Thread>>)>,
) {
    // 1. The thread: on the list of all threads, and not visited before.
    let (mut before, mut next) = (parent, first);
    while let Some(pointer) = next.non_null() {
        let Some(thread) = ctx.sched.thread(pointer) else {
            ctx.finding(&CALLOUT_LINK, "scheduler", ctx.root_of(&ctx.roots.sched.callouts), || {
                format!(
                    "the heap of time-outs leads to {}, which is not on the list of threads",
                    pointer.addr()
                )
            });
            return;
        };
        let callout = &thread.value.callout;
        if !queued.insert(thread.addr()) {
            ctx.finding(
                &CALLOUT_LINK,
                "thread",
                thread.addr(),
                || "it is in the heap of time-outs twice",
            );
            return;
        }
        // 2. Its place: the link back, and due no earlier than the thread above it.
        check_prev(ctx, thread, before);
        check_order(ctx, thread, parent);
        // 3. Its children come later, its next sibling now.
        below.push((callout.child.get(), Some(pointer)));
        // The root must not have siblings: that is a finding already, so they are skipped.
        if parent.is_none() {
            return;
        }
        (before, next) = (Some(pointer), callout.sibling.get());
    }
}

/// Checks that `thread` links back to `before`, its predecessor in the heap.
fn check_prev(ctx: &Context<'_>, thread: &Item<Thread>, before: Option<KPtr<Thread>>) {
    let callout = &thread.value.callout;
    if let Some(expected) = before
        && callout.prev.get() != expected
    {
        ctx.finding(&CALLOUT_LINK, "thread", thread.addr(), || {
            format!(
                "its prev is {}, but the heap comes from {}",
                callout.prev.get().addr(),
                expected.addr()
            )
        });
    }
}

/// Checks that `thread` is not due before the thread above it in the heap.
fn check_order(ctx: &Context<'_>, thread: &Item<Thread>, parent: Option<KPtr<Thread>>) {
    let callout = &thread.value.callout;
    let key = |callout: &Callout| (callout.deadline.get(), callout.sequence.get());
    if let Some(above) = parent.and_then(|parent| ctx.sched.thread(parent))
        && key(&above.value.callout) > key(callout)
    {
        ctx.finding(&CALLOUT_ORDER, "thread", thread.addr(), || {
            let (own, other) = (key(callout), key(&above.value.callout));
            format!(
                "it is due at (tick, number) {own:?}, before the one above it in the heap, \
                 {other:?}"
            )
        });
    }
}
