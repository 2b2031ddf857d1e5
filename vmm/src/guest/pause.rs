//! Pauses: holding a guest from outside.

use std::time::Duration;

use vmkern_abi::addr::{GuestPhys, GuestVirt};

use super::error::{ContractError, GuestError};
use super::handle::Guest;
use crate::inspect::Standing;
use crate::kvm::crew::HeldCrew;

/// How long a guest may take to reach a quiescent point. Most locks are held for microseconds; some
/// are held while a large range is mapped or freed, and an inspection should not have to wait for
/// that.
pub const PAUSE_LIMIT: Duration = Duration::from_millis(10);

/// A held guest. It continues when this is dropped; none of its work is lost.
#[derive(Debug)]
#[must_use = "the guest goes on when this is dropped"]
pub struct Pause<'a>(HeldCrew<'a>);

impl Pause<'_> {
    /// Whether the guest is held at a point where its kernel holds no mutex and no spin lock.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.0.standing
    }
}

impl Guest {
    /// Holds the guest at a quiescent point of its kernel, where no mutex and no spin lock is held;
    /// or, if it reaches none within [`PAUSE_LIMIT`], wherever it is then ([`Pause::standing`] says
    /// which of the two). All inspections during the pause see the same state. A dead guest stands
    /// still forever, and can also be held.
    ///
    /// ```
    /// use vmkern::inspect::Standing;
    /// use vmkern::prelude::*;
    ///
    /// let mut guest = Guest::builder().launch()?;
    /// guest.submit(ThreadId::MAIN, Op::KmemAlloc { map: MapId::KERNEL, size: 1 << 20 })?;
    /// let pause = guest.pause()?;
    /// let free = || guest.meter().map(|meter| meter.v_free_count.get());
    /// assert_eq!(free()?, free()?, "nothing moves");
    /// if pause.standing() != Standing::Quiescent {
    ///     println!("it was stopped in the middle of something");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ContractError::Unstoppable`] when the vCPU's thread does not return from the host's
    /// kernel.
    pub fn pause(&self) -> Result<Pause<'_>, ContractError> {
        self.pause_within(PAUSE_LIMIT)
    }

    /// Holds the guest as [`Guest::pause`] does, with another limit.
    ///
    /// # Errors
    /// As for [`Guest::pause`].
    pub fn pause_within(&self, limit: Duration) -> Result<Pause<'_>, ContractError> {
        Ok(Pause(self.hypervisor.pause(limit)?))
    }

    /// Holds the guest as [`Guest::pause`] does, and makes KVM itself translate `addresses`
    /// (`KVM_TRANSLATE`), without regard to privilege: the result is the vCPU's view, for
    /// comparison with [`Guest::vtop`].
    ///
    /// # Errors
    /// As for [`Guest::pause`]; [`GuestError::Kvm`] when KVM cannot translate,
    /// [`GuestError::Contract`] when the guest has ended.
    pub fn pause_and_translate(
        &self,
        addresses: &[GuestVirt],
    ) -> Result<(Pause<'_>, Vec<Option<GuestPhys>>), GuestError> {
        let state = &self.hypervisor.vcpus.states[0];
        loop {
            state.ask(addresses.to_vec());
            let pause = self.pause();
            let answers = state.take_answers();
            let pause = pause?;
            match answers {
                Some(answers) => return Ok((pause, answers?)),
                None if addresses.is_empty() => return Ok((pause, Vec::new())),
                None if state.end.get().is_some() => return Err(ContractError::LostVcpu.into()),
                // It was held a moment ago and has not moved since, so it was not asked again.
                None => drop(pause),
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::boot::TimeMode;
    use vmkern_abi::control::{MapId, Op, Outcome, Response};

    use super::*;
    use crate::guest::ThreadId;

    /// The kernel's vectors, including the host's three: timer, doorbell, operation, pause,
    /// rescheduling, pages, shootdown.
    const VECTORS: [u8; 7] = [0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56];

    fn launch(time: TimeMode) -> Guest {
        let builder =
            Guest::builder().memory(32 << 20).time(time).timeout(Duration::from_secs(300));
        builder.launch().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Holds `guest`, makes all interrupts pending, and lets it continue.
    fn interrupt_all_at_once(guest: &Guest) {
        let pause = guest.pause().expect("the guest can be held");
        for vector in VECTORS {
            let _ = guest.hypervisor.vm.signal(0, vector).expect("an interrupt can be sent");
        }
        drop(pause);
    }

    #[test]
    fn all_interrupts_pending_at_once_leave_a_halted_guest_alive() {
        let mut guest = launch(TimeMode::Virtual);
        for _ in 0..200 {
            interrupt_all_at_once(&guest);
            guest.call(ThreadId::MAIN, Op::Nop).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn all_interrupts_pending_at_once_leave_a_busy_guest_alive() {
        const SIZE: u64 = 4 << 20;
        let mut guest = launch(TimeMode::Real);
        let alloc = Op::KmemAlloc { map: MapId::KERNEL, size: SIZE };
        let Ok(Response { outcome: Outcome::Value(addr), .. }) = guest.call(ThreadId::MAIN, alloc)
        else {
            panic!("no memory")
        };
        let addr = GuestVirt::new(addr);
        for seed in 0..20 {
            let tag = guest
                .submit(ThreadId::MAIN, Op::Fill { addr, size: SIZE, seed })
                .unwrap_or_else(|error| panic!("{error}"));
            for _ in 0..10 {
                interrupt_all_at_once(&guest);
            }
            let response = guest.next_response().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((response.tag, response.outcome), (tag, Outcome::Ok));
        }
    }
}
