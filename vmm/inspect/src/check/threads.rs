//! Threads: their lists, their numbers, and the valid values of each field.

use std::collections::HashMap;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{Pcpu, TID_HASH, Thread, ThreadState};

use super::context::Context;
use super::rule::rules;
use super::sched::{Item, chain, label};
use crate::cpu::Standing;

rules! {
    Some(check);
    Threads {
        CPU_LIST = "cpu-list":
            "the list of CPUs has `ncpu` elements";
        CPU = "cpu":
            "a CPU's thread runs on it and on no other CPU; its idle thread exists; its words \
             have possible values";
        PAGEPROC = "pageproc":
            "the pagedaemon is the thread of its number";
        THREAD_LIST = "thread-list":
            "the list of threads is linked both ways, to its tail";
        THREAD_COUNT = "thread-count":
            "`thread_count` is its length";
        THREAD_NUMBER = "thread-number":
            "a search for a thread's number finds that thread only";
        THREAD_STATE = "thread-state":
            "its fields match its state";
        ZOMBIE = "zombie":
            "a thread that has exited is on the list of zombies only";
    }
}

/// Priority of the idle thread.
const IDLE_PRIORITY: u8 = 255;

/// Wait messages of threads that wait for work.
const WORK: [&str; 3] = ["request", "psleep", "pgzero"];

/// Whether a thread waits for work, so no operation is in progress on it.
pub(super) fn waits_for_work(thread: &Thread) -> bool {
    let is_work =
        |message: vmkern_abi::control::WaitMessage| WORK.contains(&message.to_string().as_str());
    thread.state() == Some(ThreadState::Sleeping) && thread.wait_message().is_some_and(is_work)
}

/// Checks all threads.
fn check(ctx: &Context<'_>) {
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    check_list(ctx);
    check_numbers(ctx);
    check_cpus(ctx);
    check_pageproc(ctx);
    ctx.sched.threads.iter().for_each(|thread| check_thread(ctx, thread));
    check_zombies(ctx);
}

fn check_list(ctx: &Context<'_>) {
    let all = &ctx.roots.sched.all;
    let mut before = all.head.get();
    for (number, thread) in ctx.sched.threads.iter().enumerate() {
        let expected = if number == 0 { GuestVirt::new(0) } else { before.addr() };
        let prev = thread.value.all_prev.get().addr();
        if prev != expected {
            ctx.finding(&THREAD_LIST, "thread", thread.addr(), || {
                format!("its all_prev is {prev}, but the list of threads comes from {expected}")
            });
        }
        before = thread.at;
    }
    let tail = all.tail.get();
    if tail != before {
        ctx.finding(&THREAD_LIST, "scheduler", ctx.root_of(all), || {
            format!(
                "the tail of the list of threads is {}, but its last thread is {}",
                tail.addr(),
                before.addr()
            )
        });
    }
    let (counted, listed) = (ctx.roots.meter.thread_count.get(), ctx.sched.threads.len() as u64);
    if counted != listed {
        ctx.finding(&THREAD_COUNT, "vmmeter", ctx.root_of(&ctx.roots.meter.thread_count), || {
            format!("thread_count says {counted}, but the list of threads has {listed}")
        });
    }
}

