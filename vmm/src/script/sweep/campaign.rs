//! The surveys and visits of a whole sweep, several at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmkern_abi::fail::{FailSite, STACKS_MAX};

use super::ledger::Ledger;
use super::point::{Armed, Lost, Ran, Range, Reference, shoot};
use super::{Checking, Mode, SiteReport};
use crate::GuestBuilder;
use crate::script::Script;
use crate::script::stop::Stop;
use crate::script::suite::{self, Attempt};

/// The limit of a visit, as a multiple of the fault-free run's time.
const SLACK: u32 = 20;
/// The least limit of a visit: times of a few milliseconds say little.
const FLOOR: Duration = Duration::from_secs(5);

/// Whether an item is a script, or the boot of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The points of the boot.
    Boot,
    /// The points of a script, from its first statement on.
    Script,
}

/// Something with points.
pub struct Item {
    /// Its name in reports.
    pub name: String,
    /// What is swept.
    pub load: Load,
    /// The script: an empty one for a boot.
    pub script: Script,
    /// The file of a script with this guest, as a shell takes it.
    pub file: String,
    /// Options for `vmkern run`, each with a blank before it.
    pub flags: String,
    /// What tells its guest from others: boots of equal ones are alike.
    pub machine: String,
    /// The guest.
    pub builder: GuestBuilder,
    /// Seed of `rand`.
    pub seed: u64,
    /// Time limit of the fault-free run.
    pub limit: Duration,
}

/// A sweep.
pub struct Campaign<'a> {
    /// What is swept. A boot comes before the scripts with its guest.
    pub items: &'a [Item],
    /// The sites.
    pub sites: &'a [FailSite],
    /// Which hits fail.
    pub mode: Mode,
    /// Whether each run ends with a check.
    pub checking: Checking,
    /// Runs at a time.
    pub jobs: usize,
    /// Makes what ends a run.
    pub stop: &'a (dyn Fn(Duration) -> Arc<Stop> + Sync),
    /// Whether the sweep goes on.
    pub go_on: &'a (dyn Fn() -> bool + Sync),
}

/// What became of an item that was not swept, or not wholly.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Left {
    /// The item.
    pub script: String,
    /// Why.
    pub reason: String,
}

impl Left {
    /// `script` is left out for this reason.
    #[must_use]
    pub fn new(script: String, reason: impl Into<String>) -> Self {
        Self { script, reason: reason.into() }
    }
}

/// Watches a sweep. It is told things on the thread that called [`sweep`].
pub trait Watcher {
    /// The surveys have found this many points.
    fn surveyed(&mut self, points: u64);
    /// The points of a site in an item were visited.
    fn visited(&mut self, report: SiteReport);
    /// An item is left out.
    fn left(&mut self, left: Left);
}

/// The points of one site in one item.
struct Job<'a> {
    item: &'a Item,
    site: FailSite,
    fresh: &'a Option<Ledger>,
    reference: &'a Reference,
    /// Hits of the boot, if those are not swept here, and the number of points.
    before: u64,
    points: u64,
    known: Vec<u64>,
}

/// An item's survey.
struct Survey {
    ran: Ran,
    /// The stacks of the items before it.
    known: Vec<u64>,
}

/// Sweeps. Ends early when `go_on` says no, or a run is interrupted.
pub fn sweep(campaign: &Campaign<'_>, watcher: &mut dyn Watcher) {
    // 1. The surveys.
    let surveys = match campaign.mode {
        Mode::Every(_) => campaign.survey_all(),
        Mode::Stacks => campaign.survey_in_order(),
    };
    // 2. The jobs of the items whose fault-free run holds.
    let mut jobs = Vec::new();
    let mut fresh: BTreeMap<&String, &Option<Ledger>> = BTreeMap::new();
    for (item, survey) in campaign.items.iter().zip(&surveys) {
        let Some(survey) = survey else { continue };
        if let Some(reason) = refusal(&survey.ran) {
            watcher.left(Left { script: item.name.clone(), reason });
            continue;
        }
        if item.load == Load::Boot {
            fresh.insert(&item.machine, &survey.ran.reference.ledger);
        }
        let of = fresh.get(&item.machine).copied().unwrap_or(&None);
        campaign.jobs_of((item, survey), of, &mut jobs);
        if survey.ran.stacks.len() == STACKS_MAX {
            let reason =
                format!("the list of {STACKS_MAX} stacks is full: further ones do not fail");
            watcher.left(Left { script: item.name.clone(), reason });
        }
    }
    watcher.surveyed(jobs.iter().map(|job| job.points).sum());
    // 3. The visits. An interrupted run ends the sweep.
    let interrupted = AtomicBool::new(false);
    let go_on = || !interrupted.load(Ordering::SeqCst) && (campaign.go_on)();
    let work = |index: usize| match campaign.visit(&jobs[index], &go_on) {
        (report, None) => Attempt::Done(report),
        (report, Some(Lost::Interrupted)) => {
            interrupted.store(true, Ordering::SeqCst);
            Attempt::Done(report)
        }
        (mut report, Some(Lost::Short(why))) => {
            report.outcomes.insert(format!("not run: {why}"), 1);
            Attempt::Short(report)
        }
    };
    suite::run_all(jobs.len(), campaign.jobs, go_on, work, |finished| {
        watcher.visited(finished.result);
    });
}

