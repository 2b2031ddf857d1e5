//! The host's end of the control region.
//!
//! The rings' handles borrow from guest memory that this value itself keeps mapped, which the
//! compiler cannot see. That is the only reason for `unsafe` here.

use std::sync::Arc;

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::control::{
    CONTROL_MAGIC, Consumer, ControlRegion, Corrupt, Producer, RING_SLOTS, Request, Response,
};

use super::error::ContractError;
use crate::inspect::NotRam;
use crate::kvm::memory::{GuestRam, Shared};

/// The control region, with this side's ends of its rings.
pub(crate) struct Link {
    // Both borrow from `region`'s memory and are dropped before it.
    requests: Producer<'static, RING_SLOTS>,
    responses: Consumer<'static, RING_SLOTS>,
    region: Shared<ControlRegion>,
}

impl Link {
    /// Prepares the region at `at`, where memory is zero.
    pub(crate) fn new(ram: &Arc<GuestRam>, at: GuestPhys) -> Result<Self, NotRam> {
        let region = ram.shared::<ControlRegion>(at)?;
        region.magic.set(CONTROL_MAGIC);
        region.host_abi_version.set(vmkern_abi::ABI_VERSION);
        // SAFETY: the handles made from this reference are fields of this value that are declared
        // before `region`, and nothing else holds the reference.
        let unbound = unsafe { region.unbound() };
        Ok(Self {
            requests: Producer::new(&unbound.requests),
            responses: Consumer::new(&unbound.responses),
            region,
        })
    }

    /// The region.
    pub(crate) fn region(&self) -> &ControlRegion {
        &self.region
    }

    /// Puts a request into its ring; returns `false` if the ring is full.
    pub(crate) fn push(&mut self, request: &Request) -> Result<bool, ContractError> {
        self.requests.push(&request.encode()).map_err(ring("request"))
    }

    /// Takes the oldest response.
    pub(crate) fn pop(&mut self) -> Result<Option<Response>, ContractError> {
        match self.responses.pop().map_err(ring("response"))? {
            Some(slot) => Ok(Some(Response::decode(&slot)?)),
            None => Ok(None),
        }
    }

    /// Whether a response waits, or the ring is broken: whether [`Link::pop`] returns anything.
    pub(crate) fn has_news(&self) -> bool {
        !matches!(self.responses.waiting(), Ok(0))
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("requests", &self.requests)
            .field("responses", &self.responses)
            .finish()
    }
}

fn ring(ring: &'static str) -> impl FnOnce(Corrupt) -> ContractError {
    move |corrupt| ContractError::Ring { ring, corrupt }
}