/// Checks that each thread is in the table of numbers once, in the chain of its number.
fn check_numbers(ctx: &Context<'_>) {
    // 1. The table of numbers: each thread is in the chain of its number, and on the list of all
    //    threads.
    let mut found: HashMap<GuestVirt, usize> = HashMap::new();
    let mut taken: HashMap<u32, GuestVirt> = HashMap::new();
    for (number, head) in ctx.roots.sched.tids.iter().enumerate() {
        for thread in
            chain(&ctx.memory, ctx.findings(), "thread", head.get(), |t: &Thread| t.tid_next.get())
        {
            *found.entry(thread.addr()).or_default() += 1;
            let tid = thread.value.tid.get();
            if tid as usize % TID_HASH != number {
                ctx.finding(&THREAD_NUMBER, "thread", thread.addr(), || {
                    format!(
                        "its number {tid} belongs to chain {}, but it is in chain {number}",
                        tid as usize % TID_HASH
                    )
                });
            }
            if ctx.sched.thread(thread.at).is_none() {
                ctx.finding(&THREAD_NUMBER, "thread", thread.addr(), || {
                    format!(
                        "a search for number {tid} finds it, but it is not on the list of threads"
                    )
                });
            }
        }
    }
    // 2. The list: each thread is in the table once, under a unique number.
    for thread in &ctx.sched.threads {
        let (tid, at) = (thread.value.tid.get(), thread.addr());
        let times = found.get(&at).copied().unwrap_or(0);
        if times != 1 {
            ctx.finding(&THREAD_NUMBER, "thread", at, || {
                format!("it is on the list of threads, and {times} times in the table of numbers")
            });
        }
        if let Some(other) = taken.insert(tid, at) {
            ctx.finding(&THREAD_NUMBER, "thread", at, || {
                format!("its number {tid} is also that of {other}")
            });
        }
    }
}

/// Checks the CPUs: each runs a thread, and has an idle thread.
fn check_cpus(ctx: &Context<'_>) {
    let cpus = &ctx.sched.cpus;
    let counted = ctx.roots.meter.ncpu.get();
    if counted != cpus.len() as u64 {
        ctx.finding(&CPU_LIST, "vmmeter", ctx.root_of(&ctx.roots.meter.ncpu), || {
            format!("ncpu is {counted}, but the list of CPUs has {}", cpus.len())
        });
    }
    for (number, cpu) in cpus.iter().enumerate() {
        check_cpu(ctx, number, cpu);
    }
}

/// Checks a CPU, which is number `number` on the list, and the threads that it names.
fn check_cpu(ctx: &Context<'_>, number: usize, cpu: &Item<Pcpu>) {
    // 1. Its number is its place on the list.
    let fault = |detail: String| ctx.finding(&CPU, "CPU", cpu.addr(), || detail);
    let c = &cpu.value;
    if c.cpuid.get() as usize != number {
        fault(format!("it is number {number} of the list, but its cpuid is {}", c.cpuid.get()));
    }
    // 2. The thread that it runs.
    match ctx.sched.thread(c.curthread.get()) {
        None => fault(format!(
            "its thread, {}, is not on the list of threads",
            c.curthread.get().addr()
        )),
        Some(thread) if thread.value.state() != Some(ThreadState::Running) => {
            fault(format!(
                "{} is its thread, but has state {}",
                label(&thread.value),
                thread.value.state.get()
            ));
        }
        Some(thread) if u32::from(thread.value.lastcpu.get()) != c.cpuid.get() => {
            let (last, own) = (thread.value.lastcpu.get(), c.cpuid.get());
            fault(format!("{} runs on CPU {own}, but its lastcpu is {last}", label(&thread.value)));
        }
        Some(_) => {}
    }
    // 3. Its idle thread.
    match ctx.sched.thread(c.idlethread.get()) {
        None => fault(format!(
            "its idle thread, {}, is not on the list of threads",
            c.idlethread.get().addr()
        )),
        Some(idle) if idle.value.base_priority.get() != IDLE_PRIORITY => {
            let own = idle.value.base_priority.get();
            fault(format!(
                "{} is its idle thread, with base priority {own}, not {IDLE_PRIORITY}",
                label(&idle.value)
            ));
        }
        Some(_) => {}
    }
}

fn check_pageproc(ctx: &Context<'_>) {
    let pageproc = ctx.roots.pageproc.get();
    if !pageproc.is_null() && ctx.sched.thread(pageproc).is_none() {
        ctx.finding(&PAGEPROC, "kernel roots", ctx.root_of(&ctx.roots.pageproc), || {
            format!("the pagedaemon, {}, is not on the list of threads", pageproc.addr())
        });
    }
}

