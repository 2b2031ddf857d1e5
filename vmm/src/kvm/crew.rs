//! The vCPUs of one guest, together: when one ends, all do, and they are held together.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use vmkern_abi::paging::Paging;

use super::bell::Bell;
use super::gate::Held;
use super::vcpu::{VcpuEnd, VcpuState};
use crate::deadline;
use crate::inspect::{Standing, Unstoppable};

/// What the vCPUs of a guest have in common.
#[derive(Debug)]
pub(crate) struct Crew {
    /// Rung by the guest's doorbell, and at a vCPU's end.
    pub(crate) bell: Arc<Bell>,
    /// How the first of them ended: the guest's end. Set before the bell rings for it.
    pub(crate) end: OnceLock<VcpuEnd>,
    /// The TSC's frequency in kHz. Known before any of them runs.
    pub(crate) tsc_khz: OnceLock<u32>,
    /// What they demand of page-table entries, by their CPUID. Known before any of them runs.
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

    /// One of the vCPUs has ended: stops the others, and tells whoever waits for the guest.
    pub(super) fn ended(&self, end: &VcpuEnd) {
        if self.end.set(end.clone()).is_ok() {
            self.stop();
        }
        self.bell.ring();
    }

    /// Whether the first vCPU, which answers, needs the CPU that runs this.
    pub(crate) fn needs_this_cpu(&self) -> bool {
        let first = self.members.get().and_then(|members| members.first()?.upgrade());
        first.is_some_and(|vcpu| vcpu.is_here())
    }

    /// Tells all vCPUs to stop. Their ends follow soon. May be called again.
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
#[must_use = "the vCPUs go on when this is dropped"]
pub(crate) struct HeldCrew<'a> {
    _held: Vec<Held<'a>>,
    /// [`Standing::Quiescent`] when all of them stand at a quiescent point.
    pub(crate) standing: Standing,
}

/// Holds all vCPUs outside of the guest until the returned value is dropped: at quiescent points if
/// they come to one soon, for which `ask` sends one an interrupt, at points of loops that own
/// mutexes when half of `limit` has passed, of which `hurry` tells the guest, and anywhere when all
/// of it has. A halted vCPU is at such a point already, and is not woken; one that has ended is
/// held where it ended; those that are held stay where they are. Those that were let go a moment
/// ago run first for a moment: looks without end do not stop a guest.
///
/// # Errors
/// When a vCPU's thread does not come out of the host's kernel.
pub(crate) fn pause<'a>(
    vcpus: &'a [Arc<VcpuState>],
    limit: Duration,
    ask: impl Fn(&VcpuState),
    hurry: impl Fn(),
) -> Result<HeldCrew<'a>, Unstoppable> {
    // 1. The call, to all at once. A vCPU that is held already stays as it is.
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
    // 2. All at the gate. One that stands anywhere may go on to a quiescent point.
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
    // 3. Half of the time, then a hurry, then the other half.
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
    // 4. Those that found none are held where they are.
    for vcpu in late {
        standings.push(vcpu.bring_to_gate()?);
    }
    let all = standings.iter().all(|&standing| standing == Standing::Quiescent);
    let standing = if all { Standing::Quiescent } else { Standing::Anywhere };
    Ok(HeldCrew { _held: held, standing })
}
