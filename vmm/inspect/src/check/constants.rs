//! Words that have one valid value, or a few: names, words of unused structures, counters of events
//! that never happen.

use std::mem::offset_of;

use vmkern_abi::control::{MAX_THREADS, WaitMessage};
use vmkern_abi::layout::{EntryFlags, Protection, Thread, ThreadState, VmMap, VmPage};

use super::context::Context;
use super::free_lists::PAGE_ARRAY;
use super::locks::{HELD_LOCKS, MUTEX_OWNER};
use super::maps::Map;
use super::rule::rules;
use super::sched::{Item, label};
use super::stacks::KERNEL_STACK;
use super::threads::PAGEPROC;
use super::waits::{FLAG_WORD, WAIT_MESSAGE};

rules! {
    Some(check);
    Maps {
        MAP_HEADER = "map-header":
            "the header is not a range and has no object";
        MAP_OTHER_LOCK = "map-other-lock":
            "the lock of the other kind of map is free";
    }
    Memory {
        METER = "meter":
            "counters of events that cannot happen are 0, and no counter is larger than one that \
             includes it";
    }
    Threads {
        THREAD_NAME = "thread-name":
            "a thread's name matches its number";
        THREAD_PRIORITY = "thread-priority":
            "a thread's own priority is that of its number, and a priority lent by a sleep is one \
             that sleeps lend";
    }
}

/// Priority of threads that execute requests (`PUSER`).
const PUSER: u8 = 160;
/// Priority of the pagedaemon (`PVM`).
const PVM: u8 = 68;
/// Priority of idle threads (`PRI_MAX_IDLE`).
const PRI_MAX_IDLE: u8 = 255;
/// Priorities that a sleep can lend: `PSWP`, `PVM`, `PUSER`.
const LENT: [u8; 3] = [64, PVM, PUSER];
/// Number of the thread that continues the boot.
const BOOT_TID: u32 = 64;
/// Number of the pagedaemon.
pub(super) const PAGEDAEMON_TID: u32 = 65;
/// Number of the thread that clears free pages.
pub(super) const PAGEZERO_TID: u32 = 66;
/// Its priority: below every other thread's, but above the idle threads'.
const PAGEZERO_PRIORITY: u8 = PRI_MAX_IDLE - 4;
/// Number of the balloon's driver.
const BALLOON_TID: u32 = 501;
/// Number of the idle thread of CPU n, less n. CPU 0's idle thread is the thread that continues the
/// boot.
const IDLE_TID: u32 = 66;
/// Number of the thread that creates others.
const TASKQ_TID: u32 = 500;
/// The most ticks per second (`kern.hz`).
const HZ_MAX: u64 = 10_000;

/// Checks all of these words.
fn check(ctx: &Context<'_>) {
    ctx.maps.all.iter().filter(|map| !map.is_updating()).for_each(|map| check_header(ctx, map));
    ctx.maps.all.iter().for_each(|map| check_other_lock(ctx, map));
    check_roots(ctx);
    check_meter(ctx);
    if ctx.roots.sched.lock.owner.get() == 0 {
        ctx.sched.threads.iter().for_each(|thread| check_thread(ctx, thread));
    }
}

/// Checks a map's header: it is not a range and has no object.
fn check_header(ctx: &Context<'_>, map: &Map) {
    let header = &map.header;
    let is_bare = (header.object.get(), header.offset, header.wired_count, header.inheritance)
        == (0, 0, 0, 0)
        && header.deleter == 0
        && header.eflags == EntryFlags::empty()
        && (header.protection, header.max_protection) == (Protection::empty(), Protection::empty());
    if !is_bare {
        ctx.finding(&MAP_HEADER, map.name, map.at, || {
            format!("its header is not a range, but has the fields of one: {header:x?}")
        });
    }
}

