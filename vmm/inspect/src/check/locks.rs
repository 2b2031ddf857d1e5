//! Locks: their owners, their waiters, and deadlocks.

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{
    HeldLocks, KernelRoots, Mtx, PageCache, Pcpu, Sx, Thread, ThreadState, VmMap, md,
};

use super::context::Context;
use super::finding::Updating;
use super::rule::rules;
use super::sched::{Item, label};
use crate::cpu::Standing;

rules! {
    Some(check);
    Locks {
        MUTEX_OWNER = "mutex-owner":
            "the owner of a mutex is a thread that holds its class, and the mutex recurses only \
             if it may";
        HELD_LOCKS = "held-locks":
            "a thread holds the classes of the mutexes that it owns; a thread that has left its \
             CPU holds the scheduler's class only";
        SX_OWNER = "sx-owner":
            "the owner of an sx lock exists";
        SX_HELD = "sx-held":
            "a thread counts the sx locks that it owns";
        SX_WAITERS = "sx-waiters":
            "the waiters of an sx lock sleep on it";
        LOCK_CYCLE = "lock-cycle":
            "no threads wait for each other in a cycle";
    }
}

/// The owner in a lock word, plus 1.
const OWNER: u32 = 0xffff;

/// The mutexes of the kernel's roots, with their classes.
fn mutexes(roots: &KernelRoots) -> impl Iterator<Item = (&'static str, HeldLocks, &Mtx)> {
    let zones = roots.zones.iter().map(|zone| ("zone", HeldLocks::ZONE, &zone.lock));
    let objects = [
        ("kernel_object", HeldLocks::OBJECT, &roots.kernel_object.lock),
        ("kmem_object", HeldLocks::OBJECT, &roots.kmem_object.lock),
    ];
    let single = [
        ("driver_mtx", HeldLocks::DRIVER, &roots.driver_mtx),
        ("eventhandler_mtx", HeldLocks::EVENTHANDLER, &roots.eventhandler_mtx),
        ("map_sleep_mtx", HeldLocks::MAP_SLEEP, &roots.map_sleep_mtx),
        ("vm_page_queue_mtx", HeldLocks::PAGE_QUEUE, &roots.vm_page_queue_mtx),
        ("kernel_pmap", HeldLocks::PMAP, &roots.kernel_pmap.lock),
        ("vm_page_queue_free_mtx", HeldLocks::FREE_QUEUE, &roots.vm_page_queue_free_mtx),
        ("sched_lock", HeldLocks::SCHED, &roots.sched.lock),
    ];
    single.into_iter().chain(objects).chain(zones)
}

/// The held mutexes of the kernel's roots and of caches, except the objects': what they guard is
/// left out of the check.
pub(super) fn updating(ctx: &Context<'_>) -> impl Iterator<Item = Updating> {
    let is_owned = |&(_, class, lock): &(_, HeldLocks, &Mtx)| {
        class != HeldLocks::OBJECT && lock.owner.get() != 0
    };
    let in_roots = mutexes(&ctx.roots).filter(is_owned).map(|(name, _, lock)| Updating {
        what: name.into(),
        at: ctx.root_of(lock),
        owner: (lock.owner.get() & OWNER).wrapping_sub(1),
    });
    in_roots.chain(caches(ctx).filter(|lock| lock.word != 0).map(|lock| Updating {
        what: lock.name.into(),
        at: lock.at,
        owner: lock.owner(),
    }))
}

/// The mutexes of CPUs' caches of pages.
fn caches(ctx: &Context<'_>) -> impl Iterator<Item = Owned> {
    ctx.sched.cpus.iter().map(|cpu| {
        let at =
            cpu.addr().add((offset_of!(Pcpu, page_cache) + offset_of!(PageCache, lock)) as u64);
        let word = cpu.value.page_cache.lock.owner.get();
        Owned { name: "page cache", class: HeldLocks::PAGE_CACHE, at, word }
    })
}

/// Whether any mutex is held.
pub(super) fn is_any_owned(ctx: &Context<'_>) -> bool {
    !owned(ctx).is_empty()
}

/// Checks mutexes and sx locks.
fn check(ctx: &Context<'_>) {
    check_mutexes(ctx);
    if ctx.roots.sched.lock.owner.get() == 0 {
        check_sx(ctx);
    }
}

/// A mutex that is held.
struct Owned {
    name: &'static str,
    class: HeldLocks,
    at: GuestVirt,
    word: u32,
}

