//! Fail points of a guest: arming them, and what became of them.
//!
//! The host writes programmes straight into the control region ([`vmkern_abi::fail`]): the guest is
//! not asked, and need not answer.

use std::borrow::Cow;
use std::sync::PoisonError;

use thiserror::Error;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::ControlRegion;
use vmkern_abi::fail::{FailSite, FailSpec, SpecError};

use super::handle::Guest;
use crate::spelling;

/// Why a site could not be armed. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FailError {
    /// There is no such site.
    #[error("unknown fail site `{0}`{near}; known: {list}", near = meant(.0), list = names())]
    Site(String),
    /// The programme is not one for the site.
    #[error("`{}` at byte {}: {error}", shown(.spec, .error.at), .error.at)]
    Spec {
        /// The site.
        site: FailSite,
        /// The text of the programme.
        spec: String,
        /// The rule that it breaks, and where.
        error: SpecError,
    },
}

/// The suggestion for a name that is not a site's.
fn meant(name: &str) -> String {
    let near = spelling::closest(name, FailSite::ALL.iter().map(|site| site.name()));
    near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

/// What an error quotes of a programme with a mistake at byte `at`: all, or what stands there.
fn shown(spec: &str, at: usize) -> Cow<'_, str> {
    const MOST: usize = 80;
    if spec.len() <= MOST {
        return Cow::Borrowed(spec);
    }
    let before = if at == 0 { "" } else { "..." };
    let there: String = spec.get(at..).unwrap_or_default().chars().take(MOST).collect();
    let after = if at + there.len() < spec.len() { "..." } else { "" };
    Cow::Owned(format!("{before}{there}{after}"))
}

/// The names of all sites.
fn names() -> String {
    FailSite::ALL.map(FailSite::name).join(" ")
}

/// A site by name.
///
/// # Errors
/// [`FailError::Site`] for an unknown name.
pub(crate) fn site(name: &str) -> Result<FailSite, FailError> {
    FailSite::from_name(name).ok_or_else(|| FailError::Site(name.to_owned()))
}

/// A site by name, and a programme for it.
pub(crate) fn parse(name: &str, spec: &str) -> Result<(FailSite, FailSpec), FailError> {
    let site = site(name)?;
    match FailSpec::parse(site, spec) {
        Ok(programme) => Ok((site, programme)),
        Err(error) => Err(FailError::Spec { site, spec: spec.to_owned(), error }),
    }
}

/// What became of a site since the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailCounts {
    /// How often the kernel came to it while it was armed.
    pub hits: u64,
    /// How often it executed a term other than `off`.
    pub fires: u64,
}

/// Where a site executed a term that made the kernel fail, wait or die.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFire {
    /// The site.
    pub site: FailSite,
    /// Which hit of the site it was, counted from 1.
    pub hit: u64,
    /// The thread's number, if there were threads.
    pub thread: Option<u32>,
    /// Return addresses, innermost first; [`Guest::symbols`] names them.
    pub frames: Vec<GuestVirt>,
}

/// Arms `site` in a region whose guest may run.
pub(super) fn arm(region: &ControlRegion, site: FailSite, spec: &FailSpec) {
    region.fail.arm(&region.fail_armed, site, spec);
}

/// Puts the list of call stacks that do not fail into use, with the hashes `known`, as far as there
/// is room. The kernel does not run yet.
pub(super) fn list_stacks(region: &ControlRegion, known: &[u64]) {
    let stacks = &region.fail.stacks;
    let mut length = 0;
    for (slot, &hash) in stacks.hashes.iter().zip(known) {
        slot.set(hash);
        length += 1;
    }
    stacks.length.set(length);
    stacks.on.raise();
}

impl Guest {
    /// Makes `spec`, in the grammar of `fail(9)`, the programme of the site called `site`, from now
    /// on: `[N%][M*]action[(argument)][->...]` with the actions `off`, `return`, `sleep`, `delay`,
    /// `panic` and `print`. `off` disarms it.
    ///
    /// ```
    /// use vmkern::prelude::*;
    ///
    /// let mut guest = Guest::builder().launch()?;
    /// guest.fail("vm_map_findspace", "1*return")?;
    /// let alloc = Op::KmemAlloc { map: MapId::KERNEL, size: 4096 };
    /// assert_eq!(guest.call(ThreadId::MAIN, alloc)?.outcome, Outcome::Null);
    /// assert!(matches!(guest.call(ThreadId::MAIN, alloc)?.outcome, Outcome::Value(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`FailError`]; nothing has changed then.
    pub fn fail(&self, site: &str, spec: &str) -> Result<(), FailError> {
        let (site, spec) = parse(site, spec)?;
        self.arm(site, &spec);
        Ok(())
    }

    /// Makes `spec` the programme of `site`, from now on.
    pub fn arm(&self, site: FailSite, spec: &FailSpec) {
        // A thread that panicked meanwhile left a programme that holds, or none.
        let _one = self.arming.lock().unwrap_or_else(PoisonError::into_inner);
        arm(self.link.region(), site, spec);
    }

    /// Disarms every site. Counts stay.
    pub fn disarm_all(&self) {
        FailSite::ALL.into_iter().for_each(|site| self.arm(site, &FailSpec::OFF));
    }

    /// How often the kernel came to `site` while it was armed, and how often it executed a term.
    /// Also works on a dead guest.
    #[must_use]
    pub fn fail_counts(&self, site: FailSite) -> FailCounts {
        let point = self.link.region().fail.point(site);
        FailCounts { hits: point.hits.get(), fires: point.fires.get() }
    }

