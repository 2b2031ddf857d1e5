//! Fail points of a round: a site that fails once, and windows in which a thread is late.
//!
//! A thread that is late gives way between two steps of the kernel, so others run there. That
//! changes no result: the round must be explained as always. After a failure the model says what it
//! says of a round that is short of pages: an operation that cannot wait may have failed. One that
//! can wait has done so, and has gone on, because there are pages.

use proptest::prelude::*;
use vmkern_abi::fail::{CHANCE_MAX, FailAction, FailSite, FailSpec, Term};

use super::refused::SITES;
use super::world::World;

/// Free pages beside those that a round may take, so that a thread that waits because of a failure
/// does not also wait for want of pages.
const SPARE: u64 = 250;

/// Late threads: after so many windows, at so many of them, for so long.
#[derive(Clone, Copy, Debug)]
struct Late {
    before: u64,
    windows: u64,
    micros: u64,
}

/// The fail points of a round.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    late: Option<Late>,
    /// A site, and which of its hits fails, counted from 1.
    refused: Option<(FailSite, u64)>,
}

/// The sites at which operations of a round can fail: no round makes maps, or needs more page
/// tables than the boot has made.
pub fn sites() -> impl Iterator<Item = FailSite> {
    let others = [FailSite::KmemSuballocMap, FailSite::PmapPtAlloc];
    SITES.into_iter().filter(move |site| !others.contains(site))
}

/// Fail points, in two thirds of the rounds.
pub fn failing() -> impl Strategy<Value = Failing> {
    let late = (0u64..30, 1u64..20, 1u64..4);
    let late = late.prop_map(|(before, windows, micros)| Late { before, windows, micros });
    // Most sites are reached seldom, and pages are taken often.
    let nth = prop_oneof![2 => Just(1), 1 => 2u64..12];
    let refused = (prop::sample::select(sites().collect::<Vec<_>>()), nth);
    let either = (prop::option::weighted(0.3, late), prop::option::weighted(0.5, refused));
    either.prop_map(|(late, refused)| Failing { late, refused })
}

/// The programme of `intr_window`.
fn programme(late: Late) -> FailSpec {
    let term = |action, argument, count| Term { action, argument, chance: CHANCE_MAX, count };
    let delay = term(FailAction::Delay, late.micros, Some(late.windows));
    match late.before {
        0 => FailSpec::one(delay),
        before => FailSpec::two(term(FailAction::Off, 0, Some(before)), delay),
    }
}

impl World {
    /// Arms the sites of a round whose operations may take `wanted` pages. Returns those that are
    /// armed, with their fires so far.
    pub(super) fn arm_round(&mut self, failing: Failing, wanted: u64) -> Vec<(FailSite, u64)> {
        let late = failing.late.map(|late| (FailSite::IntrWindow, programme(late)));
        let refused = failing.refused.filter(|_| self.sim.free_pages() >= wanted + SPARE);
        let refused = refused.and_then(|(site, nth)| Some((site, FailSpec::nth(site, nth)?)));
        let mut armed = Vec::new();
        for (site, spec) in late.into_iter().chain(refused) {
            self.script.borrow_mut().fail(site, &spec);
            self.sim.fail(site, &spec);
            armed.push((site, self.sim.fail_point(site).fires.get()));
        }
        armed
    }

    /// Disarms the sites of a round. Returns whether a function has failed at one.
    pub(super) fn disarm_round(&mut self, armed: &[(FailSite, u64)]) -> bool {
        let mut failed = false;
        for &(site, before) in armed {
            self.sim.fail(site, &FailSpec::OFF);
            let mut script = self.script.borrow_mut();
            script.fail(site, &FailSpec::OFF);
            if self.sim.fail_point(site).fires.get() != before {
                script.saw(site.name());
                failed |= site != FailSite::IntrWindow;
            }
        }
        failed
    }
}
