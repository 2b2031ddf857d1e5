//! Driving the threads of the simulated machine.
//!
//! A test runs on the idle thread and decides when others run ([`Sim::run`]) and when time passes
//! ([`Sim::advance`]): nothing happens in between. An operation that it performs itself
//! ([`Sim::execute`]) may sleep: then others run, and time passes, until it is done.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{Op, Outcome, WaitMessage};
use vmkern_abi::layout::Thread;

use super::{Sim, SimAccess, SimMachine};
use crate::kern::Kern;
use crate::kern::lock::LockClass;
use crate::kern::sched::PUSER;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::Relock;
use crate::ops::{self, Executed};
use crate::vm::Vm;
use crate::vm::thread::ThreadSpec;

/// A thread that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number.
    pub tid: u32,
    /// What it waits for.
    pub wmesg: WaitMessage,
    /// The address on which it sleeps.
    pub wchan: GuestVirt,
    /// The tick at which it stops waiting, if it does.
    pub deadline: Option<u64>,
}

/// The work of a thread.
type Closure = Box<dyn FnOnce(&Vm<SimMachine>) + Send>;

/// How a thread performs its operation.
type Doing = fn(&Vm<SimMachine>, &Op) -> Outcome;

/// The messages between the driver and the threads.
#[derive(Default)]
pub struct Mailbox {
    closures: Mutex<BTreeMap<u64, Closure>>,
    requests: Mutex<BTreeMap<u32, Request>>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

/// The operation of a thread, in progress.
#[derive(Clone, Copy, Debug)]
enum Request {
    Asked(Op, Doing),
    Working,
    Answered(Outcome),
}

impl Mailbox {
    fn closures(&self) -> MutexGuard<'_, BTreeMap<u64, Closure>> {
        self.closures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<u32, Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Message of a thread that waits for an operation.
const IDLE: &str = "-";

/// All threads that sleep, without the idle ones.
pub fn sleepers(vm: &Kern<SimMachine>) -> Vec<Waiting> {
    let sleeper = |thread: KPtr<Thread>| {
        let t = vm.get(thread);
        let wmesg = t.wait_message().filter(|&wmesg| wmesg != WaitMessage::new(IDLE))?;
        let deadline = (t.callout.sequence.get() != 0).then(|| t.callout.deadline.get());
        Some(Waiting { tid: t.tid.get(), wmesg, wchan: t.wchan.get(), deadline })
    };
    vm.threads().filter_map(sleeper).collect()
}

/// The sleeping threads and what they wait for, as text.
pub fn waiting(vm: &Kern<SimMachine>) -> String {
    let mut text = String::new();
    for Waiting { tid, wmesg, wchan, .. } in sleepers(vm) {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}thread {tid} in `{wmesg}` on {wchan}");
    }
    text
}

/// Runs the closure with this number.
fn run_closure(vm: &Vm<SimMachine>, number: u64) {
    let closure = vm.machine().mailbox.closures().remove(&number).expect("each closure runs once");
    closure(vm);
}

/// A thread that performs operations, one after the other, for ever.
fn worker(vm: &Vm<SimMachine>, tid: u64) {
    let tid = u32::try_from(tid).expect("the number of a thread");
    let driver = &vm.state().driver_mtx;
    loop {
        vm.mtx_lock(LockClass::Driver, &driver.owner);
        let (op, doing) = loop {
            let request = vm.machine().mailbox.requests().get(&tid).copied();
            if let Some(Request::Asked(op, doing)) = request {
                break (op, doing);
            }
            let interlock = (LockClass::Driver, driver);
            vm.msleep(WaitChannel::of(vm.current_thread()), interlock, 0, IDLE, 0, Relock::Yes);
        };
        vm.machine().mailbox.requests().insert(tid, Request::Working);
        vm.mtx_unlock(LockClass::Driver, &driver.owner);
        let outcome = doing(vm, &op);
        vm.machine().mailbox.requests().insert(tid, Request::Answered(outcome));
        vm.sched_userret();
    }
}

/// Performs `op` on the running thread, sleeps included.
pub fn perform(vm: &Vm<SimMachine>, op: &Op) -> Outcome {
    match ops::execute(vm, &SimAccess::new(vm), op) {
        Executed::Done(outcome) => outcome,
        Executed::Sleep { micros } => {
            let ticks = (u128::from(micros) * u128::from(vm.cnt().hz.get())).div_ceil(1_000_000);
            vm.tsleep(
                WaitChannel::of(vm.current_thread()),
                0,
                "sleep",
                u64::try_from(ticks).unwrap_or(u64::MAX).max(1),
            );
            Outcome::Ok
        }
        Executed::Settle | Executed::Join { .. } => panic!("{op:?} is the driver's to do"),
    }
}

impl Sim {
    /// Creates thread `tid`, which runs `f` when it first runs, and exits. No thread runs before
    /// [`Sim::run`].
    pub fn spawn(
        &self,
        tid: u32,
        f: impl FnOnce(&Vm<SimMachine>) + Send + 'static,
    ) -> KPtr<Thread> {
        self.spawn_with_priority(tid, PUSER, f)
    }

    /// [`Sim::spawn`] with a priority.
    pub fn spawn_with_priority(
        &self,
        tid: u32,
        priority: u8,
        f: impl FnOnce(&Vm<SimMachine>) + Send + 'static,
    ) -> KPtr<Thread> {
        let mut closures = self.machine().mailbox.closures();
        let number = closures.keys().next_back().map_or(0, |last| last + 1);
        closures.insert(number, Box::new(f));
        drop(closures);
        let spec = ThreadSpec {
            tid,
            name: &format!("sim{tid}"),
            priority,
            start: run_closure,
            arg: number,
        };
        self.vm().kthread_create(&spec).unwrap_or_else(|_| panic!("no memory for thread {tid}"))
    }

