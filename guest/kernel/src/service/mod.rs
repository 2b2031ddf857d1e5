//! Serving the control rings.
//!
//! The dispatcher is the thread that the boot became, and the idle thread: it runs when no other
//! thread can. That is what "the guest is at rest" means here, and everything that the host may see
//! happens then: answers are sent, the next request is taken, virtual time jumps to the next
//! time-out, and threads that nothing can wake are reported as blocked. So the state that the host
//! reads after an answer does not depend on the order of wakeups.
//!
//! Between requests the CPU spins for a while, because the host is usually about to send the next
//! one, and then halts until the host rings (see [`vmkern_abi::control`] for the doorbell
//! protocol).

mod board;
mod worker;

use core::sync::atomic::Ordering;

use kmem::kern::sched::Serving;
use kmem::ops::{self, Executed};
use vmkern_abi::addr::KPtr;
use vmkern_abi::boot::TimeMode;
use vmkern_abi::control::{
    Consumer, Context, ControlRegion, Corrupt, DOORBELL_PORT, KernReturn, Op, Outcome, Phase,
    Producer, RING_SLOTS, Request, Response, Slot, WaitMessage,
};

use vmkern_abi::layout::{Spread, Thread};

use self::worker::BOARD;
use crate::access::KernelAccess;
use crate::arch::clock::Clock;
use crate::arch::percpu::{PerCpu, Polling};
use crate::arch::vectors::OPERATION_VECTOR;
use crate::arch::{apic, cpus, instr, interrupt, tlb};
use crate::direct_map;
use crate::masked_cell::MaskedCell;
use crate::memory::KernelVm;
use crate::threads;

/// Cycles to wait for the next request before the CPU halts: several times what a wake-up costs.
const SPIN_CYCLES: u64 = 500_000;

/// Tells the host that the kernel is up, and serves it for ever.
pub fn serve(vm: &KernelVm, clock: &Clock, region: &'static ControlRegion) -> ! {
    if worker::start(vm).is_err() {
        panic!("boot: no memory for threads");
    }
    let mut dispatcher = Dispatcher {
        vm,
        clock,
        region,
        requests: Consumer::new(&region.requests),
        responses: Producer::new(&region.responses),
        held: None,
        alone: false,
    };
    dispatcher.announce();
    loop {
        dispatcher.turn();
    }
}

struct Dispatcher<'a> {
    vm: &'a KernelVm,
    clock: &'a Clock,
    region: &'a ControlRegion,
    requests: Consumer<'a, RING_SLOTS>,
    responses: Producer<'a, RING_SLOTS>,
    /// A request that waits for the guest to be at rest: all requests started before it have begun.
    held: Option<Request>,
    /// Whether this CPU runs all started requests, and no other CPU takes any of them over.
    alone: bool,
}

