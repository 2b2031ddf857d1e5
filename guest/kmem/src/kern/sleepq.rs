//! Sleep queues (`subr_sleepqueue.c`): the threads that sleep on each channel, first come first.
//!
//! A channel is any address. Its queue is found by a hash, and exists only while a thread sleeps
//! there; [`SleepQueue`] says where it comes from. Locks: the scheduler's, throughout.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::field::Field;
use vmkern_abi::kmem::WaitMessage;
use vmkern_abi::layout::{SC_TABLESIZE, SleepQueue, Thread, ThreadState};

use super::Kern;
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

impl<M: PhysMem + Cpu> Kern<M> {
    fn sleepq_chain(&self, channel: WaitChannel) -> &Field<KPtr<SleepQueue>> {
        &self.sched().sleepqueues[channel.hash()]
    }

    /// The queue of `channel`, if a thread sleeps there (`sleepq_lookup`).
    fn sleepq_lookup(&self, channel: WaitChannel) -> Option<KPtr<SleepQueue>> {
        let mut at = self.sleepq_chain(channel).get();
        while let Some(queue) = at.non_null() {
            if self.get(queue).wchan.get() == channel.0 {
                return Some(queue);
            }
            at = self.get(queue).hash_next.get();
        }
        None
    }

    /// Puts `thread`, which runs or has never run, to sleep on `channel`, behind the threads that
    /// already sleep there (`sleepq_add`).
    pub(crate) fn sleepq_add(&self, thread: KPtr<Thread>, channel: WaitChannel, wmesg: &str) {
        let t = self.get(thread);
        let own = t.sleepqueue.get();
        let queue = match self.sleepq_lookup(channel) {
            Some(queue) => {
                let spare = &self.get(queue).spare;
                self.get(own).hash_next.set(spare.get());
                spare.set(own);
                queue
            }
            None => {
                self.sleepq_insert(own, channel);
                own
            }
        };
        t.sleepqueue.set(KPtr::NULL);
        let list = &self.get(queue).blocked;
        let last = list.tail.get();
        t.sq_prev.set(last);
        t.sq_next.set(KPtr::NULL);
        last.non_null().map_or(&list.head, |last| &self.get(last).sq_next).set(thread);
        list.tail.set(thread);
        t.wchan.set(channel.0);
        for (field, word) in t.wmesg.iter().zip(WaitMessage::new(wmesg).words()) {
            field.set(word);
        }
        t.state.put(ThreadState::Sleeping);
    }

    fn sleepq_insert(&self, queue: KPtr<SleepQueue>, channel: WaitChannel) {
        let chain = self.sleepq_chain(channel);
        let (q, next) = (self.get(queue), chain.get());
        q.wchan.set(channel.0);
        q.spare.set(KPtr::NULL);
        q.hash_prev.set(KPtr::NULL);
        q.hash_next.set(next);
        if let Some(next) = next.non_null() {
            self.get(next).hash_prev.set(queue);
        }
        chain.set(queue);
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
        let (prev, next) = (t.sq_prev.get(), t.sq_next.get());
        prev.non_null().map_or(&q.blocked.head, |prev| &self.get(prev).sq_next).set(next);
        next.non_null().map_or(&q.blocked.tail, |next| &self.get(next).sq_prev).set(prev);
        // 2. The last one takes the queue along, which leaves the hash; others take a spare one, of
        // which there is one for each that sleeps behind the first.
        if q.blocked.head.get().is_null() {
            let (before, after) = (q.hash_prev.get(), q.hash_next.get());
            before
                .non_null()
                .map_or(self.sleepq_chain(channel), |before| &self.get(before).hash_next)
                .set(after);
            if let Some(after) = after.non_null() {
                self.get(after).hash_prev.set(before);
            }
            t.sleepqueue.set(queue);
        } else {
            let spare = q.spare.get();
            q.spare.set(self.get(spare).hash_next.get());
            t.sleepqueue.set(spare);
        }
        // 3. It sleeps no more.
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