impl Owned {
    /// Number of the thread that owns it.
    fn owner(&self) -> u32 {
        (self.word & OWNER).wrapping_sub(1)
    }
}

/// The mutexes that are held, except those that belong to the machine.
fn owned(ctx: &Context<'_>) -> Vec<Owned> {
    let in_roots = mutexes(&ctx.roots);
    let mut owned: Vec<_> = in_roots
        .map(|(name, class, lock)| Owned {
            name,
            class,
            at: ctx.root_of(lock),
            word: lock.owner.get(),
        })
        .collect();
    owned.extend(caches(ctx));
    owned.extend(ctx.maps.all.iter().filter(|map| map.system_map != 0).map(|map| {
        let at = map.at.checked_add(offset_of!(VmMap, lock) as u64).unwrap_or(map.at);
        Owned { name: map.name, class: HeldLocks::MAP, at, word: map.lock_owner }
    }));
    owned.extend(ctx.objects.all.values().filter(|object| !object.is_kernels()).map(|object| {
        Owned {
            name: object.name,
            class: HeldLocks::OBJECT,
            at: object.at,
            word: object.lock_owner,
        }
    }));
    owned.retain(|lock| lock.word != 0);
    owned
}

/// Checks that the lock classes that each thread notes are those of the mutexes that it holds, and
/// that every owner is running.
fn check_mutexes(ctx: &Context<'_>) {
    // 1. Each held mutex: recursion only if it allows that.
    let owned = owned(ctx);
    for lock in &owned {
        let fault = |detail: String| ctx.finding(&MUTEX_OWNER, lock.name, lock.at, || detail);
        if lock.word > OWNER && lock.class != HeldLocks::PAGE_QUEUE {
            fault(format!(
                "its word {:#x} counts recursions, but this mutex forbids them",
                lock.word
            ));
        }
        // 2. Its owner is a running thread that notes a lock.
        if ctx.roots.sched.lock.owner.get() != 0 {
            continue;
        }
        let Some(thread) = ctx.sched.by_tid(lock.owner()) else {
            fault(format!("thread {} owns it, but does not exist", lock.owner()));
            continue;
        };
        let held = thread.value.held_locks.get();
        if ctx.sched.runs(thread.at).is_none() {
            fault(format!(
                "{} owns it, but is not running: the owner of a mutex keeps its CPU",
                label(&thread.value)
            ));
        } else if held.is_empty() && ctx.standing() == Standing::Quiescent && !ctx.is_dead() {
            // If a CPU may stand anywhere, this mutex may just have been acquired, or may be about
            // to be released.
            fault(format!("{} owns it, but notes that it holds no lock", label(&thread.value)));
        }
    }
    // 3. Each thread: compare its notes with the mutexes it holds.
    for thread in ctx.sched.threads.iter().chain(&ctx.sched.zombies) {
        check_held(ctx, thread, &owned);
    }
}

/// Checks the lock classes that `thread` notes.
fn check_held(ctx: &Context<'_>, thread: &Item<Thread>, owned: &[Owned]) {
    // 1. Only classes that exist.
    let held = thread.value.held_locks.get();
    let fault = |detail: String| ctx.finding(&HELD_LOCKS, "thread", thread.addr(), || detail);
    if !HeldLocks::all().contains(held) {
        fault(format!(
            "{} holds locks of classes that do not exist: {held:?}",
            label(&thread.value)
        ));
    }
    // 2. A thread that is not running.
    if ctx.sched.runs(thread.at).is_none() {
        // It left its CPU while it held the scheduler's lock, which the next thread takes over, and
        // saved a stack pointer to return to. How it came to its CPU does not matter: a CPU's first
        // thread was never switched to.
        let has_left = thread.value.md[md::RSP].get() != 0;
        let expected = if has_left { HeldLocks::SCHED } else { HeldLocks::empty() };
        if held != expected {
            fault(format!(
                "{} is not running, but holds {held:?}, expected {expected:?}",
                label(&thread.value)
            ));
        }
        return;
    }
    // 3. A running thread notes no lock that it does not hold.
    let tid = thread.value.tid.get();
    let known = owned
        .iter()
        .filter(|lock| lock.owner() == tid)
        .fold(HeldLocks::empty(), |k, lock| k | lock.class);
    let elsewhere = HeldLocks::OBJECT | HeldLocks::DRIVER;
    let missing = held - known - elsewhere;
    // A thread notes a mutex a moment longer than it holds it, and the check does not know every
    // mutex.
    let may_hold = !ctx.is_quiet() || ctx.standing() == Standing::Anywhere;
    if !missing.is_empty() || (!held.is_empty() && known.is_empty() && !may_hold) {
        fault(format!(
            "{} notes that it holds {held:?}, but owns locks of {known:?}",
            label(&thread.value)
        ));
    }
}

