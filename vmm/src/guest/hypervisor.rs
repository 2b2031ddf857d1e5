//! A running virtual machine and its vCPUs' threads: started once, and stopped once in every case.

use std::mem::offset_of;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmkern_abi::control::{ControlRegion, PAUSE_VECTOR, Pausing};

use super::error::ContractError;
use crate::inspect::{CpuState, Unstoppable};
use crate::kvm::bell::Bell;
use crate::kvm::boot;
use crate::kvm::crew::{self, Crew, HeldCrew};
use crate::kvm::memory::GuestRam;
use crate::kvm::vcpu::{VcpuEnd, VcpuState};
use crate::kvm::vm::KvmVm;

/// How long a vCPU's thread may take to stop. It takes microseconds, unless the host itself is
/// stuck.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait before a kick is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// A running virtual machine. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Hypervisor {
    pub(crate) vm: Arc<KvmVm>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) vcpus: Vcpus,
}

impl Hypervisor {
    /// Stops the vCPUs, if they have not ended by themselves, and joins their threads.
    pub(crate) fn stop(&mut self) -> Result<&VcpuEnd, ContractError> {
        self.vcpus.stop()?;
        self.vcpus.crew.end.get().ok_or(ContractError::LostVcpu)
    }

    /// Holds the vCPUs until the returned value is dropped: at quiescent points of their kernel,
    /// where no mutex and no spin lock is held, or anywhere if they reach none within `limit`.
    /// [`HeldCrew::standing`] says which of the two. The guest's work is not lost.
    ///
    /// # Errors
    /// When a vCPU's thread does not return from the host's kernel.
    pub(crate) fn pause(&self, limit: Duration) -> Result<HeldCrew<'_>, Unstoppable> {
        self.set_pausing(Pausing::Yes);
        let ask = |vcpu: &VcpuState| {
            // A vCPU that cannot be interrupted is held where it is.
            if let Err(error) = self.vm.signal(vcpu.id, PAUSE_VECTOR) {
                log::warn!("vCPU {} cannot be asked to pause: {error}", vcpu.id);
            }
        };
        let held =
            crew::pause(&self.vcpus.states, limit, ask, || self.set_pausing(Pausing::Urgent));
        self.set_pausing(Pausing::No);
        held
    }

    /// Writes [`ControlRegion::pausing`].
    fn set_pausing(&self, value: Pausing) {
        let at = boot::CONTROL.add(offset_of!(ControlRegion, pausing) as u64);
        if let Err(error) = self.ram.write(at, &(value.code()).to_le_bytes()) {
            log::error!("the control region: {error}");
        }
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::error!("{error}");
        }
    }
}

/// The vCPUs with their threads. Dropping them without [`Vcpus::stop`] detaches the threads.
#[derive(Debug)]
pub(crate) struct Vcpus {
    pub(crate) crew: Arc<Crew>,
    pub(crate) states: Vec<Arc<VcpuState>>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// `count` vCPUs without threads.
    pub(crate) fn new(bell: Arc<Bell>, count: u32) -> Self {
        let (crew, states) = Crew::assemble(bell, count);
        Self { crew, states, threads: Vec::new() }
    }

    /// Notes the thread of the next vCPU.
    pub(crate) fn has_thread(&mut self, thread: JoinHandle<()>) {
        self.threads.push(thread);
    }

    /// The states of the vCPUs, without those that never began.
    pub(crate) fn cpu_states(&self) -> Vec<CpuState> {
        self.states.iter().filter_map(|vcpu| vcpu.cpu_state()).collect()
    }

    /// Stops the vCPUs that have a thread, and joins the threads. A thread that does not return is
    /// detached, and keeps its resources alive.
    pub(crate) fn stop(&mut self) -> Result<(), Unstoppable> {
        let deadline = Instant::now() + STOP_LIMIT;
        let started = &self.states[..self.threads.len()];
        while started.iter().any(|vcpu| vcpu.end.get().is_none()) {
            if Instant::now() >= deadline {
                self.threads.clear();
                return Err(Unstoppable);
            }
            self.crew.stop();
            self.crew.bell.wait(deadline.min(Instant::now() + KICK_AGAIN));
        }
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                let words = panic.downcast_ref::<String>().map(String::as_str);
                let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
                log::error!("a vCPU's thread panicked: {}", words.unwrap_or("no words"));
            }
        }
        Ok(())
    }
}