fn check_thread(ctx: &Context<'_>, thread: &Item<Thread>) {
    // 1. A state in which threads are on the list.
    let t = &thread.value;
    let fault = |detail: String| ctx.finding(&THREAD_STATE, "thread", thread.addr(), || detail);
    let state = match t.state() {
        None | Some(ThreadState::Inactive | ThreadState::Zombie) => {
            return fault(format!(
                "{} is on the list of threads, but its state is {}",
                label(t),
                t.state.get()
            ));
        }
        Some(state) => state,
    };
    // 2. It is running if and only if a CPU names it, and its last CPU exists.
    if (state == ThreadState::Running) != ctx.sched.runs(thread.at).is_some() {
        fault(format!("{} is {state:?}, but the CPUs say otherwise", label(t)));
    }
    if ctx.sched.cpus.iter().all(|cpu| cpu.value.cpuid.get() != u32::from(t.lastcpu.get())) {
        fault(format!("{} ran last on CPU {}, which does not exist", label(t), t.lastcpu.get()));
    }
    // 3. A pause waits for interrupt handlers to end, unless it had to stop CPUs anywhere.
    let is_held_anywhere =
        ctx.standing() == Standing::Anywhere && ctx.sched.runs(thread.at).is_some();
    if t.intr_nesting.get() != 0 && !is_held_anywhere && !ctx.is_locked() && !ctx.is_dead() {
        fault(format!(
            "{} is in {} interrupt handlers, which a pause waits for",
            label(t),
            t.intr_nesting.get()
        ));
    }
    // 4. The fields that depend on the state.
    check_sleep(ctx, thread, state);
    // 5. A sleep may lend a priority, which ends before the thread waits for work.
    let (now, own) = (t.priority.get(), t.base_priority.get());
    if waits_for_work(t) && now != own {
        fault(format!(
            "{} waits for work with priority {now}, but its base priority is {own}",
            label(t)
        ));
    }
    if t.name[0].get() == 0 {
        fault(format!("thread {} has no name", t.tid.get()));
    }
}

/// Checks the fields that are set only while a thread sleeps, or only while it runs.
fn check_sleep(ctx: &Context<'_>, thread: &Item<Thread>, state: ThreadState) {
    // 1. A channel and a message if and only if it sleeps; a time-out only while it sleeps.
    let t = &thread.value;
    let fault = |detail: String| ctx.finding(&THREAD_STATE, "thread", thread.addr(), || detail);
    if (state == ThreadState::Sleeping) != (t.wchan.get().get() != 0) {
        fault(format!("{} is {state:?}, but its channel is {}", label(t), t.wchan.get()));
    }
    if (state == ThreadState::Sleeping) == (t.wmesg[0].get() == 0) {
        fault(format!(
            "{} is {state:?}, but its wait message begins with {:#x}",
            label(t),
            t.wmesg[0].get()
        ));
    }
    if state != ThreadState::Sleeping && t.callout.sequence.get() != 0 {
        fault(format!("{} is {state:?}, but has a time-out", label(t)));
    }
    // 2. Critical sections only while it is running.
    if state != ThreadState::Running && (t.critnest.get() != 0 || t.owepreempt.is_set()) {
        let (depth, owed) = (t.critnest.get(), t.owepreempt.get());
        fault(format!(
            "{} is {state:?}, but in {depth} critical sections, with preemption owed {owed}",
            label(t)
        ));
    }
    // 3. Flags are 0 or 1.
    if !t.owepreempt.get().is_known()
        || !t.timed_out.get().is_known()
        || (state == ThreadState::Sleeping && t.timed_out.is_set())
    {
        fault(format!(
            "{} is {state:?}, owepreempt {}, timed_out {}",
            label(t),
            t.owepreempt.get(),
            t.timed_out.get()
        ));
    }
}

fn check_zombies(ctx: &Context<'_>) {
    for zombie in &ctx.sched.zombies {
        let t = &zombie.value;
        if t.state() != Some(ThreadState::Zombie) {
            ctx.finding(&ZOMBIE, "thread", zombie.addr(), || {
                format!(
                    "{} is on the list of zombies, but its state is {}",
                    label(t),
                    t.state.get()
                )
            });
        }
        if ctx.sched.thread(zombie.at).is_some() {
            ctx.finding(&ZOMBIE, "thread", zombie.addr(), || {
                format!("{} is on the list of zombies and on that of threads", label(t))
            });
        }
    }
}
