//! Sleep queues: which threads sleep on which channel.

use std::collections::{HashMap, HashSet};

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{SC_TABLESIZE, SleepQueue, Thread, ThreadState};

use super::context::Context;
use super::rule::rules;
use super::sched::{Item, Queue, label};

rules! {
    Some(check);
    Threads {
        SLEEPQ_CHAIN = "sleepq-chain":
            "a sleep queue is in the chain of its channel";
        SLEEPQ_CHANNEL = "sleepq-channel":
            "a channel has one sleep queue";
        SLEEPQ_LINK = "sleepq-link":
            "a sleep queue is linked both ways";
        SLEEPQ_SLEEPER = "sleepq-sleeper":
            "a thread on a sleep queue sleeps, and on that channel";
        SLEEPQ_MISSING = "sleepq-missing":
            "a sleeping thread is on a sleep queue";
        SLEEPQ_OWNER = "sleepq-owner":
            "each thread has a sleep queue, which it keeps or has lent to its channel";
        SLEEPQ_SPARE = "sleepq-spare":
            "a channel's sleep queue keeps a spare one for each sleeper but one";
    }
}

/// Checks all sleep queues.
fn check(ctx: &Context<'_>) {
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    // 1. Each queue: in the chain of its channel, the only one of that channel, with sleepers.
    let (mut asleep, mut channels) = (HashSet::new(), HashMap::new());
    let mut chain = (usize::MAX, KPtr::NULL);
    for queue in &ctx.sched.queues {
        let before = if chain.0 == queue.chain { chain.1 } else { KPtr::NULL };
        check_place(ctx, queue, before);
        chain = (queue.chain, queue.queue.at);
        let channel = queue.queue.value.wchan.get();
        if let Some(other) = channels.insert(channel, queue.queue.addr()) {
            ctx.finding(&SLEEPQ_CHANNEL, "sleep queue", queue.queue.addr(), || {
                format!("its channel {channel} is also that of the queue at {other}")
            });
        }
        check_sleepers(ctx, queue, &mut asleep);
    }
    // 2. Each sleeping thread is on a queue.
    for thread in &ctx.sched.threads {
        let t = &thread.value;
        if t.state() == Some(ThreadState::Sleeping) && !asleep.contains(&thread.addr()) {
            ctx.finding(&SLEEPQ_MISSING, "thread", thread.addr(), || {
                format!(
                    "{} sleeps on {}, but is on no sleep queue: nothing can wake it",
                    label(t),
                    t.wchan.get()
                )
            });
        }
    }
    // 3. Each queue is in use or owned by a thread.
    check_ownership(ctx);
}

const fn hash(channel: GuestVirt) -> u64 {
    (channel.get() >> 3 ^ channel.get() >> 10) % SC_TABLESIZE as u64
}

/// Checks that the queue is in the chain of its channel and links back to `before`.
fn check_place(ctx: &Context<'_>, queue: &Queue, before: KPtr<vmkern_abi::layout::SleepQueue>) {
    let (at, q) = (queue.queue.addr(), &queue.queue.value);
    if hash(q.wchan.get()) != queue.chain as u64 {
        ctx.finding(&SLEEPQ_CHAIN, "sleep queue", at, || {
            let own = hash(q.wchan.get());
            format!(
                "its channel {} belongs to chain {own}, but it is in chain {}",
                q.wchan.get(),
                queue.chain
            )
        });
    }
    if q.hash_prev.get() != before {
        ctx.finding(&SLEEPQ_CHAIN, "sleep queue", at, || {
            let prev = q.hash_prev.get().addr();
            format!(
                "its hash_prev is {prev}, but chain {} comes from {}",
                queue.chain,
                before.addr()
            )
        });
    }
}

