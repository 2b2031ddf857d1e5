//! Locks: who owns which, and whether those who wait for each other wait for ever.

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{HeldLocks, KernelRoots, Mtx, Sx, Thread, ThreadState, VmMap};

use super::context::Context;
use super::finding::Updating;
use super::sched::{Item, label};

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

/// The mutexes of the kernel's roots that are owned: what they guard is left out of the check.
pub(super) fn updating(ctx: &Context<'_>) -> impl Iterator<Item = Updating> {
    mutexes(&ctx.roots).filter(|(_, _, lock)| lock.owner.get() != 0).map(|(name, _, lock)| Updating {
        what: name.into(),
        at: ctx.root_of(lock),
        owner: (lock.owner.get() & OWNER).wrapping_sub(1),
    })
}

/// Checks mutexes and sx locks.
pub(super) fn check(ctx: &Context<'_>) {
    check_mutexes(ctx);
    if ctx.roots.sched.lock.owner.get() == 0 {
        check_sx(ctx);
    }
}

/// The bits of `held_locks` are those of the locks that are owned, and the running thread owns them.
fn check_mutexes(ctx: &Context<'_>) {
    let held = HeldLocks::from_bits_retain(ctx.roots.held_locks.get());
    let at = ctx.root_of(&ctx.roots.held_locks);
    let mut owned: Vec<(&str, HeldLocks, GuestVirt, u32)> = mutexes(&ctx.roots)
        .map(|(name, class, lock)| (name, class, ctx.root_of(lock), lock.owner.get()))
        .filter(|&(.., owner)| owner != 0)
        .collect();
    owned.extend(ctx.maps.all.iter().filter(|map| map.system_map != 0 && map.lock_owner != 0).map(|map| {
        let lock = map.at.checked_add(offset_of!(VmMap, lock) as u64).unwrap_or(map.at);
        (map.name, HeldLocks::MAP, lock, map.lock_owner)
    }));
    let known = owned.iter().fold(HeldLocks::empty(), |known, &(_, class, ..)| known | class);
    // Taking and releasing a lock are two steps: while another lock is owned, one may be half done.
    let agree = !(known & held).is_empty();
    // Anonymous objects, and a lock of the machine's, are not looked through here.
    let elsewhere = HeldLocks::OBJECT | HeldLocks::DRIVER;
    let without_lock = held - known - elsewhere;
    let without_bit = known - held;
    let doubtful = (without_lock | without_bit).bits().count_ones();
    if doubtful > u32::from(agree) || !HeldLocks::all().contains(held) {
        ctx.finding("held-locks", "kernel roots", at, || {
            let locks: Vec<_> = owned.iter().map(|(name, ..)| *name).collect();
            format!("held_locks is {held:?}, but the locks that are owned are {locks:?}")
        });
    }
    if held.contains(elsewhere) && known.is_empty() && ctx.is_quiet() {
        ctx.finding("held-locks", "kernel roots", at, || {
            format!("held_locks is {held:?}, but every thread waits for work")
        });
    }
    let running = ctx.sched.threads.iter().find(|t| t.value.state() == Some(ThreadState::Running));
    let owner_of = |word: u32| (word & OWNER).wrapping_sub(1);
    for (name, _, at, word) in owned {
        if let Some(running) = running
            && running.value.tid.get() != owner_of(word)
        {
            ctx.finding("mutex-owner", name, at, || {
                let (owner, tid) = (owner_of(word), running.value.tid.get());
                format!("thread {owner} owns it, but thread {tid} is running: owners of mutexes do not switch")
            });
        }
        if word > OWNER && name != "vm_page_queue_mtx" {
            ctx.finding("mutex-owner", name, at, || format!("its word {word:#x} counts recursions, which it forbids"));
        }
    }
}

/// A map's sx lock.
struct MapSx {
    at: GuestVirt,
    name: &'static str,
    owner: u32,
    waiters: u32,
}

/// Owners of sx locks exist and count them, waiters sleep there, and nobody waits for himself in the end.
fn check_sx(ctx: &Context<'_>) {
    let mut locks = Vec::new();
    for map in &ctx.maps.all {
        let at = map.at.checked_add(offset_of!(VmMap, sx) as u64).unwrap_or(map.at);
        if let Ok(sx) = ctx.memory.get("sx", KPtr::<Sx>::new(at)) {
            locks.push(MapSx { at, name: map.name, owner: sx.owner.get(), waiters: sx.waiters.get() });
        }
    }
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for lock in &locks {
        check_lock(ctx, lock);
        if lock.owner != 0 {
            *counts.entry(lock.owner - 1).or_default() += 1;
        }
    }
    for thread in &ctx.sched.threads {
        let t = &thread.value;
        let owns = counts.get(&t.tid.get()).copied().unwrap_or(0);
        if t.sx_held.get() != owns {
            ctx.finding("sx-held", "thread", thread.addr(), || {
                format!("{} counts {} sx locks, but owns {owns}", label(t), t.sx_held.get())
            });
        }
    }
    check_cycles(ctx, &locks);
}

fn check_lock(ctx: &Context<'_>, lock: &MapSx) {
    let &MapSx { at, name, owner, waiters } = lock;
    if owner != 0 && ctx.sched.by_tid(owner - 1).is_none() {
        ctx.finding("sx-owner", name, at, || format!("thread {} owns its lock, but does not exist", owner - 1));
    }
    let sleepers = ctx.sched.sleepers(at).count();
    if sleepers as u64 != u64::from(waiters) {
        ctx.finding("sx-waiters", name, at, || {
            format!("its lock counts {waiters} waiters, but {sleepers} threads sleep there")
        });
    }
    if sleepers > 0 && owner == 0 {
        ctx.finding("sx-waiters", name, at, || {
            format!("its lock is free, but {sleepers} threads wait for it: nobody will wake them")
        });
    }
}

/// Follows from each thread the owner of the lock that it waits for.
fn check_cycles(ctx: &Context<'_>, locks: &[MapSx]) {
    let owners: HashMap<GuestVirt, u32> =
        locks.iter().filter_map(|lock| Some((lock.at, lock.owner.checked_sub(1)?))).collect();
    let waits_for = |thread: &Item<Thread>| -> Option<&Item<Thread>> {
        if thread.value.state() != Some(ThreadState::Sleeping) {
            return None;
        }
        ctx.sched.by_tid(*owners.get(&thread.value.wchan.get())?)
    };
    let mut done = HashSet::new();
    for first in &ctx.sched.threads {
        let mut path = vec![first];
        while let Some(next) = waits_for(path[path.len() - 1]).filter(|next| !done.contains(&next.addr())) {
            if let Some(start) = path.iter().position(|thread| thread.at == next.at) {
                ctx.finding("lock-cycle", "thread", next.addr(), || {
                    let names: Vec<_> = path[start..].iter().map(|thread| label(&thread.value)).collect();
                    format!("each waits for a lock of the next, and the last for one of the first: {}", names.join(", "))
                });
                break;
            }
            path.push(next);
        }
        done.extend(path.iter().map(|thread| thread.addr()));
    }
}
