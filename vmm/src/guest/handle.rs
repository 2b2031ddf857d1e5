//! The handle to a running guest.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::boot::TimeMode;
use vmkern_abi::control::{
    Context, DOORBELL_VECTOR, ExitCode, Op, Outcome, RING_SLOTS, Request, Response, WaitMessage,
};

use super::GuestBuilder;
use super::balloon::BalloonDevice;
use super::environment::Environment;
use super::error::{ContractError, GuestError};
use super::hypervisor::Hypervisor;
use super::launch::LazySymbols;
use super::link::Link;
use super::logs::{LogEnd, Logs};
use super::pending::Pending;
use super::thread::ThreadId;
use super::wait::{Waiter, Woken};
use crate::deadline;
use crate::inspect::{Crash, Location, Symbols};
use crate::kernel::KernelImage;
use crate::kvm::bell::InterruptHandle;
use crate::kvm::vcpu::VcpuEnd;
use crate::kvm::{CpuFailure, CpuFault};

/// A running guest. Dropping it stops the guest and releases everything that it used.
#[derive(Debug)]
pub struct Guest {
    // The link's handles point into the hypervisor's memory, which they keep mapped themselves.
    pub(crate) link: Link,
    /// The balloon, if the guest has one. Dropped before the machine.
    pub(super) balloon: Option<BalloonDevice>,
    pub(crate) hypervisor: Hypervisor,
    pub(super) environment: Environment,
    pub(super) logs: Logs,
    pub(super) waiter: Waiter,
    pub(super) deadline: Instant,
    timeout: Duration,
    symbols: LazySymbols,
    /// Why the guest is dead.
    death: Option<GuestError>,
    pending: Pending,
    /// Held while a fail point's programme changes.
    pub(super) arming: Mutex<()>,
    /// Set while seized pages may be seized whose memory the host did not take back.
    pub(super) undiscarded: bool,
    /// Responses that arrived during a wait for another one.
    backlog: VecDeque<Response>,
}

impl Guest {
    /// Starts the configuration of a guest.
    pub fn builder() -> GuestBuilder {
        GuestBuilder::default()
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a machine, each of another type")]
    pub(super) fn new(
        balloon: Option<BalloonDevice>,
        link: Link,
        hypervisor: Hypervisor,
        environment: Environment,
        logs: Logs,
        kernel: KernelImage,
        deadline: Instant,
        timeout: Duration,
    ) -> Self {
        Self {
            link,
            balloon,
            hypervisor,
            environment,
            logs,
            waiter: Waiter::new(),
            deadline,
            timeout,
            symbols: LazySymbols { kernel, symbols: OnceLock::new() },
            death: None,
            pending: Pending::default(),
            arming: Mutex::default(),
            undiscarded: false,
            backlog: VecDeque::new(),
        }
    }

    /// Runs `op` on kernel thread `thread`, and waits for the answer. Answers to other requests
    /// that arrive during the wait are kept for [`Guest::next_response`].
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn call(&mut self, thread: ThreadId, op: Op) -> Result<Response, GuestError> {
        self.call_in(thread.into(), op)
    }

    /// Runs `op` in `context`, and waits for the answer as [`Guest::call`] does.
    ///
    /// When the answer is [`Outcome::Blocked`](vmkern_abi::control::Outcome::Blocked), the
    /// operation stays outstanding: its thread takes no other until a call of [`Op::Join`] has
    /// returned the final answer. In [`Context::Start`] the answer is ok at once, and only says
    /// that the operation was sent: a join returns its result.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn call_in(&mut self, context: Context, op: Op) -> Result<Response, GuestError> {
        let tag = self.submit_in(context, op)?;
        if let Context::Start(_) = context {
            return Ok(Response { tag, cycles: 0, outcome: Outcome::Ok });
        }
        self.await_answer(tag)
    }

