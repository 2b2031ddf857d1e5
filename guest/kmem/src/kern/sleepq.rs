//! Sleep queues (`subr_sleepqueue.c`): the threads that sleep on each channel, first come first.
//!
//! A channel is any address. Its queue is found by a hash, and exists only while a thread sleeps
//! there; [`SleepQueue`] says where it comes from. Locks: the scheduler's, throughout.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::WaitMessage;
use vmkern_abi::layout::{SC_TABLESIZE, SleepQueue, Thread, ThreadState};

use super::queue::{PointerList, PointerSList, PointerTailQ, pointer_links};
use super::{Kern, stall};
use crate::machine::{Cpu, PhysMem};
use crate::num::to_usize;

/// A wait channel: the address of the thing that a thread waits for. Nothing is ever read there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitChannel(GuestVirt);

impl WaitChannel {
    /// The channel of the structure behind `pointer`, which is not null.
    #[must_use]
    pub const fn of<T>(pointer: KPtr<T>) -> Self {
        Self(pointer.addr())
    }

    /// The address.
    #[must_use]
    pub const fn addr(self) -> GuestVirt {
        self.0
    }

    fn hash(self) -> usize {
        to_usize(self.0.get() >> 3 ^ self.0.get() >> 10) % SC_TABLESIZE
    }
}

impl From<GuestVirt> for WaitChannel {
    fn from(va: GuestVirt) -> Self {
        Self(va)
    }
}

pointer_links! {
    /// The chains of queues by hash (`sq_hash`), and those of spare ones.
    HashChain: SleepQueue { next: hash_next, prev: hash_prev }
    /// The threads that sleep on a queue (`td_slpq`).
    Blocked: Thread { next: sq_next, prev: sq_prev }
}

/// Whether a thread sleeps on `channel`: true only at this moment. Locks: takes the scheduler's.
#[must_use]
pub(crate) fn has_sleepers<M: PhysMem + Cpu>(kern: &Kern<M>, channel: WaitChannel) -> bool {
    kern.sched_lock();
    let found = kern.sleepq_lookup(channel).is_some();
    kern.sched_unlock();
    found
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// The queues whose channels have the hash of `channel` (`SC_LOOKUP`).
    fn sleepq_chain(&self, channel: WaitChannel) -> PointerList<'_, M, HashChain> {
        self.list(&self.sched().sleepqueues[channel.hash()])
    }

    /// The sleep queues that those who sleep on `queue` have brought along, but for the first one
    /// (`sq_free`).
    fn sleepq_spare<'a>(&'a self, queue: &'a SleepQueue) -> PointerSList<'a, M, HashChain> {
        self.slist(&queue.spare)
    }

    /// The threads that sleep on `queue`, first come first (`sq_blocked`).
    fn sleepq_blocked<'a>(&'a self, queue: &'a SleepQueue) -> PointerTailQ<'a, M, Blocked> {
        self.tailq(&queue.blocked.head, &queue.blocked.tail)
    }

    /// The queue of `channel`, if a thread sleeps there (`sleepq_lookup`).
    fn sleepq_lookup(&self, channel: WaitChannel) -> Option<KPtr<SleepQueue>> {
        self.sleepq_chain(channel).find(|queue| self.get(queue).wchan.get() == channel.0)
    }

    /// Puts `thread`, which runs or has never run, to sleep on `channel`, behind the threads that
    /// already sleep there (`sleepq_add`).
    pub(crate) fn sleepq_add(&self, thread: KPtr<Thread>, channel: WaitChannel, wmesg: &str) {
        let (t, wmesg) = (self.get(thread), WaitMessage::new(wmesg));
        let own = t.sleepqueue.get();
        let queue = match self.sleepq_lookup(channel) {
            Some(queue) => {
                self.sleepq_spare(self.get(queue)).insert_head(own);
                queue
            }
            None => {
                self.sleepq_insert(own, channel);
                own
            }
        };
        t.sleepqueue.set(KPtr::NULL);
        self.sleepq_blocked(self.get(queue)).insert_tail(thread);
        t.wchan.set(channel.0);
        for (field, word) in t.wmesg.iter().zip(wmesg.words()) {
            field.set(word);
        }
        stall::sleeps(self, thread, wmesg);
        t.state.put(ThreadState::Sleeping);
    }

    fn sleepq_insert(&self, queue: KPtr<SleepQueue>, channel: WaitChannel) {
        let q = self.get(queue);
        q.wchan.set(channel.0);
        q.spare.set(KPtr::NULL);
        self.sleepq_chain(channel).insert_head(queue);
    }

    /// Removes `thread`, which sleeps, from its queue, gives it one sleep queue to take along
    /// (`sleepq_resume_thread`), and cancels its time-out. It is then on no queue.
    fn sleepq_remove(&self, thread: KPtr<Thread>) {
        // 1. Off the queue of its channel.
        let t = self.get(thread);
        let channel = WaitChannel(t.wchan.get());
        let Some(queue) = self.sleepq_lookup(channel) else {
            self.panic(format_args!(
                "sleepq_remove: thread {} is not on a sleep queue",
                t.tid.get()
            ));
        };
        let q = self.get(queue);
        let blocked = self.sleepq_blocked(q);
        blocked.remove(thread);
        // 2. The last one takes the queue along, which leaves the hash; others take a spare one, of
        // which there is one for each that sleeps behind the first.
        if blocked.first().is_none() {
            self.sleepq_chain(channel).remove(queue);
            t.sleepqueue.set(queue);
        } else {
            t.sleepqueue.set(self.sleepq_spare(q).remove_head());
        }
        // 3. It sleeps no more.
        stall::wakes(self, thread);
        t.wchan.set(GuestVirt::new(0));
        t.wmesg.iter().for_each(|word| word.set(0));
        self.callout_stop(thread);
    }

    /// Removes the thread that has slept longest on `channel` from its queue.
    pub(crate) fn sleepq_take_first(&self, channel: WaitChannel) -> Option<KPtr<Thread>> {
        let thread = self.get(self.sleepq_lookup(channel)?).blocked.head.get();
        self.sleepq_remove(thread);
        Some(thread)
    }

    /// Wakes `thread`, whose sleep has timed out (`sleepq_timeout`).
    pub(crate) fn sleepq_timeout(&self, thread: KPtr<Thread>) {
        self.sleepq_remove(thread);
        self.get(thread).timed_out.raise();
        self.setrunnable(thread);
    }
}