    /// Lets all threads run until none of them can continue without time or the driver. Returns the
    /// threads that sleep, without those that only wait for an operation.
    pub fn run(&self) -> Vec<Waiting> {
        while self.vm().runnable() {
            self.vm().sched_yield();
        }
        self.vm().thread_reap();
        self.waiting()
    }

    /// Lets all threads run for `ticks` ticks, at least 1, whether they ever sleep or not: they
    /// call [`SimMachine::tick`].
    pub fn run_for(&self, ticks: u64) {
        let vm = self.vm();
        vm.tsleep(WaitChannel::of(vm.current_thread()), 1, "driver", ticks);
        vm.sched_userret();
    }

    /// Lets time pass until the next time-out, and runs all threads that it wakes. Returns the
    /// tick, or `None` when no thread has a time-out.
    pub fn advance(&self) -> Option<u64> {
        let deadline = self.vm().next_timeout()?;
        self.machine().set_clock(self.vm(), deadline);
        self.run();
        Some(deadline)
    }

    /// The threads that sleep, without those that only wait for an operation.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        sleepers(self.vm())
    }

    /// What thread `tid` waits for, if it sleeps.
    #[must_use]
    pub fn waits_for(&self, tid: u32) -> Option<WaitMessage> {
        self.waiting().into_iter().find(|waiting| waiting.tid == tid).map(|waiting| waiting.wmesg)
    }

    /// Asks thread `tid`, which is created if necessary, to perform `op`. Nothing happens before
    /// [`Sim::run`]. Panics when the thread already has an operation whose answer was not taken.
    pub fn submit(&self, tid: u32, op: Op) {
        self.submit_to(tid, op, perform);
    }

    /// [`Sim::submit`] with `doing` in place of performing the operation.
    pub(crate) fn submit_to(&self, tid: u32, op: Op, doing: Doing) {
        let vm = self.vm();
        let mut requests = self.machine().mailbox.requests();
        assert!(requests.insert(tid, Request::Asked(op, doing)).is_none(), "thread {tid} is busy");
        drop(requests);
        match vm.tfind(tid) {
            Some(thread) => vm.wakeup(WaitChannel::of(thread)),
            None => {
                let name = &format!("worker{tid}");
                let spec =
                    ThreadSpec { tid, name, priority: PUSER, start: worker, arg: tid.into() };
                assert!(vm.kthread_create(&spec).is_ok(), "no memory for thread {tid}");
            }
        }
    }

    /// Takes the answer of thread `tid` to its operation, if there is one.
    #[must_use]
    pub fn answer(&self, tid: u32) -> Option<Outcome> {
        let mut requests = self.machine().mailbox.requests();
        let Some(&Request::Answered(outcome)) = requests.get(&tid) else { return None };
        requests.remove(&tid);
        Some(outcome)
    }

    /// Lets threads run and time pass until thread `tid` has answered. Returns [`Outcome::Blocked`]
    /// when it sleeps, no thread can run, and no thread with an operation has a time-out: its
    /// answer may still come later.
    pub fn finish(&self, tid: u32) -> Outcome {
        loop {
            self.run();
            if let Some(outcome) = self.answer(tid) {
                return outcome;
            }
            let working =
                |tid| matches!(self.machine().mailbox.requests().get(&tid), Some(Request::Working));
            let timed = self
                .waiting()
                .iter()
                .any(|waiting| waiting.deadline.is_some() && working(waiting.tid));
            if !timed || self.advance().is_none() {
                let waits_for = self.waits_for(tid).unwrap_or(WaitMessage::new(IDLE));
                return Outcome::Blocked { waits_for };
            }
        }
    }

    /// [`Sim::submit`] and [`Sim::finish`].
    pub fn execute_on(&self, tid: u32, op: Op) -> Outcome {
        self.submit(tid, op);
        self.finish(tid)
    }

    /// Performs `op` in an interrupt that arrives now. Other threads run at the next [`Sim::run`].
    pub fn execute_in_interrupt(&self, op: &Op) -> Outcome {
        let vm = self.vm();
        vm.intr_enter();
        let outcome = perform(vm, op);
        vm.intr_exit();
        outcome
    }

    /// Makes the clock interrupt threads at one interrupt point of `one_in`, at least 2, chosen by
    /// `seed`: a tick passes, and the running thread's time slice ends. With 0 it stops.
    pub fn interrupt_at_random(&self, seed: u64, one_in: u64) {
        self.machine().interrupts.set_clock(seed, one_in);
    }

    /// Makes a thread give way as soon as a thread of better priority can run, as in a guest, not
    /// only when an interrupt arrives.
    pub fn preempt_at_once(&self) {
        self.machine().interrupts.set_eager();
    }

    /// Runs `handler` as an interrupt handler at the next interrupt point, in the middle of the
    /// thread that runs then.
    pub fn raise(&self, handler: impl FnOnce(&Vm<SimMachine>) + Send + 'static) {
        self.raise_after(0, handler);
    }

    /// [`Sim::raise`] after this many interrupt points.
    pub fn raise_after(&self, points: u64, handler: impl FnOnce(&Vm<SimMachine>) + Send + 'static) {
        self.machine().interrupts.raise(points, Box::new(handler));
    }

    /// Cancels the interrupts that were raised and have not arrived.
    pub fn cancel_interrupts(&self) {
        self.machine().interrupts.cancel();
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.machine().baton.dismiss_all();
    }
}
