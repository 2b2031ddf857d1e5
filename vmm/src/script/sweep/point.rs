//! One run: a survey, or a visit of one point.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmkern_abi::fail::{FailSite, FailSpec};

use super::campaign::Item;
use super::ledger::Ledger;
use super::rows::{self, BOOT_PANICS, Ended};
use super::watched::{Unwound, Watched};
use super::{Checking, Unexpected};
use crate::guest::LastFire;
use crate::inspect::What;
use crate::inspect::draw::draw;
use crate::script::guest::GuestTarget;
use crate::script::interpreter::run;
use crate::script::outcome::{Ending, Step};
use crate::script::stop::Stop;
use crate::script::target::{Panic, TargetError};
use crate::text::unstyled;
use crate::{Crash, Guest, GuestBuilder, GuestError, LaunchError};

/// A programme that counts hits and never fails, in effect.
const COUNTING: &str = "4294967295*off->return";

/// What a run is armed with.
#[derive(Clone, Debug)]
pub(super) enum Armed {
    /// Each of these sites counts. With a list of known stacks, each notes its new stacks, too.
    Survey(Vec<FailSite>, Option<Vec<u64>>),
    /// The site fails at this hit, counted from the first instruction.
    Hit(FailSite, u64),
    /// The site fails at its first stack that is not in the list.
    Stack(FailSite, Vec<u64>),
}

impl Armed {
    fn site(&self) -> Option<FailSite> {
        match *self {
            Self::Survey(..) => None,
            Self::Hit(site, _) | Self::Stack(site, _) => Some(site),
        }
    }

    /// A guest that is armed so.
    fn arm(&self, builder: GuestBuilder) -> GuestBuilder {
        match self {
            Self::Survey(sites, None) => {
                sites.iter().fold(builder, |builder, site| builder.fail(site.name(), COUNTING))
            }
            // A line in the log for each new stack, and nothing else.
            Self::Survey(sites, Some(known)) => sites
                .iter()
                .fold(builder, |builder, site| builder.fail(site.name(), "print"))
                .failing_stacks_once(known.clone()),
            Self::Hit(site, hit) => match FailSpec::nth(*site, *hit) {
                Some(spec) => builder.arm(*site, &spec),
                None => builder,
            },
            Self::Stack(site, known) => match FailSpec::nth(*site, 1) {
                Some(spec) => builder.arm(*site, &spec).failing_stacks_once(known.clone()),
                None => builder,
            },
        }
    }
}

/// Hits and fires of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hits {
    /// When the guest was ready.
    pub boot: u64,
    /// At the end of the script.
    pub end: u64,
    /// Fires, at the end of the script.
    pub fires: u64,
}

/// The end of a run, for comparison.
#[derive(Clone, Debug, Default)]
pub(super) struct Reference {
    pub ledger: Option<Ledger>,
    /// Threads that sleep for ever.
    pub asleep: BTreeMap<u16, String>,
    pub took: Duration,
}

/// What a run came to.
#[derive(Debug, Default)]
pub(super) struct Ran {
    /// Whether the site has fired.
    pub fired: bool,
    /// Which hit.
    pub hit: u64,
    pub kind: String,
    pub unexpected: Vec<Unexpected>,
    /// By the sites' numbers.
    pub hits: [Hits; FailSite::COUNT],
    pub stacks: Vec<u64>,
    pub reference: Reference,
    /// Why the run has no result: the host is short of something, or the run was interrupted.
    pub lost: Option<Lost>,
}

/// Why a run has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The host is short of something.
    Short(String),
    /// It was interrupted.
    Interrupted,
}

/// What a run needs besides its programmes.
pub(super) struct Range<'a> {
    pub item: &'a Item,
    pub checking: Checking,
    pub limit: Duration,
    /// The counts of a fresh guest.
    pub fresh: &'a Option<Ledger>,
    /// The fault-free run, for a visit.
    pub reference: Option<&'a Reference>,
    /// Makes what ends a run.
    pub stop: &'a (dyn Fn(Duration) -> Arc<Stop> + Sync),
}

