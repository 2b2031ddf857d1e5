//! More CPUs than the one that boots (`subr_smp.c`, `mp_machdep.c`).

use vmkern_abi::addr::KPtr;
use vmkern_abi::atomic::{Ordering, fence};
use vmkern_abi::layout::{Pcpu, ThreadState};

use super::Kern;
use super::thread::PAGEZERO_TID;
use crate::machine::{Cpu, PhysMem};

/// Number of the idle thread of CPU `cpuid`, which is not the CPU that booted.
#[must_use]
pub const fn idle_tid(cpuid: u32) -> u32 {
    PAGEZERO_TID + cpuid
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// Records that the calling CPU runs its idle thread, and takes threads from now on.
    pub fn cpu_started(&self) {
        self.sched_lock();
        let cpu = self.pcpu();
        let idle = self.get(cpu.idlethread.get());
        idle.state.put(ThreadState::Running);
        idle.switches.inc();
        cpu.curthread.set(cpu.idlethread.get());
        self.sched_unlock();
    }

    /// Whether the CPU `pcpu` has called [`Kern::cpu_started`]. Until then it is on the list of
    /// CPUs and runs no thread, and its idle thread has no state. Locks: none needed. Never sleeps.
    #[must_use]
    pub fn cpu_has_started(&self, pcpu: KPtr<Pcpu>) -> bool {
        let has_thread = !self.get(pcpu).curthread.get().is_null();
        // The caller sees what the CPU wrote before that.
        fence(Ordering::Acquire);
        has_thread
    }
}
