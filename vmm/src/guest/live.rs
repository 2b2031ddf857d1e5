//! A guest of this process as a [`Source`].

use std::ops::Range;
use std::sync::OnceLock;

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::paging::Paging;
use vmkern_inspect::paging_of;

use super::hypervisor::Hypervisor;
use super::pause::PAUSE_LIMIT;
use crate::inspect::{
    Anchors, CpuState, InspectError, NotRam, PageWords, Source, Standing, Unstoppable,
};
use crate::kvm::crew::HeldCrew;

/// Whether an inspection needs the guest to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It does: the vCPU is held until the source is dropped, at a quiescent point if possible.
    Yes,
    /// It does not: nothing changes, or a change does no harm.
    No,
}

/// A guest of this process, held for as long as the value lives, if requested.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    hypervisor: &'a Hypervisor,
    anchors: Anchors,
    held: Option<HeldCrew<'a>>,
    /// What the file behind the memory holds, once that has been asked.
    populated: OnceLock<Vec<Range<GuestPhys>>>,
}

impl<'a> Live<'a> {
    /// The guest in `hypervisor`. `anchors` is called once the guest is held.
    ///
    /// # Errors
    /// When the vCPU cannot be held.
    pub(crate) fn new(
        hypervisor: &'a Hypervisor,
        hold: Hold,
        anchors: impl FnOnce() -> Anchors,
    ) -> Result<Self, Unstoppable> {
        let held = match hold {
            Hold::Yes => Some(hypervisor.pause(PAUSE_LIMIT)?),
            Hold::No => None,
        };
        Ok(Self { hypervisor, anchors: anchors(), held, populated: OnceLock::new() })
    }
}

impl Source for Live<'_> {
    fn segments(&self) -> &[Range<GuestPhys>] {
        self.hypervisor.ram.segments()
    }

    fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam> {
        self.hypervisor.ram.page(at)
    }

    fn cpus(&self) -> Result<Vec<CpuState>, InspectError> {
        let _held =
            if self.held.is_none() { Some(self.hypervisor.pause(PAUSE_LIMIT)?) } else { None };
        let cpus = self.hypervisor.vcpus.cpu_states();
        if cpus.is_empty() { Err(InspectError::NotReady("registers")) } else { Ok(cpus) }
    }

    fn anchors(&self) -> Anchors {
        self.anchors
    }

    fn paging(&self) -> Paging {
        let crew = &self.hypervisor.vcpus.crew;
        crew.paging
            .get()
            .map_or(Paging::ANY, |paging| paging_of(*paging, &self.hypervisor.vcpus.cpu_states()))
    }

    fn standing(&self) -> Standing {
        self.held.as_ref().map_or(Standing::Quiescent, |held| held.standing)
    }

    fn held_size(&self) -> u64 {
        self.hypervisor.ram.resident()
    }

    fn populated(&self) -> Vec<Range<GuestPhys>> {
        self.hypervisor.ram.populated()
    }

    fn holds(&self, at: GuestPhys) -> bool {
        let parts = self.populated.get_or_init(|| self.populated());
        let next = parts.partition_point(|part| part.end <= at);
        parts.get(next).is_some_and(|part| part.start <= at)
    }
}