/// Visits a point, or surveys.
pub(super) fn shoot(range: &Range<'_>, armed: &Armed) -> Ran {
    let start = Instant::now();
    let stop = (range.stop)(range.limit);
    let builder = range.item.script.furnish(range.item.builder.clone());
    let builder = armed.arm(builder).seed(range.item.seed).timeout(range.limit);
    let mut ran = Ran::default();
    // 1. The boot.
    let mut guest = match builder.start(None) {
        Ok(guest) => guest,
        Err(error) => {
            ran.lost = Some(Lost::Short(error.to_string()));
            return ran;
        }
    };
    stop.watch(&guest);
    let booted = guest.await_ready();
    ran.note_hits(&guest, |hits, now| hits.boot = now.hits);
    let mut shot = Shot { range, armed, ran };
    if let Err(error) = booted {
        shot.died_in_boot(&guest, &error);
        return shot.ran;
    }
    // 2. The script, and the end.
    let mut target = GuestTarget::new(guest);
    shot.script(&mut target, &stop);
    shot.ran.reference.took = start.elapsed();
    shot.ran
}

impl Ran {
    fn note_hits(&mut self, guest: &Guest, note: impl Fn(&mut Hits, crate::guest::FailCounts)) {
        for site in FailSite::ALL {
            note(&mut self.hits[site.index()], guest.fail_counts(site));
        }
        self.stacks = guest.failed_stacks();
    }
}

struct Shot<'a> {
    range: &'a Range<'a>,
    armed: &'a Armed,
    ran: Ran,
}