/// Checks that the lock of the other kind of map is free: it is never taken.
fn check_other_lock(ctx: &Context<'_>, map: &Map) {
    let Ok(raw) = ctx.memory.get::<VmMap>("vm_map", vmkern_abi::addr::KPtr::new(map.at)) else {
        return;
    };
    let (offset, word, kind) = if map.system_map == 0 {
        (offset_of!(VmMap, lock), raw.lock.owner.get(), "mutex")
    } else {
        (offset_of!(VmMap, sx), raw.sx.owner.get() | raw.sx.waiters.get(), "sx lock")
    };
    if word != 0 {
        let at = map.at.checked_add(offset as u64).unwrap_or(map.at);
        ctx.finding(&MAP_OTHER_LOCK, map.name, at, || {
            format!("system_map is {}, but its {kind} says {word:#x}", map.system_map)
        });
    }
}

fn check_roots(ctx: &Context<'_>) {
    let roots = &ctx.roots;
    // 1. The scheduler's words.
    if !roots.sched.cold.is_set() && !roots.boot_held_locks.get().is_empty() {
        ctx.finding(&HELD_LOCKS, "kernel roots", ctx.root_of(&roots.boot_held_locks), || {
            format!(
                "there are threads, but the boot holds locks {:#x}",
                roots.boot_held_locks.get().bits()
            )
        });
    }
    // While the scheduler's lock is held, threads are not read, but the last thread's number is
    // known.
    let (owner, last) = (
        roots.sched.lock.owner.get(),
        IDLE_TID.saturating_add(ctx.sched.cpus.len().try_into().unwrap_or(0)),
    );
    if owner > last && owner != TASKQ_TID + 1 {
        ctx.finding(&MUTEX_OWNER, "sched_lock", ctx.root_of(&roots.sched.lock), || {
            format!("its word is {owner:#x}, but the last thread has number {last}")
        });
    }
    // 2. The pagedaemon, and the word that controls how threads are spread over CPUs.
    let pageproc = ctx.sched.thread(roots.pageproc.get()).map(|thread| thread.value.tid.get());
    if pageproc.is_some_and(|tid| tid != PAGEDAEMON_TID) {
        ctx.finding(&PAGEPROC, "kernel roots", ctx.root_of(&roots.pageproc), || {
            format!("it is thread {pageproc:?}, but the pagedaemon is thread {PAGEDAEMON_TID}")
        });
    }
    if roots.sched.spread.known().is_none() {
        ctx.finding(&FLAG_WORD, "scheduler", ctx.root_of(&roots.sched.spread), || {
            format!("spread is {}, expected 0, 1 or 2", roots.sched.spread.get())
        });
    }
    // 3. The page array: aligned, and up to the end of RAM.
    let array = roots.vm_page_array.get().addr();
    if !array.get().is_multiple_of(size_of::<VmPage>() as u64) {
        ctx.finding(&PAGE_ARRAY, "kernel roots", ctx.root_of(&roots.vm_page_array), || {
            format!("the page array is at {array}, which is not aligned")
        });
    }
    let ram_end = ctx.memory.source().segments().last().map_or(0, |segment| segment.end.pfn());
    let end = roots.first_page.get().saturating_add(roots.vm_page_array_size.get());
    if end != ram_end {
        ctx.finding(&PAGE_ARRAY, "kernel roots", ctx.root_of(&roots.vm_page_array_size), || {
            format!("its elements end with page {end:#x}, RAM with page {ram_end:#x}")
        });
    }
}

fn check_meter(ctx: &Context<'_>) {
    let meter = &ctx.roots.meter;
    for (name, counter) in [("v_swapin", &meter.v_swapin), ("v_swapout", &meter.v_swapout)] {
        if counter.get() != 0 {
            ctx.finding(&METER, "vmmeter", ctx.root_of(counter), || {
                format!("{name} is {}, but there is no swap space", counter.get())
            });
        }
    }
    let (faults, zfod) = (meter.v_faults.get(), meter.v_zfod.get());
    if zfod > faults {
        ctx.finding(&METER, "vmmeter", ctx.root_of(&meter.v_zfod), || {
            format!("v_zfod is {zfod}, but v_faults is only {faults}")
        });
    }
    let hz = meter.hz.get();
    if !(1..=HZ_MAX).contains(&hz) {
        ctx.finding(&METER, "vmmeter", ctx.root_of(&meter.hz), || {
            format!("hz is {hz}, not 1 to {HZ_MAX}")
        });
    }
}

