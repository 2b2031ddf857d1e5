//! The kernel's threads, with their backtraces.

use std::collections::HashMap;

use serde::Serialize;
use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::control::MAX_THREADS;
use vmkern_abi::layout::{Thread, ThreadState};

use super::hex::Hex;
use super::stack;
use super::survey::Survey;
use crate::symbols::Symbols;

const THREAD: &str = "thread";

/// More threads than any kernel creates.
pub(super) const THREADS_MAX: u64 = 1 << 16;
/// More CPUs than any guest has.
pub(super) const CPUS_MAX: u64 = 256;

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ThreadReport {
    /// The structure's address.
    pub at: Hex,
    /// Its number.
    pub tid: u32,
    /// `tN` for a thread that scripts can name, otherwise the kernel's own name.
    pub name: String,
    /// `running`, `runnable`, `sleeping`, `zombie`, `inactive`, or the number.
    pub state: String,
    /// The channel that it sleeps on.
    pub wait_channel: Option<Hex>,
    /// The wait message.
    pub wait_message: Option<String>,
    /// The tick at which its sleep ends.
    pub wakes_at: Option<u64>,
    /// Its current priority; the smallest runs first.
    pub priority: u8,
    /// Its priority without any that it has been lent.
    pub base_priority: u8,
    /// sx locks that it owns.
    pub sx_held: u32,
    /// Times it was switched to.
    pub switches: u64,
    /// Its kernel stack: lowest address, and first address past it; null for the boot thread's.
    pub stack: Option<(Hex, Hex)>,
    /// Calls, innermost first.
    pub backtrace: Vec<String>,
}

/// `inspect threads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ThreadsReport {
    /// Ticks since boot.
    pub ticks: u64,
    /// The threads, in order of creation.
    pub threads: Vec<ThreadReport>,
}

pub(super) fn threads(survey: &Survey<'_, '_>, symbols: &Symbols) -> ThreadsReport {
    let Some(roots) = survey.roots() else {
        return ThreadsReport { ticks: 0, threads: Vec::new() };
    };
    let mut threads = Vec::new();
    let first = roots.sched.all.head.get();
    for item in survey.view.list(THREAD, first, |thread| thread.all_next.get()).at_most(THREADS_MAX)
    {
        match item {
            Ok((at, thread)) => threads.push(report(survey, symbols, at, &thread)),
            Err(error) => survey.damage.note(error),
        }
    }
    let counted = roots.meter.thread_count.get();
    if counted != threads.len() as u64 {
        let found = threads.len();
        let at = survey.view.roots().addr();
        survey.damage.say("kernel roots", at, || {
            format!("thread_count is {counted}, but {found} threads were found")
        });
    }
    ThreadsReport { ticks: roots.meter.ticks.get(), threads }
}

fn report(
    survey: &Survey<'_, '_>,
    symbols: &Symbols,
    at: KPtr<Thread>,
    thread: &Thread,
) -> ThreadReport {
    // 1. The state in words, or the number if it is not a state.
    let state = thread.state();
    let words = match state {
        Some(ThreadState::Inactive) => "inactive",
        Some(ThreadState::Running) => "running",
        Some(ThreadState::Runnable) => "runnable",
        Some(ThreadState::Sleeping) => "sleeping",
        Some(ThreadState::Zombie) => "zombie",
        None => {
            survey.damage.say(THREAD, at.addr(), || format!("its state is {}", thread.state.get()));
            ""
        }
    };
    // 2. The calls, from the CPU's registers if it is running, otherwise from its saved registers.
    let backtrace = if state == Some(ThreadState::Running) {
        let mut cpus = survey.view.source().cpus().unwrap_or_default().into_iter();
        let cpu = cpus.find(|cpu| cpu.cpu == u32::from(thread.lastcpu.get()));
        cpu.map(|cpu| stack::of_cpu(survey, symbols, &cpu.registers))
    } else {
        Some(stack::of_sleeper(survey, symbols, thread))
    };
    // 3. Its stack, if it has one of its own.
    let low = thread.kstack.get().get();
    let high = u64::from(thread.kstack_pages.get())
        .checked_mul(PAGE_SIZE)
        .and_then(|bytes| low.checked_add(bytes));
    ThreadReport {
        at: at.into(),
        tid: thread.tid.get(),
        name: label(thread),
        state: if words.is_empty() { thread.state.get().to_string() } else { words.to_owned() },
        wait_channel: Some(thread.wchan.get()).filter(|at| at.get() != 0).map(Hex::from),
        wait_message: thread.wait_message().map(|message| message.to_string()),
        wakes_at: Some(thread.callout.deadline.get())
            .filter(|_| thread.callout.sequence.get() != 0),
        priority: thread.priority.get(),
        base_priority: thread.base_priority.get(),
        sx_held: thread.sx_held.get(),
        switches: thread.switches.get(),
        stack: high.filter(|_| low != 0).map(|high| (Hex(low), Hex(high))),
        backtrace: backtrace.unwrap_or_default(),
    }
}

/// `tN` for a thread that requests can name, otherwise the thread's own name.
pub(super) fn label(thread: &Thread) -> String {
    let tid = thread.tid.get();
    if tid < u32::from(MAX_THREADS) { format!("t{tid}") } else { thread.name().to_string() }
}

/// The names of the running threads, by the number of their CPU.
pub(super) fn on_cpus(survey: &Survey<'_, '_>) -> HashMap<u32, String> {
    let Some(roots) = survey.roots() else { return HashMap::new() };
    let mut names = HashMap::new();
    for item in
        survey.view.list("pcpu", roots.cpuhead.get(), |cpu| cpu.allcpu_next.get()).at_most(CPUS_MAX)
    {
        let Some((_, cpu)) = survey.damage.ok(item) else { break };
        if let Some(at) = cpu.curthread.get().non_null()
            && let Some(thread) = survey.damage.ok(survey.view.copy(THREAD, at))
        {
            names.insert(cpu.cpuid.get(), label(&thread));
        }
    }
    names
}