impl Shot<'_> {
    /// Notes whether the site has fired.
    fn note_fire(&mut self, guest: &Guest) {
        let Some(site) = self.armed.site() else { return };
        self.ran.fired = guest.fail_counts(site).fires > 0;
        self.ran.hit = guest.last_fire().map_or(0, |fire| fire.hit);
    }

    /// Notes something that is not documented.
    fn unexpected(
        &mut self,
        guest: &Guest,
        kind: &'static str,
        line: Option<usize>,
        what: String,
        showed_at: Vec<String>,
    ) {
        let failed_at = guest.last_fire().map_or_else(Vec::new, |fire| named(guest, &fire));
        let hit = self.ran.hit;
        let Item { file, flags, .. } = self.range.item;
        // A run in which nothing has fired is repeated with the first hit.
        let again = |site| Some((site, FailSpec::nth(site, hit.max(1))?));
        let armed =
            self.armed.site().and_then(again).map_or_else(String::new, |(site, spec)| {
                format!(" --fail {}='{spec}'", site.name())
            });
        let repeat = format!("vmkern run {file}{flags}{armed} --check");
        let found = Unexpected { hit, kind, line, what, failed_at, showed_at, repeat };
        self.ran.unexpected.push(found);
    }

    /// The guest did not become ready.
    fn died_in_boot(&mut self, guest: &Guest, error: &LaunchError) {
        self.note_fire(guest);
        match error {
            LaunchError::Guest(GuestError::Interrupted) => self.ran.lost = Some(Lost::Interrupted),
            LaunchError::Guest(GuestError::Crashed(crash)) => {
                self.ran.kind = "panic in the boot".to_owned();
                let is_documented = BOOT_PANICS.iter().any(|text| crash.message.contains(text));
                if !is_documented || !self.ran.fired {
                    let what = format!("panic in the boot: {}", crash.message);
                    self.unexpected(guest, "panic", None, what, calls(crash));
                }
            }
            LaunchError::Guest(GuestError::Timeout { at, .. }) => {
                self.ran.kind = "no progress".to_owned();
                let what = format!("the boot did not end; it was stopped at {at}");
                self.unexpected(guest, "no-progress", None, what, threads(guest));
            }
            LaunchError::Guest(error) => {
                self.ran.kind = "broken".to_owned();
                self.unexpected(guest, "broken", None, error.to_string(), Vec::new());
            }
            error => self.ran.lost = Some(Lost::Short(error.to_string())),
        }
    }

    /// Runs the script, and brings it to its end.
    fn script(&mut self, target: &mut GuestTarget, stop: &Stop) {
        // 1. The script.
        let item = self.range.item;
        let mut watched = Watched::new(target, self.armed.site());
        let ending = run(&item.script, &mut watched, item.seed, stop, &mut |_: &Step| {});
        let Some(guest) = crate::script::Target::guest(&watched) else { return };
        self.note_fire(guest);
        self.ran.note_hits(guest, |hits, now| (hits.end, hits.fires) = (now.hits, now.fires));
        self.ran.kind = match &watched.first {
            Some(first) => rows::kind(&first.ended),
            None if self.ran.fired => "ok".to_owned(),
            None => "no fire".to_owned(),
        };
        // 2. How it ended. A guest that lives is brought to the end that all runs share.
        let lives = self.ended(&watched, &ending);
        if lives {
            guest_of(&watched).inspect(|guest| guest.disarm_all());
            self.wind_up(&mut watched);
        }
        // 3. Results that no row documents.
        let odd = std::mem::take(&mut watched.odd);
        if let Some(guest) = guest_of(&watched) {
            for one in odd {
                self.unexpected(guest, "result", one.line, one.what, Vec::new());
            }
        }
    }

    /// Judges how the script ended. Returns whether the guest lives.
    fn ended(&mut self, watched: &Watched<'_>, ending: &Ending) -> bool {
        let Some(guest) = guest_of(watched) else { return false };
        // 1. Ends that are fine, and those that say nothing of the kernel.
        match ending {
            Ending::Finished => return true,
            Ending::ExpectedPanic(_) => {}
            Ending::Interrupted => self.ran.lost = Some(Lost::Interrupted),
            Ending::Host(failure) => self.ran.lost = Some(Lost::Short(failure.got.clone())),
            // 2. A panic, which a row may document.
            Ending::Panicked(panic, failure) => {
                let last =
                    watched.last.as_ref().filter(|last| matches!(last.ended, Ended::Panic(_)));
                let rule = match last {
                    Some(last) if self.ran.fired => last.broken(),
                    _ => Some("the site has not fired".to_owned()),
                };
                if let Some(rule) = rule {
                    let what = format!("panic: {}: {rule}", panic.message);
                    let line = Some(failure.span.line);
                    self.unexpected(guest, "panic", line, what, panic.backtrace.clone());
                }
            }
            // 3. Everything else is a finding. Before the fire the run is that of the survey.
            Ending::Timeout(failure) => {
                self.ran.kind = "no progress".to_owned();
                let what = format!("no end within {:?}: {}", self.range.limit, failure.got);
                let line = Some(failure.span.line);
                self.unexpected(guest, "no-progress", line, what, threads(guest));
            }
            Ending::Failed(failure) => {
                let what = format!("expected {}, got {}", failure.expected, failure.got);
                let line = Some(failure.span.line);
                self.unexpected(guest, "unlike", line, what, Vec::new());
            }
            Ending::Script(error) => {
                let line = Some(error.span.line);
                self.unexpected(guest, "unlike", line, error.message.clone(), Vec::new());
            }
            Ending::Broken(failure) => {
                let line = Some(failure.span.line);
                self.unexpected(guest, "broken", line, failure.got.clone(), Vec::new());
            }
        }
        false
    }

    /// Frees what the script holds, and compares the counts.
    fn wind_up(&mut self, watched: &mut Watched<'_>) {
        // 1. The end that all runs share.
        let none = Reference::default();
        let reference = self.range.reference.unwrap_or(&none);
        let wound = watched.wind_up();
        let Some(guest) = guest_of(watched) else { return };
        if let Err(why) = wound {
            return self.unwound(guest, why);
        }
        // 2. Threads that sleep, which those of the fault-free run do not.
        let asleep = watched.asleep();
        let woken =
            |thread: &u16| self.range.reference.is_none() || reference.asleep.contains_key(thread);
        let forgotten: Vec<String> = asleep
            .iter()
            .filter(|(thread, _)| !woken(thread))
            .map(|(thread, waits_for)| format!("t{thread} waits for \"{waits_for}\""))
            .collect();
        if !forgotten.is_empty() {
            let what = format!("asleep for ever: {}", forgotten.join(", "));
            self.unexpected(guest, "asleep", None, what, threads(guest));
        }
        // 3. The counts. A thread that sleeps may hold anything.
        match Ledger::of(guest, &watched.holdings.submaps) {
            Err(error) => self.unexpected(guest, "leak", None, error.to_string(), Vec::new()),
            Ok(ledger) => {
                let found = self.leaks(&ledger);
                if asleep == reference.asleep && !found.is_empty() {
                    self.unexpected(guest, "leak", None, found.join("; "), Vec::new());
                }
                self.ran.reference.ledger = Some(ledger);
            }
        }
        self.ran.reference.asleep = asleep;
        // 4. Everything else.
        if self.range.checking == Checking::Full {
            self.check(guest);
        }
    }

    /// The end could not be reached.
    fn unwound(&mut self, guest: &Guest, why: Unwound) {
        match why {
            Unwound::Panicked(panic) => {
                let Panic { message, backtrace, .. } = *panic;
                let what = format!("panic while the sweep frees everything: {message}");
                self.unexpected(guest, "panic", None, what, backtrace);
            }
            Unwound::Lost(TargetError::Interrupted) => self.ran.lost = Some(Lost::Interrupted),
            Unwound::Lost(error) => {
                let what = format!("no end while the sweep frees everything: {error}");
                self.unexpected(guest, "no-progress", None, what, threads(guest));
            }
        }
    }

    /// How the counts differ from those of a fresh guest. A script that frees what is not its own
    /// may leave others: then those of its fault-free run are as good, if that did not panic.
    fn leaks(&self, ledger: &Ledger) -> Vec<String> {
        let of = |then: &Option<Ledger>| then.as_ref().map(|then| then.differences(ledger));
        let reference = self.range.reference.and_then(|reference| of(&reference.ledger));
        match (reference, of(self.range.fresh)) {
            (Some(found), _) if found.is_empty() => Vec::new(),
            (_, Some(found)) | (Some(found), None) => found,
            (None, None) => Vec::new(),
        }
    }

    fn check(&mut self, guest: &Guest) {
        match guest.check() {
            Ok(report) if report.is_clean() => {}
            Ok(report) => {
                let lines = report.to_string().lines().map(str::to_owned).collect();
                self.unexpected(guest, "check", None, report.total(), lines);
            }
            Err(error) => self.unexpected(guest, "check", None, error.to_string(), Vec::new()),
        }
    }
}

fn guest_of<'w>(watched: &'w Watched<'_>) -> Option<&'w Guest> {
    crate::script::Target::guest(watched)
}

/// The calls of a fire, by name.
fn named(guest: &Guest, fire: &LastFire) -> Vec<String> {
    let frames = fire.frames.iter().flat_map(|&at| guest.symbols().frames(at));
    frames.map(|frame| frame.to_string()).collect()
}

/// The calls of a crash, by name.
fn calls(crash: &Crash) -> Vec<String> {
    crash.backtrace.iter().map(ToString::to_string).collect()
}

/// The threads of a guest with their calls, for people.
fn threads(guest: &Guest) -> Vec<String> {
    let seen = guest.inspect("", &What::Threads);
    let text = seen.map_or_else(|error| error.to_string(), |seen| unstyled(&draw(&seen)));
    text.lines().map(str::to_owned).collect()
}