    /// The hashes of the call stacks that do not fail again, in the order in which they failed;
    /// none if the list is not in use.
    pub(crate) fn failed_stacks(&self) -> Vec<u64> {
        let stacks = &self.link.region().fail.stacks;
        stacks.hashes().iter().map(|hash| hash.get()).collect()
    }

    /// The last execution of a term other than `off` and `print`, if there was one. Also works on a
    /// dead guest.
    #[must_use]
    pub fn last_fire(&self) -> Option<LastFire> {
        let last = &self.link.region().fail.last;
        if last.hit.get() == 0 {
            return None;
        }
        Some(LastFire {
            site: last.site.known()?,
            hit: last.hit.get(),
            thread: Some(last.thread.get()).filter(|&thread| thread != u32::MAX),
            frames: last.frames().iter().map(|frame| frame.get()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

    use super::*;
    use crate::guest::{ConfigError, ThreadId};

    const ALLOC: Op = Op::KmemAlloc { map: MapId::KERNEL, size: 4096 };

    fn outcome(guest: &mut Guest, op: Op) -> Outcome {
        guest.call(ThreadId::MAIN, op).expect("the guest answers").outcome
    }

    #[test]
    fn a_site_fails_as_often_as_its_programme_says_and_tells_where() {
        let mut guest = Guest::builder().launch().expect("a guest");
        assert_eq!(guest.last_fire(), None);
        guest.fail("vm_map_findspace", "1*off->2*return").expect("a programme");
        let outcomes = [0; 4].map(|_| outcome(&mut guest, ALLOC));
        assert!(
            matches!(
                outcomes,
                [Outcome::Value(_), Outcome::Null, Outcome::Null, Outcome::Value(_)]
            ),
            "{outcomes:?}"
        );
        let site = FailSite::VmMapFindspace;
        assert_eq!(guest.fail_counts(site), FailCounts { hits: 4, fires: 2 });
        let last = guest.last_fire().expect("it has fired");
        assert_eq!((last.site, last.hit, last.thread), (site, 3, Some(0)));
        let names = last.frames.iter().flat_map(|&frame| guest.symbols().frames(frame));
        let names: Vec<String> = names.filter_map(|frame| frame.function).collect();
        assert!(names.iter().any(|name| name.contains("kmem_alloc")), "{names:?}");
    }

    #[test]
    fn a_site_that_is_disarmed_counts_no_hits() {
        let mut guest = Guest::builder().launch().expect("a guest");
        guest.fail("vm_page_alloc", "print").expect("a programme");
        let _ = outcome(&mut guest, ALLOC);
        let counts = guest.fail_counts(FailSite::VmPageAlloc);
        assert!(counts.hits > 0 && counts.fires == counts.hits, "{counts:?}");
        guest.disarm_all();
        let _ = outcome(&mut guest, ALLOC);
        assert_eq!(guest.fail_counts(FailSite::VmPageAlloc), counts);
        let log = String::from_utf8(guest.take_log()).expect("text");
        assert!(log.contains("fail point vm_page_alloc executing"), "{log}");
    }

    #[test]
    fn a_site_armed_by_the_builder_fires_in_the_boot() {
        let dead = Guest::builder().fail("vm_page_alloc.interrupt", "panic").launch();
        let error = dead.expect_err("it panics").to_string();
        assert!(error.contains("fail point vm_page_alloc.interrupt panicking"), "{error}");
    }

    #[test]
    fn a_sleep_at_a_site_lasts_and_other_threads_run() {
        let mut guest = Guest::builder().launch().expect("a guest");
        guest.fail("kmem_suballoc.map", "sleep(250)").expect("a programme");
        let before = guest.now_micros().expect("a clock");
        let op = Op::KmemSuballoc {
            parent: MapId::KERNEL,
            size: 1 << 20,
            kind: vmkern_abi::control::MapKind::User,
        };
        assert!(matches!(outcome(&mut guest, op), Outcome::Value(_)));
        let after = guest.now_micros().expect("a clock");
        assert!((250_000..260_000).contains(&(after - before)), "{before} to {after}");
    }

    #[test]
    fn an_unknown_site_and_a_bad_programme_change_nothing() {
        let mut guest = Guest::builder().launch().expect("a guest");
        let error = guest.fail("vm_page_aloc", "return").expect_err("no site").to_string();
        assert!(error.contains("did you mean `vm_page_alloc`?"), "{error}");
        let error = guest.fail("vm_page_alloc", "sleep(1)").expect_err("refused").to_string();
        assert!(error.contains("at byte 0") && error.contains("delay"), "{error}");
        let long = "1*off->".repeat(9_999);
        let error = guest.fail("tsleep", &long).expect_err("it is too long").to_string();
        assert!(error.starts_with("`...1*off->") && error.len() < 200, "{error}");
        assert!(error.ends_with("...` at byte 56: there are more than 8 terms"), "{error}");
        let nowait = Op::KmemMalloc { map: MapId::KMEM, size: 4096, flags: MallocFlags::NOWAIT };
        assert!(matches!(outcome(&mut guest, nowait), Outcome::Value(_)));
        let config = Guest::builder().fail("tsleep", "101%return").validate();
        assert!(matches!(config, Err(ConfigError::Fail(FailError::Spec { .. }))), "{config:?}");
    }
}
