//! Time-outs of sleeping threads (`kern_timeout.c`), in a pairing heap through the threads
//! themselves.
//!
//! Arming is O(1), finding the next deadline is O(1), and removal is O(log n) amortised, whether
//! the time-out is due or its thread was woken earlier. Equal deadlines are due in the order in
//! which they were armed. Locks: the scheduler's, throughout.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::Thread;

use super::Kern;
use crate::machine::{Cpu, PhysMem};

impl<M: PhysMem + Cpu> Kern<M> {
    /// Arms the time-out of `thread` for tick `deadline` (`callout_reset`). It has none yet.
    pub(crate) fn callout_arm(&self, thread: KPtr<Thread>, deadline: u64) {
        let sched = &self.state().sched;
        sched.callout_sequence.inc();
        let callout = &self.get(thread).callout;
        callout.deadline.set(deadline);
        callout.sequence.set(sched.callout_sequence.get());
        for link in [&callout.child, &callout.sibling, &callout.prev] {
            link.set(KPtr::NULL);
        }
        sched.callouts.set(self.callout_meld(sched.callouts.get(), thread));
        let (boot, here) = (self.boot_pcpu(), self.pcpu());
        if sched.callouts.get() == thread && here.cpuid.get() != boot.cpuid.get() {
            self.machine().clock_needed(boot, Some(deadline));
        }
    }

    /// Cancels the time-out of `thread`, if it has one (`callout_stop`).
    pub(crate) fn callout_stop(&self, thread: KPtr<Thread>) {
        let sched = &self.state().sched;
        let callout = &self.get(thread).callout;
        if callout.sequence.get() == 0 {
            return;
        }
        callout.sequence.set(0);
        let below = self.callout_merge_children(callout.child.get());
        if sched.callouts.get() == thread {
            sched.callouts.set(below);
            return;
        }
        let (prev, next) = (callout.prev.get(), callout.sibling.get());
        let before = &self.get(prev).callout;
        if before.child.get() == thread {
            before.child.set(next);
        } else {
            before.sibling.set(next);
        }
        if !next.is_null() {
            self.get(next).callout.prev.set(prev);
        }
        sched.callouts.set(self.callout_meld(sched.callouts.get(), below));
    }

    /// The thread whose time-out is due next, with its deadline.
    pub(crate) fn callout_first(&self) -> Option<(KPtr<Thread>, u64)> {
        let thread = self.state().sched.callouts.get().non_null()?;
        Some((thread, self.get(thread).callout.deadline.get()))
    }

    /// Melds two heaps, either of which may be empty. Neither root has siblings.
    fn callout_meld(&self, a: KPtr<Thread>, b: KPtr<Thread>) -> KPtr<Thread> {
        if a.is_null() || b.is_null() {
            return if a.is_null() { b } else { a };
        }
        let key = |thread: KPtr<Thread>| {
            let callout = &self.get(thread).callout;
            (callout.deadline.get(), callout.sequence.get())
        };
        let (above, below) = if key(a) <= key(b) { (a, b) } else { (b, a) };
        let (parent, child) = (&self.get(above).callout, &self.get(below).callout);
        let next = parent.child.get();
        child.sibling.set(next);
        child.prev.set(above);
        if !next.is_null() {
            self.get(next).callout.prev.set(below);
        }
        parent.child.set(below);
        above
    }

    /// Melds the siblings from `first` on into one heap: in pairs, and then the pairs from the last
    /// to the first.
    fn callout_merge_children(&self, first: KPtr<Thread>) -> KPtr<Thread> {
        let detach = |thread: KPtr<Thread>| {
            let callout = &self.get(thread).callout;
            let next = callout.sibling.get();
            callout.sibling.set(KPtr::NULL);
            callout.prev.set(KPtr::NULL);
            next
        };
        let (mut pairs, mut at) = (KPtr::NULL, first);
        while !at.is_null() {
            let (a, b) = (at, detach(at));
            at = if b.is_null() { b } else { detach(b) };
            let pair = self.callout_meld(a, b);
            self.get(pair).callout.sibling.set(pairs);
            pairs = pair;
        }
        let mut all = KPtr::NULL;
        while !pairs.is_null() {
            let pair = pairs;
            pairs = detach(pair);
            all = self.callout_meld(all, pair);
        }
        all
    }
}