    /// Waits for the answer to the request with tag `tag`, which [`Guest::submit`] returned and
    /// which has not been answered yet. An interrupted wait can be resumed in this way.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn response_to(&mut self, tag: u32) -> Result<Response, GuestError> {
        let known = self.backlog.iter().position(|response| response.tag == tag);
        if let Some(response) = known.and_then(|at| self.backlog.remove(at)) {
            return Ok(response);
        }
        self.check_alive()?;
        self.await_answer(tag)
    }

    fn await_answer(&mut self, tag: u32) -> Result<Response, GuestError> {
        loop {
            let response = self.receive()?;
            if response.tag == tag {
                return Ok(response);
            }
            self.backlog.push_back(response);
        }
    }

    /// Sends `op` to kernel thread `thread`, and returns the tag of the future answer. Any number
    /// of requests may be in flight; this waits for the guest only while the rings are full.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn submit(&mut self, thread: ThreadId, op: Op) -> Result<u32, GuestError> {
        self.submit_in(thread.into(), op)
    }

    /// Sends `op` to run in `context`, and returns the tag of the future answer, as
    /// [`Guest::submit`] does. An operation in [`Context::Start`] is not answered. The context of
    /// an [`Op::Join`] does not matter.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn submit_in(&mut self, context: Context, op: Op) -> Result<u32, GuestError> {
        self.check_alive()?;
        let asked = self.pending.check(context, &op)?;
        // With at most one ring's worth of requests in flight, neither ring can be full when a side
        // wants to push.
        while self.pending.slots() >= RING_SLOTS {
            let response = self.receive()?;
            self.backlog.push_back(response);
        }
        let tag = self.pending.add(asked);
        match self.link.push(&Request { tag, context, op }) {
            Ok(true) => {}
            Ok(false) => {
                return Err(self.die(ContractError::RingFull(self.pending.in_flight()).into()));
            }
            Err(error) => return Err(self.die(error.into())),
        }
        if self.link.region().guest_sleeper.must_wake()
            && let Err(error) = self.hypervisor.vm.signal(0, DOORBELL_VECTOR)
        {
            return Err(self.die(error.into()));
        }
        Ok(tag)
    }

    /// The oldest answer that was not returned yet; waits for one if there is none.
    ///
    /// # Errors
    /// [`GuestError::NothingInFlight`] when none will come; otherwise see [`GuestError`].
    pub fn next_response(&mut self) -> Result<Response, GuestError> {
        if let Some(response) = self.backlog.pop_front() {
            return Ok(response);
        }
        self.check_alive()?;
        if self.pending.in_flight() == 0 {
            return Err(GuestError::NothingInFlight);
        }
        self.receive()
    }

    /// The number of requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.in_flight()
    }

    /// Threads whose operations were reported blocked and not joined since, with the wait message
    /// of that report.
    pub fn blocked(&self) -> impl Iterator<Item = (ThreadId, WaitMessage)> {
        self.pending.blocked()
    }

    /// A thread that exists and for which nothing is outstanding, if there is one and the guest
    /// lives.
    pub(crate) fn idle_thread(&self) -> Option<ThreadId> {
        if self.death.is_some() || self.hypervisor.vcpus.crew.end.get().is_some() {
            return None;
        }
        // The main thread always exists; which others do takes a look at the guest.
        let is_idle = |&thread: &ThreadId| self.pending.is_idle(thread);
        Some(ThreadId::MAIN).filter(is_idle).or_else(|| {
            let threads = self.threads().unwrap_or_default();
            let exists =
                |thread: ThreadId| threads.iter().any(|t| t.tid == u32::from(thread.number()));
            ThreadId::all().filter(is_idle).find(|&thread| exists(thread))
        })
    }

    /// Whether the kernel's structures may change without a new request: the kernel is working, a
    /// thread may wake up, or the clock advances by itself.
    pub(crate) fn may_change(&self) -> bool {
        self.pending.is_owed_anything() || self.environment.time == TimeMode::Real
    }

    /// The kernel's log since the last call: the content of its log ring and its output on the
    /// serial line. Also works on a dead guest.
    pub fn take_log(&mut self) -> Vec<u8> {
        self.logs.take(&self.link.region().log)
    }

    /// Stops the guest, and writes out the rest of its log.
    #[must_use = "it says whether the log is whole"]
    pub fn end(mut self) -> LogEnd {
        if let Err(error) = self.hypervisor.stop() {
            log::error!("{error}");
        }
        self.logs.end(&self.link.region().log)
    }

    /// The guest's environment.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Bytes of the guest's memory that were ever touched, in whole pages: its use of the host's
    /// memory.
    #[must_use]
    pub fn resident_memory(&self) -> u64 {
        self.hypervisor.ram.resident()
    }

    /// A handle that interrupts waits for this guest, for a Ctrl-C handler or another thread.
    #[must_use]
    pub fn interrupt_handle(&self) -> InterruptHandle {
        InterruptHandle(self.hypervisor.vcpus.crew.bell.clone())
    }

    /// Forgets an interruption that came outside a wait for the guest.
    pub fn forget_interrupt(&self) {
        self.hypervisor.vcpus.crew.bell.take_interrupt();
    }

    /// Restarts the guest's time limit, from now on.
    pub fn restart_clock(&mut self) {
        self.deadline = deadline::after(self.timeout);
    }

    /// Sets the time limit to `timeout` from now on, instead of the limit at launch.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.restart_clock();
    }

    /// The symbols of the guest's kernel.
    #[must_use]
    pub fn symbols(&self) -> &Symbols {
        self.symbols.symbols.get_or_init(|| Symbols::of(self.symbols.kernel.bytes()))
    }

    /// The kernel that the guest booted.
    pub(crate) fn kernel(&self) -> &KernelImage {
        &self.symbols.kernel
    }

    /// Why the guest is dead, if it is.
    #[must_use]
    pub fn death(&self) -> Option<&GuestError> {
        self.death.as_ref()
    }

    fn check_alive(&self) -> Result<(), GuestError> {
        self.death.clone().map_or(Ok(()), Err)
    }

    /// Waits for the next response and takes it out of the ring.
    fn receive(&mut self) -> Result<Response, GuestError> {
        loop {
            match self.link.pop() {
                Ok(Some(response)) => {
                    self.logs.collect(&self.link.region().log);
                    if let Err(error) = self.pending.answered(&response) {
                        return Err(self.die(error.into()));
                    }
                    return Ok(response);
                }
                Ok(None) => {}
                Err(error) => return Err(self.die(error.into())),
            }
            if self.hypervisor.vcpus.crew.end.get().is_some() && !self.link.has_news() {
                return Err(self.ended());
            }
            match self.waiter.wait(
                &self.link,
                &self.hypervisor.vcpus.crew,
                self.deadline,
                Duration::ZERO,
                Link::has_news,
            ) {
                Woken::News => {}
                Woken::Interrupted => return Err(GuestError::Interrupted),
                Woken::Deadline => return Err(self.time_is_up()),
            }
        }
    }

    /// Stops the guest permanently because of `error`, and returns the error.
    pub(super) fn die(&mut self, error: GuestError) -> GuestError {
        if let Err(stuck) = self.hypervisor.stop() {
            log::error!("{stuck}");
        }
        self.death.get_or_insert(error).clone()
    }

    /// The vCPU has ended by itself: returns why.
    pub(super) fn ended(&mut self) -> GuestError {
        let error = match self.hypervisor.stop().cloned() {
            Ok(VcpuEnd::Exit(code)) if ExitCode::from_code(code) == Some(ExitCode::Crash) => {
                match Crash::from_record(&self.link.region().crash, self.symbols()) {
                    Ok(crash) => GuestError::Crashed(Box::new(self.with_thread_name(crash))),
                    Err(error) => ContractError::from(error).into(),
                }
            }
            Ok(VcpuEnd::Exit(code)) => ContractError::Exit(code).into(),
            Ok(VcpuEnd::Failed(failure)) => match failure.shortage() {
                Some(error) => error.into(),
                None => {
                    let failure = self.with_instruction(failure);
                    let at = Box::new(self.locate(failure.registers.rip));
                    GuestError::Cpu { failure, at }
                }
            },
            Ok(VcpuEnd::Unprepared(error)) => error.into(),
            Ok(VcpuEnd::Stopped(_) | VcpuEnd::Lost) => ContractError::LostVcpu.into(),
            Err(error) => error.into(),
        };
        self.die(error)
    }

    /// Adds the kernel's own name for the thread, if its list of threads can still be read.
    fn with_thread_name(&self, mut crash: Crash) -> Crash {
        if let (Some(tid), Ok(threads)) = (crash.thread, self.threads())
            && let Some(thread) = threads.iter().find(|thread| thread.tid == tid)
        {
            crash.thread_name = Some(thread.label());
        }
        crash
    }

    /// Adds the bytes at RIP to an internal error of KVM, if KVM did not report them.
    fn with_instruction(&self, mut failure: CpuFailure) -> CpuFailure {
        if let CpuFault::Internal { instruction, .. } = &mut failure.fault
            && instruction.is_empty()
        {
            *instruction = self.code_at(&failure.registers);
        }
        failure
    }

    /// The deadline has passed: stops the guest and returns where it stood.
    pub(super) fn time_is_up(&mut self) -> GuestError {
        match self.hypervisor.stop() {
            Ok(VcpuEnd::Stopped(registers)) => {
                let rip = registers.rip;
                let at = Box::new(self.locate(rip));
                self.die(GuestError::Timeout { limit: self.timeout, at })
            }
            // It ended at the last moment.
            Ok(_) => self.ended(),
            Err(error) => self.die(error.into()),
        }
    }

    fn locate(&self, address: GuestVirt) -> Location {
        let frames = self.symbols().frames(address);
        Location {
            address,
            frames: frames.into_iter().filter(|frame| frame.function.is_some()).collect(),
        }
    }
}
