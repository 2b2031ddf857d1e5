//! Performing operations: which thread performs one, its possible results, and what it must not
//! leave behind if it is refused memory.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vmkern_abi::control::{MallocFlags, MapKind, Op, Outcome, WaitMessage};

use super::World;
use crate::machine::Cpu;
use crate::sim::SimMachine;
use crate::sim::histories::ZEROED;
use crate::sim::histories::script::Who;
use crate::sim::histories::step::On;
use crate::sim::threads::perform;
use crate::vm::Vm;

/// A possible result of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This outcome.
    Is(Outcome),
    /// No outcome yet: the thread sleeps with this message.
    Sleeps(&'static str),
}

impl World {
    /// The performer of an operation that may, or may not, sleep; `None` when there is none.
    fn performer(&self, on: On, op: &Op, may_sleep: bool) -> Option<Who> {
        let in_interrupt = match *op {
            Op::KmemMalloc { flags, .. } => flags == MallocFlags::NOWAIT || flags == ZEROED,
            Op::KmemFree { map, .. }
            | Op::KmemFreeWakeup { map, .. }
            | Op::KmemAllocNofault { map, .. } => {
                self.naive.maps.iter().any(|m| m.id == map && m.kind == MapKind::System)
            }
            Op::PmapQremove { .. } | Op::Verify { .. } => true,
            _ => false,
        };
        match on {
            On::Interrupt if in_interrupt && !may_sleep => Some(Who::Interrupt),
            On::Thread(n) if self.shape.workers > 0 => match self.idle_worker(n.into()) {
                Some(tid) => Some(Who::Thread(tid)),
                None => (!may_sleep).then_some(Who::Thread(0)),
            },
            _ if may_sleep => {
                self.idle_worker(0).filter(|_| self.shape.workers > 0).map(Who::Thread)
            }
            _ => Some(Who::Thread(0)),
        }
    }

    /// A thread that has nothing to do.
    fn idle_worker(&self, wanted: u32) -> Option<u32> {
        let workers = u32::from(self.shape.workers);
        let idle = |tid: &u32| self.sleepers.iter().all(|sleeper| sleeper.tid != *tid);
        (0..workers).map(|n| (wanted + n) % workers + 1).find(idle)
    }

    /// Performs `op`, which must give one of `allowed`. Returns `None` when no thread could perform
    /// it.
    pub fn perform(&mut self, on: On, op: Op, allowed: &[Verdict]) -> Option<(u32, Outcome)> {
        let may_sleep = allowed.iter().any(|verdict| matches!(verdict, Verdict::Sleeps(_)));
        let who = self.performer(on, &op, may_sleep)?;
        let refusal = self.start_refusing(&op);
        let outcome = match who {
            Who::Thread(0) | Who::Lowmem => self.drive(op, perform),
            Who::Thread(tid) => self.sim.execute_on(tid, op),
            Who::Interrupt => self.sim.execute_in_interrupt(&op),
        };
        self.script.borrow_mut().note(who, &op, &outcome);
        if self.is_clean_failure(&op, refusal, outcome) {
            return Some((0, outcome));
        }
        // A guest answers when no thread can run any more.
        self.sim.run();
        let fits = |verdict: &Verdict| match (*verdict, outcome) {
            (Verdict::Sleeps(wmesg), Outcome::Blocked { waits_for }) => {
                waits_for == WaitMessage::new(wmesg)
            }
            (Verdict::Is(expected), _) => expected == outcome,
            _ => false,
        };
        assert!(
            allowed.iter().any(fits),
            "{op:?} by {who:?} gave {outcome:?}, where {allowed:?} was expected"
        );
        let tid = if let Who::Thread(tid) = who { tid } else { 0 };
        Some((tid, outcome))
    }

    /// Performs an operation on the driver, or on the thread that performs it in a guest.
    pub fn drive(&self, op: Op, doing: fn(&Vm<SimMachine>, &Op) -> Outcome) -> Outcome {
        if self.exact {
            self.sim.submit_to(0, op, doing);
            self.sim.finish(0)
        } else {
            doing(self.sim.vm(), &op)
        }
    }

    /// Performs `op` on the driver, which must give [`Outcome::Ok`].
    pub fn ok(&mut self, op: Op) {
        let _ = self.perform(On::Driver, op, &[Verdict::Is(Outcome::Ok)]);
    }

    /// Performs `op` on the driver, which must be a panic with `text` in its message.
    pub fn panics(&mut self, op: Op, text: &str) {
        self.dies(op, text, text);
    }

    /// Performs `op` on the driver, which must be fatal: with `report` in the message of a guest,
    /// and `text` in that of the simulated machine.
    pub fn dies(&mut self, op: Op, report: &str, text: &str) {
        self.script.borrow_mut().panics(&op, report);
        let end = catch_unwind(AssertUnwindSafe(|| self.drive(op, perform)));
        self.over = true;
        let payload = end.expect_err("the kernel should have panicked");
        let message = payload.downcast::<String>().expect("a message");
        assert!(message.contains(text), "{op:?} died of {message:?}, where {text:?} was expected");
    }

    /// Lets time pass to the next time-out.
    pub fn wait(&mut self) {
        let vm = self.sim.vm();
        let Some(deadline) = vm.next_timeout() else { return };
        let ticks = deadline.saturating_sub(self.sim.machine().ticks()).max(1);
        let micros = ticks * 1_000_000 / vm.cnt().hz.get();
        self.ok(Op::Sleep { micros });
    }
}

/// Stores an operation for a shortage.
pub fn store(vm: &Vm<SimMachine>, op: &Op) -> Outcome {
    crate::ops::register_lowmem(vm, op, run_stored)
}

/// Performs a stored operation.
fn run_stored(vm: &Vm<SimMachine>, op: &Op) {
    assert_eq!(perform(vm, op), Outcome::Ok, "{op:?}");
}
