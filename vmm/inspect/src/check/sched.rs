//! Threads, sleep queues and handlers, copied.
//!
//! Reading continues past contradictions as far as it can; the rules about these structures report
//! what is wrong with their links.

use std::collections::{HashMap, HashSet};

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{
    EventhandlerEntry, EventhandlerList, KernelRoots, Pcpu, SleepQueue, Thread, ThreadState,
};
use zerocopy::{FromBytes, IntoBytes};

use super::finding::Findings;
use super::memory::Memory;
use super::rule::rules;

rules! {
    None;
    Threads {
        LIST_CYCLE = "list-cycle":
            "no list of threads, queues, handlers or CPUs reaches an element twice";
    }
}

/// A structure with its address.
#[derive(Debug)]
pub(super) struct Item<T> {
    pub at: KPtr<T>,
    pub value: T,
}

impl<T> Item<T> {
    pub(super) fn addr(&self) -> GuestVirt {
        self.at.addr()
    }
}

/// Follows a chain from `head`. It ends at null, at an item that cannot be read, and at one that
/// was visited before.
pub(super) fn chain<T: FromBytes + IntoBytes>(
    memory: &Memory<'_>,
    findings: &Findings,
    what: &'static str,
    head: KPtr<T>,
    next: impl Fn(&T) -> KPtr<T>,
) -> Vec<Item<T>> {
    let (mut items, mut seen, mut at) = (Vec::new(), HashSet::new(), head);
    while let Some(pointer) = at.non_null() {
        if !seen.insert(pointer.addr()) {
            findings.add(&LIST_CYCLE, what, pointer.addr(), || {
                format!("its list leads back to it after {} items and never ends", items.len())
            });
            break;
        }
        match memory.get(what, pointer) {
            Ok(value) => {
                at = next(&value);
                items.push(Item { at: pointer, value });
            }
            Err(error) => {
                findings.unreadable(&error);
                break;
            }
        }
    }
    items
}

/// A sleep queue in use, with its spare queues.
#[derive(Debug)]
pub(super) struct Queue {
    pub queue: Item<SleepQueue>,
    /// Number of the hash chain on which it was found.
    pub chain: usize,
    pub spares: Vec<Item<SleepQueue>>,
}

/// An event's list with its handlers.
#[derive(Debug)]
pub(super) struct Event {
    pub list: Item<EventhandlerList>,
    pub handlers: Vec<Item<EventhandlerEntry>>,
}

/// All structures of the scheduler and of the event handlers.
#[derive(Debug, Default)]
pub(super) struct Sched {
    /// All CPUs.
    pub cpus: Vec<Item<Pcpu>>,
    /// All threads that have not exited, in the order of their list.
    pub threads: Vec<Item<Thread>>,
    /// Threads that have exited and wait to be freed.
    pub zombies: Vec<Item<Thread>>,
    /// Sleep queues in use.
    pub queues: Vec<Queue>,
    /// Lists of event handlers.
    pub events: Vec<Event>,
    numbers: HashMap<GuestVirt, usize>,
}

impl Sched {
    pub(super) fn read(memory: &Memory<'_>, roots: &KernelRoots, findings: &Findings) -> Self {
        // 1. The CPUs, whose list never shrinks.
        let mut read = Self::default();
        let sched = &roots.sched;
        read.cpus =
            chain(memory, findings, "CPU", roots.cpuhead.get(), |cpu: &Pcpu| cpu.allcpu_next.get());
        // 2. Threads and sleep queues, unless they are being changed: then their lists are not even
        //    followed.
        if sched.lock.owner.get() == 0 {
            read.threads = chain(memory, findings, "thread", sched.all.head.get(), |t: &Thread| {
                t.all_next.get()
            });
            read.zombies = chain(memory, findings, "thread", sched.zombies.get(), |t: &Thread| {
                t.rq_next.get()
            });
            for (number, head) in sched.sleepqueues.iter().enumerate() {
                for queue in chain(memory, findings, "sleep queue", head.get(), |q: &SleepQueue| {
                    q.hash_next.get()
                }) {
                    let next = |q: &SleepQueue| q.hash_next.get();
                    let spares =
                        chain(memory, findings, "sleep queue", queue.value.spare.get(), next);
                    read.queues.push(Queue { queue, chain: number, spares });
                }
            }
        }
        // 3. Event handlers have a lock of their own.
        if roots.eventhandler_mtx.owner.get() == 0 {
            let head = roots.eventhandler_lists.get();
            for list in
                chain(memory, findings, "event", head, |l: &EventhandlerList| l.next_list.get())
            {
                let next = |e: &EventhandlerEntry| e.next.get();
                let handlers =
                    chain(memory, findings, "event handler", list.value.first.get(), next);
                read.events.push(Event { list, handlers });
            }
        }
        // 4. The threads by address.
        read.numbers = read
            .threads
            .iter()
            .enumerate()
            .map(|(number, thread)| (thread.addr(), number))
            .collect();
        read
    }

    /// The thread at `at`, if it is on the list of all threads.
    pub(super) fn thread(&self, at: KPtr<Thread>) -> Option<&Item<Thread>> {
        self.numbers.get(&at.addr()).map(|&number| &self.threads[number])
    }

    /// The CPU whose idle thread is the one at `at`.
    pub(super) fn idles(&self, at: KPtr<Thread>) -> Option<&Item<Pcpu>> {
        self.cpus.iter().find(|cpu| cpu.value.idlethread.get() == at)
    }

    /// The CPU that runs the thread at `at`.
    pub(super) fn runs(&self, at: KPtr<Thread>) -> Option<&Item<Pcpu>> {
        self.cpus.iter().find(|cpu| cpu.value.curthread.get() == at)
    }

    /// The thread with this number.
    pub(super) fn by_tid(&self, tid: u32) -> Option<&Item<Thread>> {
        self.threads.iter().find(|thread| thread.value.tid.get() == tid)
    }

    /// Threads that sleep on `channel`.
    pub(super) fn sleepers(&self, channel: GuestVirt) -> impl Iterator<Item = &Item<Thread>> {
        let sleeps = move |thread: &&Item<Thread>| {
            thread.value.state() == Some(ThreadState::Sleeping)
                && thread.value.wchan.get() == channel
        };
        self.threads.iter().filter(sleeps)
    }
}

/// A thread's name in findings.
pub(super) fn label(thread: &Thread) -> String {
    format!("thread {} ({})", thread.tid.get(), thread.name())
}