impl Dispatcher<'_> {
    fn announce(&self) {
        let region = self.region;
        region.body_cpl.set(PerCpu::current().cpl());
        region.pml4.set(direct_map::pml4());
        region.roots.set(self.vm.roots());
        region.ready_tsc.set(instr::rdtsc());
        core::sync::atomic::fence(Ordering::Release);
        region.phase.put(Phase::Ready);
        self.ring_if_asleep();
    }

    fn ring_if_asleep(&self) {
        if self.region.host_sleeper.must_wake() {
            // SAFETY: the doorbell device touches no memory.
            unsafe { instr::outb(DOORBELL_PORT, 0) };
        }
    }

    /// One round of the dispatcher while the guest is at rest.
    fn turn(&mut self) {
        if !cpus::is_alone() && !self.vm.at_rest() {
            return self.turn_while_others_run();
        }
        if self.vm.has_zombies() {
            self.serving(|this| this.vm.thread_reap());
        }
        while let Some(response) = BOARD.with(board::Board::next_answer) {
            self.send(&response);
        }
        self.share_if_finished();
        if let Some(request) = self.held.take() {
            self.serving(|this| this.perform(request));
        } else if let Some(slot) = self.next_request() {
            self.accept(&slot);
            // With more than one CPU, the threads of all requests in the ring begin together. So do
            // those that were started.
            while let Some(slot) = self.next_if_parallel() {
                self.accept(&slot);
            }
        } else if !worker::wake_settlers(self.vm) && !self.report_blocked() {
            self.pass_time();
        }
        // Every thread that can run does so, until the guest is at rest again.
        self.vm.sched_yield();
    }

    /// The next request, unless an earlier one still waits for the guest to be at rest.
    fn next_request(&mut self) -> Option<Slot> {
        if self.held.is_some() {
            None
        } else {
            self.requests.pop().unwrap_or_else(|why| broken(why))
        }
    }

    fn next_if_parallel(&mut self) -> Option<Slot> {
        if cpus::is_alone() { None } else { self.next_request() }
    }

    /// The guest is at rest: other CPUs take threads over again once no started request is in
    /// progress.
    fn share_if_finished(&mut self) {
        if self.alone && !BOARD.with(|board| board.has_started()) {
            self.alone = false;
            self.vm.sched_spread(Spread::No);
        }
    }

    /// One round of the dispatcher while other CPUs run threads: it hands requests to threads, and
    /// this CPU runs the threads that it gets.
    fn turn_while_others_run(&mut self) {
        threads::keep_time(self.vm, self.clock);
        let mut has_accepted = false;
        while let Some(slot) = self.next_request() {
            self.accept(&slot);
            has_accepted = true;
        }
        if !has_accepted {
            self.wait_until(|this| this.vm.runnable() || this.has_requests() || this.vm.at_rest());
        }
        self.vm.sched_yield();
    }

    /// Does `work`, which may leave structures half changed while it runs: the host can see that.
    fn serving(&mut self, work: impl FnOnce(&mut Self)) {
        self.vm.set_serving(Serving::Yes);
        work(self);
        self.vm.set_serving(Serving::No);
    }

    /// Takes a request.
    fn accept(&mut self, slot: &Slot) {
        self.serving(|this| this.serve(slot));
    }

    /// Hands a request to its thread, or answers it. A request that is waited for first lets those
    /// begin that were started before it.
    fn serve(&mut self, slot: &Slot) {
        // 1. The request.
        let request = match Request::decode(slot) {
            Ok(request) => request,
            // A message of another version: only its tag can be read.
            Err(error) => {
                let tag = u32::try_from(error.head & u64::from(u32::MAX)).unwrap_or(0);
                return self.refuse(tag, KernReturn::InvalidArgument);
            }
        };
        let Request { tag, context, op } = request;
        // 2. A request that is started: in virtual time it is only planned, in real time it begins.
        if let Context::Start(thread) = context {
            let taken = match self.clock.mode() {
                TimeMode::Virtual => BOARD.with(|board| board.plan(thread, op)),
                TimeMode::Real => {
                    let taken = BOARD.with(|board| board.start(thread, op));
                    if taken.is_ok() {
                        worker::begin(self.vm, thread);
                    }
                    taken
                }
            };
            // No answer is waited for, and the host starts nothing on a thread that is busy.
            return taken
                .unwrap_or_else(|_| panic!("t{thread} was started while it was busy (tag {tag})"));
        }
        // 3. A request that is waited for: the planned ones begin first.
        let is_first = !self.begin_planned();
        match context {
            // A request without a thread is answered when those that were started before it are at
            // rest.
            Context::Interrupt | Context::Lowmem | Context::Rest if !is_first => {
                self.held = Some(request)
            }
            _ => self.perform(request),
        }
    }

    /// Begins all requests that were started and have not begun: on this CPU, in the order of
    /// starting, and before any thread that is woken later. Returns whether there were any.
    fn begin_planned(&mut self) -> bool {
        if !BOARD.with(|board| board.has_plan()) {
            return false;
        }
        if !cpus::is_alone() && !self.alone {
            self.alone = true;
            self.vm.sched_spread(Spread::Never);
        }
        for index in 0.. {
            let Some(thread) = BOARD.with(|board| board.begin(index)) else { break };
            worker::begin(self.vm, thread);
        }
        true
    }

    /// Hands a request to its thread, or answers it.
    fn perform(&mut self, request: Request) {
        let Request { tag, context, op } = request;
        match (context, op) {
            (_, Op::Join { thread }) => {
                if BOARD.with(|board| board.join(thread, tag)).is_err() {
                    self.refuse(tag, KernReturn::InvalidArgument);
                }
            }
            (Context::Thread(thread), op) => {
                match BOARD.with(|board| board.post(thread, tag, op)) {
                    Ok(()) => worker::begin(self.vm, thread),
                    Err(_) => self.refuse(tag, KernReturn::InvalidArgument),
                }
            }
            (Context::Interrupt, op) => {
                let (outcome, cycles) = in_interrupt(op);
                self.send(&Response { tag, cycles, outcome });
            }
            (Context::Lowmem, op) => {
                let outcome = ops::register_lowmem(self.vm, &op, run_stored);
                self.send(&Response { tag, cycles: 0, outcome });
            }
            (Context::Rest, Op::Nop) => {
                self.send(&Response { tag, cycles: 0, outcome: Outcome::Ok })
            }
            (Context::Rest | Context::Start(_), _) => self.refuse(tag, KernReturn::InvalidArgument),
        }
    }

    fn refuse(&mut self, tag: u32, code: KernReturn) {
        self.send(&Response { tag, cycles: 0, outcome: Outcome::Error(code) });
    }

    /// Nothing can be done now: in virtual time the clock jumps to the next time-out if an answer
    /// depends on it; otherwise waits for the time-out, or for a request.
    fn pass_time(&mut self) {
        let tick = self.vm.next_timeout().filter(|_| self.clock.mode() == TimeMode::Virtual);
        match tick.filter(|_| self.owes() && !self.has_work()) {
            Some(tick) => threads::pass_time_until(self.vm, self.clock, tick),
            None => self.wait_until(Self::has_work),
        }
    }

    /// Whether there is anything to do except wait. The clock's interrupt may have let threads run
    /// since the last look.
    fn has_work(&self) -> bool {
        self.has_requests()
            || self.vm.runnable()
            || BOARD.with(|board| board.has_news())
            || self.owes_blocked()
    }

    /// Whether a thread has an answer ready.
    fn owes(&self) -> bool {
        BOARD.with(|board| board.owing().next().is_some())
    }

    /// Whether answers depend on threads that only a request can wake.
    fn owes_blocked(&self) -> bool {
        self.owes() && !self.script_time_out_pending()
    }

    /// Whether a thread with a request of the host sleeps with a time-out, whether or not its
    /// answer is waited for.
    fn script_time_out_pending(&self) -> bool {
        BOARD.with(|board| {
            board.at_work().any(|thread| {
                let timed = |t: KPtr<Thread>| self.vm.get(t).callout.sequence.get() != 0;
                worker::waits(self.vm, thread).is_some_and(timed)
            })
        })
    }

    /// Answers for the threads that owe one, if none of them can run or waits for a time-out.
    /// Returns whether there were any.
    fn report_blocked(&mut self) -> bool {
        // While interrupts are deferred the clock wakes no thread, and threads at rest stay so.
        let _masked = interrupt::Masked::new();
        if !self.owes_blocked() || BOARD.with(|board| board.has_news()) || !self.vm.at_rest() {
            return false;
        }
        while let Some(thread) = BOARD.with(|board| board.owing().next()) {
            let Some(tag) = BOARD.with(|board| board.block(thread)) else { break };
            let waits_for = worker::waits(self.vm, thread)
                .and_then(|t| self.vm.get(t).wait_message())
                .unwrap_or_else(|| WaitMessage::new("?"));
            self.send(&Response { tag, cycles: 0, outcome: Outcome::Blocked { waits_for } });
        }
        true
    }

    /// Waits until `is_over`, or, in real time, for a time-out.
    fn wait_until(&mut self, is_over: impl Fn(&Self) -> bool) {
        let cpu = PerCpu::current();
        cpu.idle().set_polling(Polling::Yes);
        let start = instr::rdtsc();
        while instr::rdtsc() - start < SPIN_CYCLES {
            if is_over(self) {
                return;
            }
            tlb::poll();
            core::hint::spin_loop();
        }
        cpu.idle().arm();
        self.region.guest_sleeper.prepare();
        if !is_over(self) {
            match self.vm.next_timeout().filter(|_| self.clock.mode() == TimeMode::Real) {
                Some(tick) => threads::pass_time_until(self.vm, self.clock, tick),
                None => interrupt::halt(),
            }
        }
        self.region.guest_sleeper.cancel();
        cpu.idle().disarm();
    }

    fn has_requests(&self) -> bool {
        self.held.is_none() && self.requests.waiting().unwrap_or_else(|why| broken(why)) > 0
    }

    fn send(&mut self, response: &Response) {
        // The host may look as soon as it has the answer: nothing is half done.
        self.vm.set_serving(Serving::No);
        let slot = response.encode();
        while !self.responses.push(&slot).unwrap_or_else(|why| broken(why)) {
            // The ring is full of answers for the host to read, so the host is awake or about to be
            // woken.
            self.ring_if_asleep();
            core::hint::spin_loop();
        }
        self.ring_if_asleep();
    }
}

