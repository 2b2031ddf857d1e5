//! More CPUs than the one that boots (`subr_smp.c`, `mp_machdep.c`).

use vmkern_abi::addr::KPtr;
use vmkern_abi::atomic::{Ordering, fence};
use vmkern_abi::layout::{Pcpu, Thread, ThreadState};

use super::sched::PRI_MAX_IDLE;
use super::thread::PAGEZERO_TID;
use crate::machine::Machine;
use crate::vm::page::AllocClass;
use crate::vm::{Shortage, Vm, Wait};

/// Number of the idle thread of CPU `cpuid`, which is not the one that booted.
#[must_use]
pub const fn idle_tid(cpuid: u32) -> u32 {
    PAGEZERO_TID + cpuid
}

impl<M: Machine> Vm<M> {
    /// Adds a CPU, 1 to 63, the next by number: its structure, and its idle thread with a stack,
    /// which the machine is to start there. The CPU counts from now on, and looks busy until it
    /// calls [`Vm::cpu_started`]. Locks: none may be held; takes kernel_map's and the free queue's.
    /// Never sleeps.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page or no address space for it.
    pub fn cpu_add(&self, cpuid: u32, name: &str) -> Result<(KPtr<Pcpu>, KPtr<Thread>), Shortage> {
        let pcpu: KPtr<Pcpu> = self.zone_alloc().ok_or(Shortage)?;
        let idle = self
            .thread_new(idle_tid(cpuid), name, PRI_MAX_IDLE, AllocClass::System, Wait::No)
            .inspect_err(|_| self.zone_free(pcpu))?;
        let cpu = self.get(pcpu);
        cpu.cpuid.set(cpuid);
        cpu.idlethread.set(idle);
        cpu.lock_prof.set(self.boot_pcpu().lock_prof.get());
        self.get(idle).lastcpu.set(u8::try_from(cpuid).unwrap_or(u8::MAX));
        // The number of CPUs and what caches make of it change together.
        self.free_queue_lock();
        self.sched_lock();
        self.thread_link(idle);
        // Who follows the list without the lock finds the CPU whole.
        fence(Ordering::Release);
        let last = self.cpus().last().map_or(&self.state().cpuhead, |last| &last.allcpu_next);
        last.set(pcpu);
        self.cnt().ncpu.inc();
        self.sched_unlock();
        self.page_caches_enable();
        self.free_queue_unlock();
        Ok((pcpu, idle))
    }

    /// The CPU that calls this runs its idle thread, and takes threads from now on.
    pub fn cpu_started(&self) {
        self.sched_lock();
        let cpu = self.pcpu();
        let idle = self.get(cpu.idlethread.get());
        idle.state.set(ThreadState::Running as u32);
        idle.switches.inc();
        cpu.curthread.set(cpu.idlethread.get());
        self.sched_unlock();
    }

    /// Whether the CPU `pcpu` has called [`Vm::cpu_started`]. Until then it is on the list of CPUs
    /// and runs no thread, and its idle thread has no state. Locks: none needed. Never sleeps.
    #[must_use]
    pub fn cpu_has_started(&self, pcpu: KPtr<Pcpu>) -> bool {
        let has_thread = !self.get(pcpu).curthread.get().is_null();
        // What the CPU wrote before that is seen by whoever asked.
        fence(Ordering::Acquire);
        has_thread
    }
}
