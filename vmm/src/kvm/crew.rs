//! The vCPUs of one guest as a group: when one ends, all end, and they are held together.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use vmkern_abi::paging::Paging;

use super::bell::Bell;
use super::gate::Held;
use super::vcpu::{VcpuEnd, VcpuState};
use crate::deadline;
use crate::inspect::{Standing, Unstoppable};

/// State that the vCPUs of a guest share.
#[derive(Debug)]
pub(crate) struct Crew {
    /// Rung by the guest's doorbell, and at a vCPU's end.
    pub(crate) bell: Arc<Bell>,
    /// How the first of them ended, which ends the guest. Set before the bell rings for it.
    pub(crate) end: OnceLock<VcpuEnd>,
    /// The TSC's frequency in kHz. Known before any of them runs.
    pub(crate) tsc_khz: OnceLock<u32>,
    /// Their requirements of page-table entries, from their CPUID. Known before any of them runs.
    pub(crate) paging: OnceLock<Paging>,
    members: OnceLock<Vec<Weak<VcpuState>>>,
}

impl Crew {
    /// `count` vCPUs, numbered from 0.
    pub(crate) fn assemble(bell: Arc<Bell>, count: u32) -> (Arc<Self>, Vec<Arc<VcpuState>>) {
        let (end, tsc_khz, paging, members) = Default::default();
        let crew = Arc::new(Self { bell, end, tsc_khz, paging, members });
        let members: Vec<_> =
            (0..count).map(|id| Arc::new(VcpuState::new(id, Arc::clone(&crew)))).collect();
        let _ = crew.members.set(members.iter().map(Arc::downgrade).collect());
        (crew, members)
    }

    /// One of the vCPUs has ended: stops the others, and wakes the thread that waits for the guest.
    pub(super) fn ended(&self, end: &VcpuEnd) {
        if self.end.set(end.clone()).is_ok() {
            self.stop();
        }
        self.bell.ring();
    }

    /// Whether the first vCPU, which answers requests, needs the CPU that runs this.
    pub(crate) fn needs_this_cpu(&self) -> bool {
        let first = self.members.get().and_then(|members| members.first()?.upgrade());
        first.is_some_and(|vcpu| vcpu.is_here())
    }

    /// Tells all vCPUs to stop. They end soon after. May be called again.
    pub(crate) fn stop(&self) {
        self.members
            .get()
            .into_iter()
            .flatten()
            .filter_map(Weak::upgrade)
            .for_each(|vcpu| vcpu.stop());
    }
}

/// A guest's vCPUs, held.
#[derive(Debug)]
#[must_use = "the vCPUs continue when this is dropped"]
pub(crate) struct HeldCrew<'a> {
    _held: Vec<Held<'a>>,
    /// [`Standing::Quiescent`] if all of them stand at a quiescent point.
    pub(crate) standing: Standing,
}

/// Holds all vCPUs outside the guest until the returned value is dropped. They are held at
/// quiescent points if they reach one soon; `ask` sends a vCPU an interrupt for that. After half of
/// `limit`, `hurry` tells the guest, and points inside loops with mutexes held will do. After all
/// of it, a vCPU is held anywhere. A halted vCPU is at a quiescent point already and is not woken;
/// one that has ended counts as held where it ended; one that is already held stays where it is.
/// vCPUs that were released a moment ago first run for a moment, so repeated looks do not stop a
/// guest.
///
/// # Errors
/// When a vCPU's thread does not return from the host's kernel.
pub(crate) fn pause<'a>(
    vcpus: &'a [Arc<VcpuState>],
    limit: Duration,
    ask: impl Fn(&VcpuState),
    hurry: impl Fn(),
) -> Result<HeldCrew<'a>, Unstoppable> {
    // 1. Call all of them at once. A vCPU that is held already stays where it is.
    vcpus.iter().for_each(|vcpu| vcpu.let_run());
    let mut held = Vec::with_capacity(vcpus.len());
    let mut ours = Vec::with_capacity(vcpus.len());
    let mut standings = Vec::with_capacity(vcpus.len());
    for vcpu in vcpus {
        let (hold, is_first) = vcpu.hold();
        if is_first {
            vcpu.call_to_gate();
            ours.push(vcpu);
        } else {
            standings.push(hold.standing);
        }
        held.push(hold);
    }
    // 2. Bring all to the gate. One that stands anywhere may continue to a quiescent point.
    let mut moving = Vec::new();
    for vcpu in ours {
        match vcpu.bring_to_gate()? {
            Standing::Anywhere if vcpu.end.get().is_none() => moving.push(vcpu),
            standing => standings.push(standing),
        }
    }
    for vcpu in &moving {
        vcpu.let_go_to_quiescent_point();
        ask(vcpu);
    }
    // 3. Wait half of the time, then hurry the guest, then wait the other half.
    let mut late = moving;
    for deadline in [deadline::after(limit / 2), deadline::after(limit)] {
        late.retain(|vcpu| {
            let standing = vcpu.wait_for_quiescent_point(deadline);
            standings.extend(standing);
            standing.is_none()
        });
        if !late.is_empty() {
            hurry();
        }
    }
    // 4. Hold those that reached no such point where they are.
    for vcpu in late {
        standings.push(vcpu.bring_to_gate()?);
    }
    let all = standings.iter().all(|&standing| standing == Standing::Quiescent);
    let standing = if all { Standing::Quiescent } else { Standing::Anywhere };
    Ok(HeldCrew { _held: held, standing })
}
