//! Threads: no thread can keep the CPU to itself.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kmem::kern::sched::PUSER;
use kmem::vm::thread::ThreadSpec;

use super::{Bench, Verdict, same};
use crate::memory::KernelVm;

/// Numbers of the two threads.
const TIDS: [u32; 2] = [200, 201];
/// Switches between the two before they end.
const TURNS: u32 = 4;

/// The thread that ran last.
static LAST: AtomicU64 = AtomicU64::new(u64::MAX);
/// How often that has changed.
static CHANGES: AtomicU32 = AtomicU32::new(0);
/// How far each has counted.
static COUNTS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Counts, and never yields: only the clock can take the CPU from it.
fn spin(_: &KernelVm, me: u64) {
    while CHANGES.load(Ordering::Relaxed) <= TURNS {
        if LAST.swap(me, Ordering::Relaxed) != me {
            CHANGES.fetch_add(1, Ordering::Relaxed);
        }
        COUNTS[usize::from(me == 1)].fetch_add(1, Ordering::Relaxed);
        core::hint::spin_loop();
    }
}

pub fn endless_threads_share_the_cpu(bench: &Bench<'_>) -> Verdict {
    let (vm, cnt) = (bench.vm, bench.vm.cnt());
    let before = (cnt.v_free_count.get(), cnt.thread_count.get());
    // This is the idle thread: any other thread takes the CPU from it at once, and it runs again
    // when both have ended.
    vm.critical_enter();
    let spec = |(arg, tid)| ThreadSpec { tid, name: "spin", priority: PUSER, start: spin, arg };
    let made = (0..).zip(TIDS).map(spec).filter(|spec| vm.kthread_create(spec).is_ok()).count();
    vm.critical_exit();
    same("threads made", made as u64, 2)?;
    vm.sched_yield();
    same("changes of the running thread", u64::from(CHANGES.load(Ordering::Relaxed) > TURNS), 1)?;
    same(
        "threads that have counted",
        COUNTS.iter().map(|count| count.load(Ordering::Relaxed).min(1)).sum(),
        2,
    )?;
    vm.thread_reap();
    same("threads", cnt.thread_count.get(), before.1)?;
    // The first threads leave a page table behind.
    same("pages missing", before.0.saturating_sub(cnt.v_free_count.get()) / 2, 0)
}