fn broken(why: Corrupt) -> ! {
    panic!("control ring: {why}")
}

/// Performs an operation of a vm_lowmem handler, on the thread on which the event occurred. Its
/// result is discarded: a failure goes to the log, and is counted.
fn run_stored(vm: &KernelVm, op: &Op) {
    let outcome = match ops::execute(vm, &KernelAccess, op) {
        Executed::Done(outcome) => outcome,
        Executed::Sleep { micros } => worker::sleep(vm, micros),
        Executed::Settle | Executed::Join { .. } => Outcome::Error(KernReturn::InvalidArgument),
    };
    if !matches!(outcome, Outcome::Ok | Outcome::Value(_)) {
        {
            let _masked = interrupt::Masked::new();
            vm.cnt().lowmem_failures.inc();
        }
        // The event owns no lock here, so this can wait for room.
        crate::log!("vm_lowmem: {op:?} failed: {outcome:?}");
    }
}

/// The request and the result of the operation interrupt.
#[derive(Clone, Copy)]
enum Errand {
    Nothing,
    Do(Op),
    Done(Outcome, u64),
}

static ERRAND: MaskedCell<Errand> = MaskedCell::new(Errand::Nothing);

/// Makes an interrupt handler perform `op`, and returns the outcome and the cycles that it took.
fn in_interrupt(op: Op) -> (Outcome, u64) {
    ERRAND.with(|errand| *errand = Errand::Do(op));
    apic::interrupt_self(OPERATION_VECTOR);
    loop {
        if let Errand::Done(outcome, cycles) = ERRAND.with(|errand| *errand) {
            return (outcome, cycles);
        }
        core::hint::spin_loop();
    }
}

/// The work of the operation interrupt.
pub fn operate_in_interrupt(vm: &KernelVm) {
    let Errand::Do(op) = ERRAND.with(|errand| *errand) else { return };
    let start = instr::rdtsc();
    let outcome = match ops::execute(vm, &KernelAccess, &op) {
        Executed::Done(outcome) => outcome,
        Executed::Sleep { .. } | Executed::Settle | Executed::Join { .. } => {
            panic!("sleeping in an interrupt handler: {op:?}")
        }
    };
    let cycles = instr::rdtsc() - start;
    ERRAND.with(|errand| *errand = Errand::Done(outcome, cycles));
}