/// Checks that its sleepers sleep on its channel, and that each but one has left a spare queue.
fn check_sleepers(ctx: &Context<'_>, queue: &Queue, asleep: &mut HashSet<GuestVirt>) {
    // 1. The sleepers: on the list of all threads, visited once, linked to the previous one.
    let (at, q) = (queue.queue.addr(), &queue.queue.value);
    let (mut before, mut next, mut count) = (KPtr::NULL, q.blocked.head.get(), 0);
    while let Some(pointer) = next.non_null() {
        let Some(thread) = ctx.sched.thread(pointer) else {
            ctx.finding(&SLEEPQ_LINK, "sleep queue", at, || {
                format!("it leads to {}, which is not on the list of threads", pointer.addr())
            });
            return;
        };
        let t = &thread.value;
        if !asleep.insert(thread.addr()) {
            ctx.finding(&SLEEPQ_LINK, "thread", thread.addr(), || {
                format!("{} is on sleep queues twice", label(t))
            });
            return;
        }
        if t.sq_prev.get() != before {
            ctx.finding(&SLEEPQ_LINK, "thread", thread.addr(), || {
                format!(
                    "its sq_prev is {}, but its queue comes from {}",
                    t.sq_prev.get().addr(),
                    before.addr()
                )
            });
        }
        check_sleeper(ctx, q, thread);
        count += 1;
        (before, next) = (pointer, t.sq_next.get());
    }
    // 2. The queue's own fields.
    check_ends(ctx, queue, before, count);
}

/// Checks the fields of a queue of `count` sleepers, the last of which is `last`.
fn check_ends(ctx: &Context<'_>, queue: &Queue, last: KPtr<Thread>, count: usize) {
    let (at, q) = (queue.queue.addr(), &queue.queue.value);
    if q.blocked.tail.get() != last {
        ctx.finding(&SLEEPQ_LINK, "sleep queue", at, || {
            format!(
                "its tail is {}, but its last sleeper is {}",
                q.blocked.tail.get().addr(),
                last.addr()
            )
        });
    }
    if count != queue.spares.len() + 1 {
        ctx.finding(&SLEEPQ_SPARE, "sleep queue", at, || {
            format!(
                "it should have a spare queue for each sleeper but one: sleepers {count}, spare \
                 queues {}",
                queue.spares.len()
            )
        });
    }
}

/// Checks that a thread on the queue sleeps on the channel of the queue.
fn check_sleeper(ctx: &Context<'_>, q: &SleepQueue, thread: &Item<Thread>) {
    let t = &thread.value;
    if t.state() != Some(ThreadState::Sleeping) || t.wchan.get() != q.wchan.get() {
        ctx.finding(&SLEEPQ_SLEEPER, "thread", thread.addr(), || {
            let (state, own) = (t.state.get(), t.wchan.get());
            format!(
                "{} is on the queue of {}, but its state is {state} and its channel {own}",
                label(t),
                q.wchan.get()
            )
        });
    }
}

/// Checks that a thread owns a sleep queue while it does not sleep, and that no two own the same.
fn check_ownership(ctx: &Context<'_>) {
    // 1. Each queue in use is there only once.
    let mut owners: HashMap<GuestVirt, GuestVirt> = HashMap::new();
    let in_use = ctx
        .sched
        .queues
        .iter()
        .flat_map(|queue| std::iter::once(&queue.queue).chain(&queue.spares));
    for queue in in_use {
        if owners.insert(queue.addr(), ctx.root_of(&ctx.roots.sched.sleepqueues)).is_some() {
            ctx.finding(&SLEEPQ_OWNER, "sleep queue", queue.addr(), || "it is in use twice");
        }
    }
    // 2. A thread owns a queue unless it sleeps: then the channel does.
    for thread in ctx.sched.threads.iter().chain(&ctx.sched.zombies) {
        let t = &thread.value;
        let own = t.sleepqueue.get();
        if (t.state() == Some(ThreadState::Sleeping)) != own.is_null() {
            ctx.finding(&SLEEPQ_OWNER, "thread", thread.addr(), || {
                format!(
                    "{} has state {}, but the sleep queue that it owns is {}",
                    label(t),
                    t.state.get(),
                    own.addr()
                )
            });
        }
        if let Some(own) = own.non_null()
            && let Some(other) = owners.insert(own.addr(), thread.addr())
        {
            ctx.finding(&SLEEPQ_OWNER, "thread", thread.addr(), || {
                format!("{} owns the sleep queue at {}, but so does {other}", label(t), own.addr())
            });
        }
    }
}