/// Checks a thread's name and priority: a worker's follow from its number, an idle thread's from
/// its CPU.
fn check_thread(ctx: &Context<'_>, thread: &Item<Thread>) {
    let t = &thread.value;
    let fault = |rule, detail: String| ctx.finding(rule, "thread", thread.addr(), || detail);
    let tid = t.tid.get();
    // 1. Its name and number, which follow from its purpose.
    let (number, name, priority) = identity(ctx, thread);
    if [t.name[0].get(), t.name[1].get()] != WaitMessage::new(&name).words() || tid != number {
        fault(
            &THREAD_NAME,
            format!("it is thread {tid} and called `{}`, not {number} and `{name}`", t.name()),
        );
    }
    // 2. A thread without a stack of its own has no stack pages.
    if t.kstack.get().get() == 0 && t.kstack_pages.get() != 0 {
        fault(
            &KERNEL_STACK,
            format!("{} has no stack, but kstack_pages is {}", label(t), t.kstack_pages.get()),
        );
    }
    // 3. Its priorities: a sleep may lend it one of [`LENT`].
    let (now, own) = (t.priority.get(), t.base_priority.get());
    if own != priority || (now != own && !LENT.contains(&now)) {
        fault(
            &THREAD_PRIORITY,
            format!("{} has priority {now} and base priority {own}, expected {priority}", label(t)),
        );
    }
    // 4. A wait message only while it sleeps, and a well-formed one.
    let words = [t.wmesg[0].get(), t.wmesg[1].get()];
    let is_message = WaitMessage::new(&WaitMessage::from_words(words).to_string()).words() == words;
    if !is_message || (t.state() != Some(ThreadState::Sleeping) && words != [0, 0]) {
        fault(
            &WAIT_MESSAGE,
            format!("{} is in state {} with wait message {words:x?}", label(t), t.state.get()),
        );
    }
}

/// The number, name and base priority that such a thread must have.
fn identity(ctx: &Context<'_>, thread: &Item<Thread>) -> (u32, String, u8) {
    let t = &thread.value;
    let tid = t.tid.get();
    let cpu = ctx.sched.idles(thread.at).map(|cpu| cpu.value.cpuid.get());
    match cpu {
        Some(0) => (BOOT_TID, "host".to_owned(), PRI_MAX_IDLE),
        Some(cpu) => (IDLE_TID.wrapping_add(cpu), format!("idle{cpu}"), PRI_MAX_IDLE),
        None if thread.at == ctx.roots.pageproc.get() => {
            (PAGEDAEMON_TID, "pagedaemon".to_owned(), PVM)
        }
        None if tid < u32::from(MAX_THREADS) => (tid, format!("t{tid}"), PUSER),
        None if t.name().to_string() == "pagezero" => {
            (PAGEZERO_TID, "pagezero".to_owned(), PAGEZERO_PRIORITY)
        }
        None if t.name().to_string() == "thread taskq" => {
            (TASKQ_TID, "thread taskq".to_owned(), PVM)
        }
        None if t.name().to_string() == "balloon" => (BALLOON_TID, "balloon".to_owned(), PVM),
        // The idle thread of a CPU that is still being started.
        None if t.name().to_string().starts_with("idle") => {
            (tid, t.name().to_string(), PRI_MAX_IDLE)
        }
        None => (PAGEDAEMON_TID, "pagedaemon".to_owned(), PVM),
    }
}
