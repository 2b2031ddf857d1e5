//! The fail points of the simulated machine: its driver arms them between two operations.

use vmkern_abi::fail::{FailPoint, FailPoints, FailSite, FailSpec};
use vmkern_abi::field::Field;
use zerocopy::FromZeros;

use super::Sim;

/// The sites, which a kernel has in its control region.
#[derive(Debug)]
pub struct Sites {
    armed: Field<u64>,
    points: Box<FailPoints>,
}

impl Default for Sites {
    fn default() -> Self {
        Self { armed: Field::default(), points: Box::new(FailPoints::new_zeroed()) }
    }
}

impl Sites {
    #[cfg_attr(feature = "no-fail-sites", expect(dead_code, reason = "no site asks"))]
    #[inline(always)]
    pub(super) fn armed(&self) -> u64 {
        self.armed.get()
    }

    pub(super) fn points(&self) -> &FailPoints {
        &self.points
    }

    pub(super) fn arm(&self, site: FailSite, spec: &FailSpec) {
        self.points.arm(&self.armed, site, spec);
    }
}

impl Sim {
    /// Makes `spec` the programme of `site`.
    pub fn fail(&self, site: FailSite, spec: &FailSpec) {
        self.machine().sites.arm(site, spec);
    }

    /// Makes the hit number `nth` of `site` from now on, counted from 1, fail once.
    pub fn fail_nth(&self, site: FailSite, nth: u64) {
        let spec = FailSpec::nth(site, nth);
        self.fail(site, &spec.unwrap_or_else(|| panic!("hit {nth} of {} can fail", site.name())));
    }

    /// Disarms `site`. Returns whether it has fired since it was armed for the first time.
    pub fn disarm(&self, site: FailSite) -> bool {
        self.fail(site, &FailSpec::OFF);
        self.fail_point(site).fires.get() != 0
    }

    /// The programme and counts of `site`.
    #[must_use]
    pub fn fail_point(&self, site: FailSite) -> &FailPoint {
        self.machine().sites.points().point(site)
    }
}
