//! A running virtual machine and its vCPU's thread: started once, stopped once, whatever happens.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmkern_abi::control::PAUSE_VECTOR;

use super::error::ContractError;
use crate::kvm::gate::Held;
use crate::kvm::memory::GuestRam;
use crate::kvm::vcpu::{VcpuEnd, VcpuState};
use crate::kvm::vm::Vm;

/// How long a vCPU's thread may take to stop. It takes microseconds, unless the host itself is stuck.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait before a kick is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// A running machine. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) vm: Arc<Vm>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) state: Arc<VcpuState>,
    pub(crate) thread: Option<JoinHandle<()>>,
}

impl Machine {
    /// Stops the vCPU, if it has not ended by itself, and joins its thread.
    pub(crate) fn stop(&mut self) -> Result<&VcpuEnd, ContractError> {
        if let Some(thread) = self.thread.take() {
            stop_thread(thread, &self.state)?;
        }
        self.state.end.get().ok_or(ContractError::LostVcpu)
    }

    /// Holds the vCPU until the returned value is dropped: at a quiescent point of its kernel, where no mutex and no spin
    /// lock is owned, or, when it comes to none within `limit`, anywhere. [`Held::standing`] says which of the two. Nothing
    /// that the guest was about to do is lost.
    ///
    /// # Errors
    /// When the vCPU's thread does not come out of the host's kernel.
    pub(crate) fn pause(&self, limit: Duration) -> Result<Held<'_>, ContractError> {
        self.state.pause(limit, || {
            // A guest that cannot be asked is held where it is.
            if let Err(error) = self.vm.signal(PAUSE_VECTOR) {
                log::warn!("the guest cannot be asked to pause: {error}");
            }
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::error!("{error}");
        }
    }
}

/// Stops and joins a vCPU's thread. One that does not come back keeps what it uses alive, and is left to itself.
pub(crate) fn stop_thread(thread: JoinHandle<()>, state: &VcpuState) -> Result<(), ContractError> {
    let deadline = Instant::now() + STOP_LIMIT;
    while state.end.get().is_none() {
        if Instant::now() >= deadline {
            return Err(ContractError::Unstoppable);
        }
        state.stop();
        state.bell.wait(deadline.min(Instant::now() + KICK_AGAIN));
    }
    if let Err(panic) = thread.join() {
        let words =
            panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        log::error!("the vCPU's thread panicked: {}", words.unwrap_or("no words"));
    }
    Ok(())
}
