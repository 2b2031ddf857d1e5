//! Threads: their lists, their numbers, and what each field may say.

use std::collections::HashMap;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{TID_HASH, Thread, ThreadState};

use super::context::Context;
use super::sched::{Item, chain, label};

/// Priority of the idle thread.
const IDLE_PRIORITY: u8 = 255;

/// Wait messages of threads that wait for work.
const WORK: [&str; 2] = ["request", "psleep"];

/// Checks all threads.
pub(super) fn check(ctx: &Context<'_>) {
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    check_list(ctx);
    check_numbers(ctx);
    check_idle(ctx);
    ctx.sched.threads.iter().for_each(|thread| check_thread(ctx, thread));
    check_zombies(ctx);
    let running = ctx.sched.threads.iter().filter(|t| t.value.state() == Some(ThreadState::Running)).count();
    if running != 1 {
        ctx.finding("one-running", "scheduler", ctx.root_of(&ctx.roots.sched), || {
            format!("{running} threads are running on 1 CPU")
        });
    }
}

fn check_list(ctx: &Context<'_>) {
    let all = &ctx.roots.sched.all;
    let mut before = all.head.get();
    for (number, thread) in ctx.sched.threads.iter().enumerate() {
        let expected = if number == 0 { GuestVirt::new(0) } else { before.addr() };
        let prev = thread.value.all_prev.get().addr();
        if prev != expected {
            ctx.finding("thread-list", "thread", thread.addr(), || {
                format!("its all_prev is {prev}, but the list of threads comes from {expected}")
            });
        }
        before = thread.at;
    }
    let tail = all.tail.get();
    if tail != before {
        ctx.finding("thread-list", "scheduler", ctx.root_of(all), || {
            format!("the tail of the list of threads is {}, its last thread {}", tail.addr(), before.addr())
        });
    }
    let (counted, listed) = (ctx.roots.meter.thread_count.get(), ctx.sched.threads.len() as u64);
    if counted != listed {
        ctx.finding("thread-count", "vmmeter", ctx.root_of(&ctx.roots.meter.thread_count), || {
            format!("thread_count says {counted}, the list of threads has {listed}")
        });
    }
}

/// Each thread is in the table of numbers, once, in the chain of its number.
fn check_numbers(ctx: &Context<'_>) {
    let mut found: HashMap<GuestVirt, usize> = HashMap::new();
    let mut taken: HashMap<u32, GuestVirt> = HashMap::new();
    for (number, head) in ctx.roots.sched.tids.iter().enumerate() {
        for thread in chain(&ctx.memory, ctx.findings(), "thread", head.get(), |t: &Thread| t.tid_next.get()) {
            *found.entry(thread.addr()).or_default() += 1;
            let tid = thread.value.tid.get();
            if tid as usize % TID_HASH != number {
                ctx.finding("thread-number", "thread", thread.addr(), || {
                    format!("its number {tid} belongs to chain {}, but it is in chain {number}", tid as usize % TID_HASH)
                });
            }
            if ctx.sched.thread(thread.at).is_none() {
                ctx.finding("thread-number", "thread", thread.addr(), || {
                    format!("number {tid} finds it, but it is not on the list of threads")
                });
            }
        }
    }
    for thread in &ctx.sched.threads {
        let (tid, at) = (thread.value.tid.get(), thread.addr());
        let times = found.get(&at).copied().unwrap_or(0);
        if times != 1 {
            ctx.finding("thread-number", "thread", at, || {
                format!("it is on the list of threads, and {times} times in the table of numbers")
            });
        }
        if let Some(other) = taken.insert(tid, at) {
            ctx.finding("thread-number", "thread", at, || format!("its number {tid} is also that of {other}"));
        }
    }
}

fn check_idle(ctx: &Context<'_>) {
    let at = ctx.roots.sched.idle.get();
    let problem = match ctx.sched.thread(at) {
        None => Some("is not on the list of threads".to_owned()),
        Some(idle) if idle.value.base_priority.get() != IDLE_PRIORITY => {
            Some(format!("has base priority {}, not {IDLE_PRIORITY}", idle.value.base_priority.get()))
        }
        Some(idle) if idle.value.kstack.get() != GuestVirt::new(0) => {
            Some(format!("is what the boot became, but has a stack at {}", idle.value.kstack.get()))
        }
        Some(_) => None,
    };
    if let Some(problem) = problem {
        ctx.finding("idle-thread", "scheduler", ctx.root_of(&ctx.roots.sched.idle), || {
            format!("the idle thread, {}, {problem}", at.addr())
        });
    }
    let pageproc = ctx.roots.pageproc.get();
    if !pageproc.is_null() && ctx.sched.thread(pageproc).is_none() {
        ctx.finding("pageproc", "kernel roots", ctx.root_of(&ctx.roots.pageproc), || {
            format!("the pagedaemon, {}, is not on the list of threads", pageproc.addr())
        });
    }
}

fn check_thread(ctx: &Context<'_>, thread: &Item<Thread>) {
    let t = &thread.value;
    let fault = |detail: String| ctx.finding("thread-state", "thread", thread.addr(), || detail);
    let state = match t.state() {
        None | Some(ThreadState::Inactive | ThreadState::Zombie) => {
            return fault(format!("{} is on the list of threads, but its state is {}", label(t), t.state.get()));
        }
        Some(state) => state,
    };
    if (state == ThreadState::Sleeping) != (t.wchan.get().get() != 0) {
        fault(format!("{} is {state:?}, but its channel is {}", label(t), t.wchan.get()));
    }
    if (state == ThreadState::Sleeping) == (t.wmesg[0].get() == 0) {
        fault(format!("{} is {state:?}, but its wait message begins with {:#x}", label(t), t.wmesg[0].get()));
    }
    if state != ThreadState::Sleeping && t.callout.sequence.get() != 0 {
        fault(format!("{} is {state:?}, but has a time-out", label(t)));
    }
    if state != ThreadState::Running && (t.critnest.get() != 0 || t.owepreempt.get() != 0) {
        let (depth, owed) = (t.critnest.get(), t.owepreempt.get());
        fault(format!("{} is {state:?}, but in {depth} critical sections, with preemption owed {owed}", label(t)));
    }
    if t.owepreempt.get() > 1 || t.timed_out.get() > 1 || (state == ThreadState::Sleeping && t.timed_out.get() != 0) {
        fault(format!("{} is {state:?}, owepreempt {}, timed_out {}", label(t), t.owepreempt.get(), t.timed_out.get()));
    }
    // A sleep may lend a priority, which is given back before the thread waits for work.
    let (now, own) = (t.priority.get(), t.base_priority.get());
    let waits_for_work = t.wait_message().is_some_and(|message| WORK.contains(&message.to_string().as_str()));
    if waits_for_work && now != own {
        fault(format!("{} waits for work with priority {now}, its own is {own}", label(t)));
    }
    if t.name[0].get() == 0 {
        fault(format!("thread {} has no name", t.tid.get()));
    }
}

fn check_zombies(ctx: &Context<'_>) {
    for zombie in &ctx.sched.zombies {
        let t = &zombie.value;
        if t.state() != Some(ThreadState::Zombie) {
            ctx.finding("zombie", "thread", zombie.addr(), || {
                format!("{} is on the list of zombies, but its state is {}", label(t), t.state.get())
            });
        }
        if ctx.sched.thread(zombie.at).is_some() {
            ctx.finding("zombie", "thread", zombie.addr(), || {
                format!("{} is on the list of zombies and on that of threads", label(t))
            });
        }
    }
}