/// A map's sx lock.
struct MapSx {
    at: GuestVirt,
    name: &'static str,
    owner: u32,
    waiters: u32,
}

/// Checks that owners of sx locks exist and count them, that waiters sleep on them, and that there
/// is no deadlock.
fn check_sx(ctx: &Context<'_>) {
    // 1. The locks of all maps.
    let mut locks = Vec::new();
    for map in &ctx.maps.all {
        let at = map.at.checked_add(offset_of!(VmMap, sx) as u64).unwrap_or(map.at);
        if let Ok(sx) = ctx.memory.get("sx", KPtr::<Sx>::new(at)) {
            locks.push(MapSx {
                at,
                name: map.name,
                owner: sx.owner.get(),
                waiters: sx.waiters.get(),
            });
        }
    }
    // 2. The number of locks that each thread owns.
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for lock in &locks {
        check_lock(ctx, lock);
        if lock.owner != 0 {
            *counts.entry(lock.owner - 1).or_default() += 1;
        }
    }
    // 3. Each thread's own count.
    for thread in &ctx.sched.threads {
        let t = &thread.value;
        let owns = counts.get(&t.tid.get()).copied().unwrap_or(0);
        if t.sx_held.get() != owns {
            ctx.finding(&SX_HELD, "thread", thread.addr(), || {
                format!("sx_held of {} is {}, but it owns {owns}", label(t), t.sx_held.get())
            });
        }
    }
    check_cycles(ctx, &locks);
}

fn check_lock(ctx: &Context<'_>, lock: &MapSx) {
    let &MapSx { at, name, owner, waiters } = lock;
    if owner != 0 && ctx.sched.by_tid(owner - 1).is_none() {
        ctx.finding(&SX_OWNER, name, at, || {
            format!("thread {} owns its lock, but does not exist", owner - 1)
        });
    }
    let sleepers = ctx.sched.sleepers(at).count();
    if sleepers as u64 != u64::from(waiters) {
        ctx.finding(&SX_WAITERS, name, at, || {
            format!(
                "waiters of its lock is {waiters}, but the number of threads that sleep there is \
                 {sleepers}"
            )
        });
    }
    if sleepers > 0 && owner == 0 {
        ctx.finding(&SX_WAITERS, name, at, || {
            format!(
                "its lock is free, but threads wait for it ({sleepers}), and nothing will wake them"
            )
        });
    }
}

/// Follows the chain from each thread to the owner of the lock that it waits for.
fn check_cycles(ctx: &Context<'_>, locks: &[MapSx]) {
    // 1. The owners of locks, and who waits for them.
    let owners: HashMap<GuestVirt, u32> =
        locks.iter().filter_map(|lock| Some((lock.at, lock.owner.checked_sub(1)?))).collect();
    let waits_for = |thread: &Item<Thread>| -> Option<&Item<Thread>> {
        if thread.value.state() != Some(ThreadState::Sleeping) {
            return None;
        }
        ctx.sched.by_tid(*owners.get(&thread.value.wchan.get())?)
    };
    // 2. Follow the waits from each thread that no earlier path has visited.
    let mut done = HashSet::new();
    for first in &ctx.sched.threads {
        let mut path = vec![first];
        while let Some(next) =
            waits_for(path[path.len() - 1]).filter(|next| !done.contains(&next.addr()))
        {
            // 3. A thread that is already on the path closes a cycle.
            if let Some(start) = path.iter().position(|thread| thread.at == next.at) {
                ctx.finding(&LOCK_CYCLE, "thread", next.addr(), || {
                    let names: Vec<_> =
                        path[start..].iter().map(|thread| label(&thread.value)).collect();
                    format!(
                        "each waits for a lock of the next, and the last for one of the first: {}",
                        names.join(", ")
                    )
                });
                break;
            }
            path.push(next);
        }
        done.extend(path.iter().map(|thread| thread.addr()));
    }
}