/// Why the points of an item cannot be visited, if they cannot.
fn refusal(ran: &Ran) -> Option<String> {
    match &ran.lost {
        Some(Lost::Interrupted) => Some("interrupted".to_owned()),
        Some(Lost::Short(why)) => Some(why.clone()),
        None => ran.unexpected.first().map(|found| format!("without any failure: {}", found.what)),
    }
}

impl Campaign<'_> {
    /// A run of `item`.
    fn range<'a>(
        &'a self,
        item: &'a Item,
        fresh: &'a Option<Ledger>,
        reference: Option<&'a Reference>,
    ) -> Range<'a> {
        let limit = match reference {
            Some(reference) => (reference.took * SLACK).max(FLOOR),
            None => item.limit,
        };
        let Self { checking, stop, .. } = *self;
        Range { item, checking, limit, fresh, reference, stop }
    }

    /// Surveys all items, several at a time.
    fn survey_all(&self) -> Vec<Option<Survey>> {
        let mut surveys: Vec<Option<Survey>> = self.items.iter().map(|_| None).collect();
        let work = |index: usize| {
            let range = self.range(&self.items[index], &None, None);
            let ran = shoot(&range, &Armed::Survey(self.sites.to_vec(), None));
            let is_short = matches!(ran.lost, Some(Lost::Short(_)));
            let survey = Survey { ran, known: Vec::new() };
            if is_short { Attempt::Short(survey) } else { Attempt::Done(survey) }
        };
        suite::run_all(self.items.len(), self.jobs, self.go_on, work, |finished| {
            surveys[finished.index] = Some(finished.result);
        });
        surveys
    }

    /// Surveys all items one after the other; each knows the stacks of those before it.
    fn survey_in_order(&self) -> Vec<Option<Survey>> {
        let mut known = Vec::new();
        let mut survey = |item| {
            if !(self.go_on)() {
                return None;
            }
            let armed = Armed::Survey(self.sites.to_vec(), Some(known.clone()));
            let ran = shoot(&self.range(item, &None, None), &armed);
            let before = known.clone();
            if refusal(&ran).is_none() {
                known.clone_from(&ran.stacks);
            }
            Some(Survey { ran, known: before })
        };
        self.items.iter().map(&mut survey).collect()
    }

    /// Adds the jobs of an item.
    fn jobs_of<'a>(
        &self,
        (item, survey): (&'a Item, &'a Survey),
        fresh: &'a Option<Ledger>,
        jobs: &mut Vec<Job<'a>>,
    ) {
        for &site in self.sites {
            let hits = survey.ran.hits[site.index()];
            let (before, end) = match item.load {
                Load::Boot => (0, hits.boot),
                Load::Script => (hits.boot, hits.end),
            };
            let points = match self.mode {
                Mode::Every(most) => end.saturating_sub(before).min(most),
                Mode::Stacks => hits.fires,
            };
            if points > 0 {
                let (reference, known) = (&survey.ran.reference, survey.known.clone());
                jobs.push(Job { item, site, fresh, reference, before, points, known });
            }
        }
    }

    /// Visits the points of a job, until one does not fire.
    fn visit(&self, job: &Job<'_>, go_on: &impl Fn() -> bool) -> (SiteReport, Option<Lost>) {
        // 1. Nothing visited yet.
        let mut report = SiteReport {
            script: job.item.name.clone(),
            site: job.site.name(),
            known: job.points,
            points: 0,
            outcomes: BTreeMap::new(),
            unexpected: Vec::new(),
        };
        let mut known = job.known.clone();
        // 2. A run for each point. In a sweep by stacks each one knows what failed before it.
        for nth in 1..=job.points {
            if !go_on() {
                return (report, Some(Lost::Interrupted));
            }
            let armed = match self.mode {
                Mode::Every(_) => Armed::Hit(job.site, job.before + nth),
                Mode::Stacks => Armed::Stack(job.site, known.clone()),
            };
            let ran = shoot(&self.range(job.item, job.fresh, Some(job.reference)), &armed);
            // 3. Its result.
            if let Some(lost) = ran.lost {
                return (report, Some(lost));
            }
            report.unexpected.extend(ran.unexpected);
            if !ran.fired {
                break;
            }
            report.points += 1;
            *report.outcomes.entry(ran.kind).or_default() += 1;
            if self.mode == Mode::Stacks {
                known = ran.stacks;
            }
        }
        (report, None)
    }
}
