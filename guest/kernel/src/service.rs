//! Serving the control rings.
//!
//! One operation at a time, in the order of the ring. Between requests the CPU spins for a while, because the host is
//! usually about to send the next one, and then halts until the host rings (see [`vmkern_abi::control`] for the doorbell
//! protocol).

use core::sync::atomic::{AtomicU32, Ordering};

use kmem::ops::{self, Executed};
use vmkern_abi::ABI_VERSION;
use vmkern_abi::control::{
    Consumer, ControlRegion, Corrupt, DOORBELL_PORT, KernReturn, Op, Outcome, Phase, Producer, RING_SLOTS, Request,
    Response, Slot,
};

use crate::access::KernelAccess;
use crate::arch::clock::Clock;
use crate::arch::percpu::PerCpu;
use crate::arch::{instr, interrupt};
use crate::direct_map;
use crate::memory::KernelVm;

/// Cycles to wait for the next request before the CPU halts: several times what a wake-up costs.
const SPIN_CYCLES: u64 = 500_000;

/// No kernel thread runs.
const NO_THREAD: u32 = u32::MAX;

static CURRENT_THREAD: AtomicU32 = AtomicU32::new(NO_THREAD);

/// The number of the kernel thread whose operation runs, if one does.
#[must_use]
pub fn current_thread() -> Option<u16> {
    u16::try_from(CURRENT_THREAD.load(Ordering::Relaxed)).ok()
}

/// Tells the host that the kernel is up, and serves it for ever.
pub fn serve(vm: &KernelVm, clock: &Clock, region: &'static ControlRegion) -> ! {
    let mut service = Service {
        vm,
        clock,
        region,
        requests: Consumer::new(&region.requests),
        responses: Producer::new(&region.responses),
    };
    service.announce();
    loop {
        let slot = service.next_request();
        let response = service.answer(&slot);
        service.send(&response);
    }
}

struct Service<'a> {
    vm: &'a KernelVm,
    clock: &'a Clock,
    region: &'a ControlRegion,
    requests: Consumer<'a, RING_SLOTS>,
    responses: Producer<'a, RING_SLOTS>,
}

impl Service<'_> {
    fn announce(&self) {
        let region = self.region;
        region.guest_abi_version.set(ABI_VERSION);
        region.body_cpl.set(PerCpu::current().cpl());
        region.pml4.set(direct_map::pml4());
        region.roots.set(self.vm.roots());
        region.ready_tsc.set(instr::rdtsc());
        core::sync::atomic::fence(Ordering::Release);
        region.phase.set(Phase::Ready as u32);
        self.ring_if_asleep();
    }

    fn ring_if_asleep(&self) {
        if self.region.host_sleeper.must_wake() {
            // SAFETY: the doorbell device touches no memory.
            unsafe { instr::outb(DOORBELL_PORT, 0) };
        }
    }

    /// Waits for the next request.
    fn next_request(&mut self) -> Slot {
        loop {
            let start = instr::rdtsc();
            loop {
                if let Some(slot) = self.requests.pop().unwrap_or_else(|why| broken(why)) {
                    return slot;
                }
                if instr::rdtsc() - start > SPIN_CYCLES {
                    break;
                }
                core::hint::spin_loop();
            }
            let cpu = PerCpu::current();
            cpu.arm_idle();
            self.region.guest_sleeper.prepare();
            if self.requests.waiting().unwrap_or_else(|why| broken(why)) == 0 {
                interrupt::halt();
            }
            self.region.guest_sleeper.cancel();
            cpu.disarm_idle();
        }
    }

    fn send(&mut self, response: &Response) {
        let slot = response.encode();
        while !self.responses.push(&slot).unwrap_or_else(|why| broken(why)) {
            // The host has as many answers to read as the ring holds, so it is awake or about to be woken.
            self.ring_if_asleep();
            core::hint::spin_loop();
        }
        self.ring_if_asleep();
    }

    fn answer(&self, slot: &Slot) -> Response {
        match Request::decode(slot) {
            Ok(request) => {
                CURRENT_THREAD.store(request.thread.into(), Ordering::Relaxed);
                let start = instr::rdtsc();
                let outcome = self.execute(&request.op);
                let cycles = instr::rdtsc() - start;
                CURRENT_THREAD.store(NO_THREAD, Ordering::Relaxed);
                self.vm.cnt().ticks.set(self.clock.ticks());
                Response { tag: request.tag, cycles, outcome }
            }
            // A message of some other version: its tag is all that can be told.
            Err(error) => {
                let tag = u32::try_from(error.head & u64::from(u32::MAX)).unwrap_or(0);
                Response { tag, cycles: 0, outcome: Outcome::Error(KernReturn::InvalidArgument) }
            }
        }
    }

    fn execute(&self, op: &Op) -> Outcome {
        match ops::execute(self.vm, &KernelAccess, op) {
            Executed::Done(outcome) => outcome,
            Executed::Sleep { micros } => {
                self.clock.sleep(micros);
                Outcome::Ok
            }
            // One operation runs at a time, and nothing works in the background.
            Executed::Settle => Outcome::Ok,
        }
    }
}

fn broken(why: Corrupt) -> ! {
    panic!("control ring: {why}")
}
