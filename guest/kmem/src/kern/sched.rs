//! The scheduler: which thread runs (`sched_4bsd.c`, `kern_switch.c`, the switching half of
//! `kern_synch.c`).
//!
//! The thread with the smallest priority number runs; equals take turns, first come first served,
//! for a time slice each. A thread that becomes runnable never takes a CPU by itself: its wakeup
//! sets [`Pcpu::need_resched`], and the machine asks for the switch on its way out of an interrupt
//! ([`Kern::preempt`]).
//!
//! Each CPU has a run queue and an idle thread. A thread that becomes runnable stays where it was
//! woken, or goes to an idle CPU ([`Scheduler::spread`]). A CPU whose queue is empty takes the best
//! thread of the others; a CPU on which a time slice ends while threads wait makes an idle CPU do
//! so. The idle thread runs when there is no other. The idle thread of the CPU that booted is the
//! thread that the boot became, and may sleep: it is on its CPU's queue only when a sleep has lent
//! it a better priority.
//!
//! **Protocol.** One spin lock guards everything here. It is held across a switch: the thread that
//! leaves has acquired it, and the thread that arrives releases it. So no CPU takes a thread whose
//! stack another CPU is still leaving.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{
    Pcpu, Preempt, RQ_PPQ, RunQueue, Scheduler, Spread, Thread, ThreadList, ThreadState,
};

use super::queue::{PointerSList, PointerTailQ, pointer_links};
use super::{Kern, stall};
use crate::kern::lock::LockClass;
use crate::kern::thread::{PAGEDAEMON_TID, PAGEZERO_TID};
use crate::machine::{Cpu, PhysMem};

/// Priority of a thread that waits for the swapper (`PSWP`).
pub const PSWP: u8 = 64;
/// Priority of a thread that waits for memory (`PVM`).
pub const PVM: u8 = 68;
/// Priority of threads that run operations (`PUSER`).
pub const PUSER: u8 = 160;
/// Priority of the idle thread (`PRI_MAX_IDLE`).
pub const PRI_MAX_IDLE: u8 = 255;

/// After this many time-outs of the kernel's own daemons in a row, without any other, while all
/// threads including the idle thread sleep, the system is considered stuck. They take more than an
/// hour.
const IDLE_PASSES: u64 = 10_000;

/// Which end of its list a thread goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It keeps its turn (`SRQ_PREEMPTED`).
    Keep,
    /// It goes behind its equals.
    Back,
}

/// Whether an idle thread works for others: [`Pcpu::serving`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It sleeps or looks for work.
    No,
    /// It does.
    Yes,
}

const fn queue_of(priority: u8) -> usize {
    (priority / RQ_PPQ) as usize
}

pointer_links! {
    /// The lists of run queues (`td_runq`).
    RunQueueLinks: Thread { next: rq_next, prev: rq_prev }
    /// All CPUs (`pc_allcpu`).
    pub(crate) CpuLinks: Pcpu { next: allcpu_next }
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// The scheduler's state.
    #[inline]
    pub(crate) fn sched(&self) -> &Scheduler {
        &self.state().sched
    }

    /// Acquires the scheduler's lock. It has no guard: the thread that arrives on a CPU releases
    /// the lock that the thread that left has acquired.
    pub(crate) fn sched_lock(&self) {
        self.mtx_lock(LockClass::Sched, &self.sched().lock.owner);
    }

    /// Releases the scheduler's lock.
    pub(crate) fn sched_unlock(&self) {
        self.mtx_unlock(LockClass::Sched, &self.sched().lock.owner);
    }

    /// The running thread (`curthread`); null before the scheduler is up.
    #[inline]
    #[must_use]
    pub fn current_thread(&self) -> KPtr<Thread> {
        self.machine().current_thread()
    }

    /// The calling CPU. The caller stays on it as long as interrupts are deferred.
    #[inline]
    pub(crate) fn pcpu(&self) -> &Pcpu {
        self.get(self.machine().pcpu())
    }

    /// The CPU that booted.
    pub(crate) fn boot_pcpu(&self) -> &Pcpu {
        self.get(self.state().cpuhead.get())
    }

    /// All CPUs, the one that booted first.
    pub fn cpus(&self) -> impl Iterator<Item = &Pcpu> {
        self.cpu_list().iter().map(|cpu| self.get(cpu))
    }

    /// All CPUs (`cpuhead`). Whoever adds one holds the scheduler's lock; whoever looks need not.
    #[inline]
    pub(crate) fn cpu_list(&self) -> PointerSList<'_, M, CpuLinks> {
        self.slist(&self.state().cpuhead)
    }

    /// Whether a thread waits for a CPU (`sched_runnable`).
    #[must_use]
    pub fn runnable(&self) -> bool {
        self.cpus().any(|cpu| cpu.runq.status.get() != 0)
    }

    /// Whether [`Kern::preempt`] would switch if the running thread allowed it.
    #[inline]
    #[must_use]
    pub fn switch_owed(&self) -> bool {
        !self.pcpu().need_resched.is(Preempt::No)
    }

    /// Whether `cpu` runs its idle thread and has no other thread to run.
    fn is_idle(&self, cpu: &Pcpu) -> bool {
        cpu.curthread.get() == cpu.idlethread.get() && cpu.runq.status.get() == 0
    }

    /// The CPU on which `thread`, which has become runnable, should run (`sched_pickcpu`): this
    /// one, unless threads are spread. If they are, the CPU where it ran last if that is idle, else
    /// any idle CPU, and if all are busy, the CPU where it ran last. The CPU that booted comes
    /// after the others, because its idle thread serves the host, which may send more requests. An
    /// idle thread runs on its own CPU. So does a thread that has gone to sleep while the idle
    /// thread also sleeps: that CPU waits on its stack ([`Kern::choosethread`]).
    fn sched_pickcpu(&self, thread: KPtr<Thread>) -> &Pcpu {
        let here = self.pcpu();
        if self.cnt().ncpu.get() == 1 {
            return here;
        }
        let boot = self.boot_pcpu();
        if boot.curthread.get() == thread {
            return boot;
        }
        let last = u32::from(self.get(thread).lastcpu.get());
        let last = self.cpus().find(|cpu| cpu.cpuid.get() == last).unwrap_or(here);
        if last.idlethread.get() == thread {
            return last;
        }
        if !self.sched().spread.is(Spread::Yes) {
            return here;
        }
        let others = [last, here]
            .into_iter()
            .chain(self.cpus())
            .filter(|cpu| cpu.cpuid.get() != boot.cpuid.get());
        others.chain([boot]).find(|cpu| self.is_idle(cpu)).unwrap_or(last)
    }

    /// Puts a thread that can run on the run queue of `cpu` (`runq_add`). An idle thread is not
    /// queued, unless a sleep has lent it a priority.
    fn runq_add(&self, cpu: &Pcpu, thread: KPtr<Thread>, turn: Turn) {
        let t = self.get(thread);
        t.state.put(ThreadState::Runnable);
        if thread == cpu.idlethread.get() && t.priority.get() == t.base_priority.get() {
            return;
        }
        let number = queue_of(t.priority.get());
        let list = self.runq_list(&cpu.runq.queues[number]);
        match turn {
            Turn::Back => list.insert_tail(thread),
            Turn::Keep => list.insert_head(thread),
        }
        cpu.runq.status.update_locked(|bits| bits | 1 << number);
    }

    /// The threads that wait on `list`, one of a run queue's. Locks: the scheduler's.
    #[inline]
    fn runq_list<'a>(&'a self, list: &'a ThreadList) -> PointerTailQ<'a, M, RunQueueLinks> {
        self.tailq(&list.head, &list.tail)
    }

    /// The thread on `runq` that should run next (`runq_choose`).
    fn runq_first(&self, runq: &RunQueue) -> Option<KPtr<Thread>> {
        runq.queues.get(runq.status.get().trailing_zeros() as usize).map(|list| list.head.get())
    }

    /// Removes the thread that should run next from `runq` (`runq_remove`).
    fn runq_take(&self, runq: &RunQueue) -> Option<KPtr<Thread>> {
        let number = runq.status.get().trailing_zeros();
        let list = self.runq_list(runq.queues.get(number as usize)?);
        // Its bit says that there is one.
        let thread = list.remove_head();
        if list.first().is_none() {
            runq.status.update_locked(|bits| bits & !(1 << number));
        }
        self.get(thread).rq_next.set(KPtr::NULL);
        Some(thread)
    }

    /// Makes `thread`, which is on no queue, runnable (`setrunnable`, `sched_add`). Locks: the
    /// scheduler's.
    pub(crate) fn setrunnable(&self, thread: KPtr<Thread>) {
        stall::can_run(self, thread);
        let cpu = self.sched_pickcpu(thread);
        self.runq_add(cpu, thread, Turn::Back);
        let current = self.get(cpu.curthread.get());
        let better = queue_of(self.get(thread).priority.get()) < queue_of(current.priority.get());
        if better && cpu.need_resched.is(Preempt::No) {
            cpu.need_resched.put(Preempt::Better);
            if cpu.cpuid.get() != self.pcpu().cpuid.get() {
                self.machine().cpu_interrupt(cpu);
            }
        } else {
            self.clock_wanted(cpu);
        }
    }

    /// Asks for the clock's interrupts on `cpu` if the thread that runs there must not keep the
    /// CPU: another thread waits for the CPU, or, on the CPU that serves the time-outs, for a
    /// time-out. Locks: the scheduler's.
    fn clock_wanted(&self, cpu: &Pcpu) {
        let due = if cpu.cpuid.get() == 0 {
            self.callout_first().map(|(_, deadline)| deadline)
        } else {
            None
        };
        if cpu.curthread.get() != cpu.idlethread.get()
            && (cpu.runq.status.get() != 0 || due.is_some())
        {
            self.machine().clock_needed(cpu, due);
        }
    }

    /// Asks for the clock's next interrupt on this CPU if it is of any use there
    /// ([`Cpu::clock_needed`]). The machine calls it when that clock has stopped, and when
    /// another CPU has asked for it. Interrupts are deferred. Locks: takes the scheduler's.
    pub fn ask_for_clock(&self) {
        self.sched_lock();
        self.clock_wanted(self.pcpu());
        self.sched_unlock();
    }

    /// Takes the best thread that waits for another CPU than `here`. A CPU that runs its idle
    /// thread and has been asked to give way is about to take its threads itself. So is a CPU that
    /// waits for work on the stack of its last thread, which no other CPU may use in that time.
    fn runq_steal(&self, here: &Pcpu) -> Option<KPtr<Thread>> {
        if self.sched().spread.is(Spread::Never) {
            return None;
        }
        let is_its_own =
            |cpu: &Pcpu, thread| [cpu.idlethread.get(), cpu.curthread.get()].contains(&thread);
        let first =
            |cpu: &Pcpu| self.runq_first(&cpu.runq).filter(|&thread| !is_its_own(cpu, thread));
        let comes_by_itself = |cpu: &Pcpu| {
            cpu.curthread.get() == cpu.idlethread.get() && !cpu.need_resched.is(Preempt::No)
        };
        let others =
            self.cpus().filter(|cpu| cpu.cpuid.get() != here.cpuid.get() && !comes_by_itself(cpu));
        let (best, _) = others
            .filter_map(|cpu| Some((cpu, self.get(first(cpu)?).priority.get())))
            .min_by_key(|&(_, priority)| queue_of(priority))?;
        self.runq_take(&best.runq)
    }

    /// The thread that runs next on this CPU (`choosethread`). When there is none, because the idle
    /// thread itself sleeps, the CPU idles here, on the stack of the thread that is about to leave
    /// it: if that thread is woken, it continues on this CPU and on no other.
    fn choosethread(&self) -> KPtr<Thread> {
        let cpu = self.pcpu();
        let mut spins = 0;
        loop {
            if let Some(thread) = self.runq_take(&cpu.runq).or_else(|| self.runq_steal(cpu)) {
                return thread;
            }
            let idle = cpu.idlethread.get();
            if self.get(idle).state() == Some(ThreadState::Runnable) {
                return idle;
            }
            if self.others_are_idle(cpu) {
                self.idle_pass();
                // An interrupt may make a thread runnable, here or on another CPU: both are looked
                // at again.
                self.sched_unlock();
                self.machine().cpu_idle(self);
            } else {
                // Another CPU may queue a thread here, or leave one that this CPU can take.
                self.sched_unlock();
                self.machine().cpu_spinwait(spins);
                self.hardclock(self.machine().ticks());
                spins += 1;
            }
            self.sched_lock();
        }
    }

    /// Called when all threads, including the idle thread, sleep, and time will pass. Panics when
    /// for a long time only the kernel's own daemons have had time-outs: they wake up for ever.
    /// Locks: the scheduler's.
    fn idle_pass(&self) {
        let passes = &self.sched().idle_passes;
        let daemon = |thread: KPtr<Thread>| {
            [PAGEDAEMON_TID, PAGEZERO_TID].contains(&self.get(thread).tid.get())
        };
        match self.callout_first() {
            Some((thread, _)) if daemon(thread) => passes.inc(),
            _ => passes.set(0),
        }
        if passes.get() > IDLE_PASSES {
            self.panic(format_args!(
                "all threads sleep forever, apart from time-outs of the kernel itself"
            ));
        }
    }

    /// Switches to the thread that [`Kern::choosethread`] returns: the running thread, whose new
    /// state and queue are set already, or another (`mi_switch`, `sched_switch`). Locks: the
    /// scheduler's, and no other.
    pub(crate) fn mi_switch(&self) {
        let from = self.current_thread();
        self.assert_may_switch();
        let to = self.choosethread();
        self.take_cpu(to);
        if to != from {
            self.machine().cpu_switch(from, to);
            self.arrive();
        }
    }

    /// Takes over the scheduler's lock from the thread that ran before.
    pub(crate) fn arrive(&self) {
        self.sched().lock.owner.set(self.curtid() + 1);
    }

    /// Switches away from the running thread for ever (`cpu_throw`). Locks: the scheduler's, and no
    /// other.
    pub(crate) fn mi_throw(&self) -> ! {
        let from = self.current_thread();
        self.assert_may_switch();
        let to = self.choosethread();
        self.take_cpu(to);
        self.machine().cpu_throw(from, to)
    }

    /// Records that `thread` gets the CPU, with a full time slice.
    fn take_cpu(&self, thread: KPtr<Thread>) {
        let (cpu, t) = (self.pcpu(), self.get(thread));
        t.state.put(ThreadState::Running);
        t.switches.inc();
        t.lastcpu.set(u8::try_from(cpu.cpuid.get()).unwrap_or(u8::MAX));
        cpu.curthread.set(thread);
        cpu.need_resched.put(Preempt::No);
        cpu.slice.set(self.sched_quantum());
        self.clock_wanted(cpu);
        if thread == cpu.idlethread.get() && cpu.cpuid.get() != 0 && self.all_idle() {
            self.machine().cpu_interrupt(self.boot_pcpu());
        }
    }

    /// Whether every CPU except `here` has only its idle thread to run. Locks: the scheduler's.
    fn others_are_idle(&self, here: &Pcpu) -> bool {
        self.cpus().all(|cpu| cpu.cpuid.get() == here.cpuid.get() || self.is_idle(cpu))
    }

    /// Whether every CPU has only its idle thread to run. Locks: the scheduler's.
    fn all_idle(&self) -> bool {
        self.cpus().all(|cpu| self.is_idle(cpu))
    }

    /// Whether the system is idle: every CPU has only its idle thread to run. An idle thread calls
    /// this. Locks: takes the scheduler's.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        // Idle CPUs ask again and again: the lock is for those who run.
        if !self.all_idle() {
            return false;
        }
        self.sched_lock();
        let rest = self.all_idle();
        self.sched_unlock();
        rest
    }

    /// Ticks of a time slice: a tenth of a second.
    fn sched_quantum(&self) -> u64 {
        (self.cnt().hz.get() / 10).max(1)
    }

    fn assert_may_switch(&self) {
        let (t, held) = (self.get(self.current_thread()), self.held_locks());
        if held != LockClass::Sched.bit() {
            self.panic(format_args!("mi_switch: switch with locks held: {held}"));
        }
        if t.critnest.get() != 0 {
            self.panic(format_args!("mi_switch: switch in a critical section"));
        }
        if t.intr_nesting.get() != 0 {
            self.panic(format_args!("mi_switch: switch in an interrupt"));
        }
    }

    fn give_way(&self, turn: Turn) {
        self.runq_add(self.pcpu(), self.current_thread(), turn);
        // Other threads have run when this returns, perhaps on another CPU: of the scheduler's
        // state only the lock is as before.
        self.mi_switch();
    }

    /// Lets every thread of the same priority run first (`sched_relinquish`). For the idle thread
    /// it returns when no other thread can run. Locks: none may be held. May switch.
    pub fn sched_yield(&self) {
        self.assert_no_locks("sched_yield");
        self.sched_lock();
        if self.current_thread() == self.pcpu().idlethread.get() {
            self.sched_userret();
        }
        self.give_way(Turn::Back);
        self.sched_unlock();
    }

    /// Switches to a thread that should run instead, if there is one and the running thread is not
    /// in a critical section (`ast` with `TDF_NEEDRESCHED`). The machine calls it at the end of an
    /// interrupt, when nothing is deferred. May switch.
    pub fn preempt(&self) {
        let turn = match self.pcpu().need_resched.known() {
            Some(Preempt::No) => return,
            Some(Preempt::Better) => Turn::Keep,
            Some(Preempt::SliceOver) | None => Turn::Back,
        };
        let Some(current) = self.current_thread().non_null() else { return };
        let t = self.get(current);
        if t.intr_nesting.get() != 0 || t.state() != Some(ThreadState::Running) {
            return;
        }
        if t.critnest.get() != 0 {
            t.owepreempt.raise();
            return;
        }
        self.assert_no_locks("preempt");
        self.sched_lock();
        self.give_way(turn);
        self.sched_unlock();
    }

    /// Enters a critical section: the running thread keeps the CPU until it leaves the outermost
    /// one, whatever interrupts come (`critical_enter`). It may not sleep.
    pub fn critical_enter(&self) {
        if let Some(current) = self.current_thread().non_null() {
            self.get(current).critnest.inc();
        }
    }

    /// Leaves a critical section (`critical_exit`). Leaving the outermost one makes up for a
    /// preemption that was deferred. Panics when the thread is in none.
    pub fn critical_exit(&self) {
        let Some(current) = self.current_thread().non_null() else { return };
        let t = self.get(current);
        let Some(depth) = t.critnest.get().checked_sub(1) else {
            self.panic(format_args!("critical_exit: td_critnest == 0"));
        };
        t.critnest.set(depth);
        if depth == 0 && t.owepreempt.is_set() && t.held_locks.get().is_empty() {
            t.owepreempt.lower();
            self.preempt();
        }
    }

    /// Restores the running thread's own priority after sleeps that have lent it another
    /// (`sched_userret`). Threads that run operations call it between two of them.
    pub fn sched_userret(&self) {
        if let Some(current) = self.current_thread().non_null() {
            let t = self.get(current);
            t.priority.set(t.base_priority.get());
        }
    }

    /// An interrupt handler begins (`td_intr_nesting_level++`): until [`Kern::intr_exit`] the
    /// thread may not sleep.
    pub fn intr_enter(&self) {
        if let Some(current) = self.current_thread().non_null() {
            self.get(current).intr_nesting.inc();
        }
    }

    /// Whether an interrupt handler is running.
    #[must_use]
    pub fn in_interrupt(&self) -> bool {
        self.current_thread()
            .non_null()
            .is_some_and(|current| self.get(current).intr_nesting.get() != 0)
    }

    /// The handler ends. The machine calls [`Kern::preempt`] when it is about to return to code
    /// with nothing deferred.
    pub fn intr_exit(&self) {
        let Some(current) = self.current_thread().non_null() else { return };
        let t = self.get(current);
        let Some(nesting) = t.intr_nesting.get().checked_sub(1) else {
            self.panic(format_args!("intr_exit: no interrupt handler is running"));
        };
        t.intr_nesting.set(nesting);
    }

    /// The clock is at tick `now` (`hardclock`): wakes the threads whose time-outs are due, in the
    /// order of their deadlines, and charges the running thread for its time. It may skip ticks,
    /// but not go back. Runs in the clock's interrupt, or on the idle thread. Locks: takes the
    /// scheduler's. Does not switch.
    pub fn hardclock(&self, now: u64) {
        self.sched_lock();
        let ticks = &self.cnt().ticks;
        let passed = now.saturating_sub(ticks.get());
        ticks.set(now.max(ticks.get()));
        while let Some((thread, _)) = self.callout_first().filter(|&(_, deadline)| deadline <= now)
        {
            self.sleepq_timeout(thread);
        }
        let slice = &self.pcpu().slice;
        slice.set(slice.get().saturating_sub(passed));
        if slice.get() == 0 {
            self.roundrobin();
        }
        self.sched_unlock();
    }

    /// Ends the running thread's time slice now. Runs in an interrupt. Locks: takes the
    /// scheduler's.
    pub fn end_slice(&self) {
        self.sched_lock();
        self.roundrobin();
        self.sched_unlock();
    }

    /// The time slice is over (`roundrobin`): a thread that waits at the running thread's own
    /// priority is next.
    fn roundrobin(&self) {
        let cpu = self.pcpu();
        let Some(current) = self.current_thread().non_null() else { return };
        let t = self.get(current);
        if t.state() != Some(ThreadState::Running) {
            return;
        }
        t.priority.set(t.base_priority.get());
        if current == cpu.idlethread.get()
            || cpu.runq.status.get().trailing_zeros() as usize <= queue_of(t.priority.get())
        {
            if self.runnable() {
                cpu.need_resched.put(Preempt::SliceOver);
                self.wake_idle_cpu();
            }
        } else {
            cpu.slice.set(self.sched_quantum());
        }
    }

    /// Threads wait here: makes an idle CPU take one (`sched_balance`).
    fn wake_idle_cpu(&self) {
        if self.sched().spread.is(Spread::Never) {
            return;
        }
        if let Some(idle) = self.cpus().find(|cpu| self.is_idle(cpu)) {
            idle.need_resched.put(Preempt::Better);
            self.machine().cpu_interrupt(idle);
        }
    }

    /// Sets whether the calling idle thread works for others; its work may then be half done.
    pub fn set_serving(&self, serving: Serving) {
        self.pcpu().serving.set((serving == Serving::Yes).into());
    }

    /// Sets whether threads that become runnable go to idle CPUs.
    pub fn sched_spread(&self, spread: Spread) {
        self.sched().spread.put(spread);
    }

    /// The tick at which the next time-out is due, if a thread has one.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        self.sched_lock();
        let first = self.callout_first();
        self.sched_unlock();
        first.map(|(_, deadline)| deadline)
    }
}
