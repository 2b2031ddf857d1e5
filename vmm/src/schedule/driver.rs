//! Carrying out a schedule.

use serde::Serialize;

use super::keep::{Corrected, Left, Loop};
use super::model::{Base, Kind, Schedule, Step, Target};
use crate::guest::Pages;

/// Most events that are kept.
const EVENTS_MAX: usize = 10_000;
/// A ramp is climbed in at least this many pieces, if somebody polls so often.
const PIECES: u64 = 64;
/// Microseconds between two polls of the closed loop in real time.
const LOOK_EVERY: u64 = 10_000;

/// Something that memory can be taken from. An error is a reason in words; nothing was moved then.
pub trait Squeeze {
    /// Takes so many free pages more, or as many as are free. Returns how many.
    ///
    /// # Errors
    /// Why none can be taken.
    fn seize(&mut self, more: Pages) -> Result<Pages, String>;

    /// Gives so many seized pages back, or all if there are fewer. Returns how many.
    ///
    /// # Errors
    /// Why none can be given back.
    fn release(&mut self, pages: Pages) -> Result<Pages, String>;

    /// Asks for so many pages in the balloon in total. Returns how many there are when the guest
    /// has done what it can.
    ///
    /// # Errors
    /// Why the balloon cannot be asked.
    fn squeeze(&mut self, total: Pages) -> Result<Pages, String>;

    /// Free pages.
    ///
    /// # Errors
    /// Why they cannot be counted.
    fn free_pages(&mut self) -> Result<Pages, String>;
}

/// A moment of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// Microseconds of the guest's clock since its boot.
    pub micros: u64,
    /// Operations that the guest has done.
    pub operations: u64,
}

/// What a schedule did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
#[non_exhaustive]
pub enum Happened {
    /// Pages were taken, or fewer than were asked for.
    Took {
        /// How.
        kind: Kind,
        /// Pages asked for.
        asked: Pages,
        /// Pages taken.
        taken: Pages,
    },
    /// Pages were given back.
    GaveBack {
        /// How they had been taken.
        kind: Kind,
        /// Pages.
        pages: Pages,
    },
    /// Nothing was moved.
    Refused {
        /// How.
        kind: Kind,
        /// Why.
        why: String,
    },
    /// The closed loop gave up.
    Left {
        /// Why.
        why: String,
    },
}

/// What happened, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    #[serde(flatten)]
    pub at: Moment,
    /// What.
    #[serde(flatten)]
    pub what: Happened,
}

/// What the steps of a kind hold.
#[derive(Debug)]
struct Hold {
    kind: Kind,
    held: Pages,
    /// The amount of the last poll. While it is the same, nothing is tried again.
    wanted: Pages,
    /// For a target that depends on the free pages: of which step and time it is the amount.
    goal: Option<(usize, u64, Pages)>,
}

/// Carries a schedule out.
#[derive(Debug)]
pub struct Driver {
    schedule: Schedule,
    began: Option<Moment>,
    holds: [Hold; 2],
    keep: Option<Loop>,
    /// Pages that the closed loop holds.
    kept: Pages,
    events: Vec<Event>,
}

impl Driver {
    /// A driver that has done nothing. The schedule begins at the first poll.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        let hold = |kind| Hold { kind, held: Pages(0), wanted: Pages(0), goal: None };
        let keep = schedule.keep.map(Loop::new);
        let (holds, kept) = (Kind::ALL.map(hold), Pages(0));
        Self { schedule, began: None, holds, keep, kept, events: Vec::new() }
    }

    /// What happened so far; at most 10,000 events.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Pages that are held.
    #[must_use]
    pub fn held(&self) -> Pages {
        Pages(self.holds.iter().map(|hold| hold.held.0).sum::<u64>() + self.kept.0)
    }

    /// Does what the schedule says for `now`.
    pub fn poll(&mut self, now: Moment, guest: &mut dyn Squeeze) {
        // 1. The steps.
        let began = *self.began.get_or_insert(now);
        let at = match self.schedule.base {
            Base::Time => now.micros.saturating_sub(began.micros),
            Base::Operations => now.operations.saturating_sub(began.operations),
        };
        for number in 0..self.holds.len() {
            let wanted = match self.wanted(number, at, guest) {
                Ok(wanted) => wanted,
                Err(why) => {
                    let kind = self.holds[number].kind;
                    self.note(now, Happened::Refused { kind, why });
                    continue;
                }
            };
            if wanted != self.holds[number].wanted {
                self.holds[number].wanted = wanted;
                self.bring(number, wanted, now, guest);
            }
        }
        // 2. The closed loop corrects what they leave.
        self.correct(now, guest);
    }

    /// Gives everything back: the schedule has ended.
    pub fn end(&mut self, now: Moment, guest: &mut dyn Squeeze) {
        for number in 0..self.holds.len() {
            self.holds[number].wanted = Pages(0);
            self.bring(number, Pages(0), now, guest);
        }
        let kept = std::mem::take(&mut self.kept);
        if let Some(keep) = self.schedule.keep
            && kept != Pages(0)
        {
            let given = match keep.kind {
                Kind::Seize => guest.release(kept),
                Kind::Squeeze => guest.squeeze(Pages(0)).map(|left| Pages(kept.0 - left.0)),
            };
            self.gave_back(keep.kind, given, now);
        }
        self.keep = None;
    }

    /// Microseconds from `now` until something is to be done though the guest does nothing; for
    /// runs in real time.
    #[must_use]
    pub fn next_due(&self, now: Moment) -> Option<u64> {
        let look = self.keep.as_ref().filter(|keep| !keep.has_left()).map(|_| LOOK_EVERY);
        let Some(began) = self.began.filter(|_| self.schedule.base == Base::Time) else {
            return look;
        };
        let at = now.micros.saturating_sub(began.micros);
        let steps = self.schedule.steps.iter().filter_map(|step| step.next_change(at));
        steps.map(|change| change - at).chain(look).min()
    }

    /// Pages that the steps of a kind should hold at `at`.
    fn wanted(&mut self, number: usize, at: u64, guest: &mut dyn Squeeze) -> Result<Pages, String> {
        let hold = &mut self.holds[number];
        let mut steps = self.schedule.steps.iter().enumerate();
        let last = steps.rfind(|(_, step)| step.kind == hold.kind && step.start <= at);
        let Some((index, step)) = last else { return Ok(Pages(0)) };
        let Some((time, part)) = step.part(at) else { return Ok(Pages(0)) };
        let goal = match step.target {
            Target::Hold(pages) => pages,
            Target::Leave(left) => match hold.goal {
                Some((of, again, pages)) if (of, again) == (index, time) => pages,
                _ => {
                    let free = guest.free_pages()?;
                    let pages = Pages((free.0 + hold.held.0).saturating_sub(left.0));
                    hold.goal = Some((index, time, pages));
                    pages
                }
            },
        };
        Ok(part.of(goal))
    }

    /// Brings what the steps of a kind hold to `wanted`, as far as the guest allows.
    fn bring(&mut self, number: usize, wanted: Pages, now: Moment, guest: &mut dyn Squeeze) {
        let Hold { kind, held, .. } = self.holds[number];
        if wanted == held {
            return;
        }
        // 1. Less is given back.
        let after = if wanted < held {
            let pages = Pages(held.0 - wanted.0);
            let given = match kind {
                Kind::Seize => guest.release(pages),
                Kind::Squeeze => {
                    guest.squeeze(wanted).map(|now| Pages(held.0.saturating_sub(now.0)))
                }
            };
            Pages(held.0.saturating_sub(self.gave_back(kind, given, now).0))
        } else {
            // 2. More is taken.
            let asked = Pages(wanted.0 - held.0);
            let taken = match kind {
                Kind::Seize => guest.seize(asked),
                Kind::Squeeze => {
                    guest.squeeze(wanted).map(|now| Pages(now.0.saturating_sub(held.0)))
                }
            };
            Pages(held.0.saturating_add(self.took(kind, asked, taken, now).0))
        };
        self.holds[number].held = after;
    }

    fn correct(&mut self, now: Moment, guest: &mut dyn Squeeze) {
        let (Some(keep), Some(state)) = (self.schedule.keep, &mut self.keep) else { return };
        let what = match state.poll(now, self.kept, guest) {
            Ok(Corrected::No) => return,
            Ok(Corrected::By(by)) => {
                let pages = Pages(by.unsigned_abs());
                self.kept = Pages(self.kept.0.saturating_add_signed(by));
                match by {
                    0.. => Happened::Took { kind: keep.kind, asked: pages, taken: pages },
                    _ => Happened::GaveBack { kind: keep.kind, pages },
                }
            }
            Ok(Corrected::Left(Left { why })) => Happened::Left { why },
            Err(why) => {
                self.keep = None;
                Happened::Left { why }
            }
        };
        self.note(now, what);
    }

    fn took(
        &mut self,
        kind: Kind,
        asked: Pages,
        taken: Result<Pages, String>,
        now: Moment,
    ) -> Pages {
        let (taken, what) = match taken {
            Ok(taken) => (taken, Happened::Took { kind, asked, taken }),
            Err(why) => (Pages(0), Happened::Refused { kind, why }),
        };
        self.note(now, what);
        taken
    }

    fn gave_back(&mut self, kind: Kind, given: Result<Pages, String>, now: Moment) -> Pages {
        let (pages, what) = match given {
            Ok(pages) => (pages, Happened::GaveBack { kind, pages }),
            Err(why) => (Pages(0), Happened::Refused { kind, why }),
        };
        self.note(now, what);
        pages
    }

    fn note(&mut self, at: Moment, what: Happened) {
        if self.events.len() < EVENTS_MAX {
            self.events.push(Event { at, what });
        }
    }
}

/// A part of a step's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    part: u64,
    of: u64,
}

impl Part {
    const ALL: Self = Self { part: 1, of: 1 };

    fn of(self, Pages(pages): Pages) -> Pages {
        let part = u128::from(pages) * u128::from(self.part) / u128::from(self.of.max(1));
        Pages(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

impl Step {
    /// For the moment `at`, not before the step begins: which time it is, from 0, and how much of
    /// the target is held. `None` between two times, and after the last.
    fn part(&self, at: u64) -> Option<(u64, Part)> {
        let passed = at.checked_sub(self.start)?;
        let (time, within) = match self.period() {
            None => (0, passed),
            Some(0) => return None,
            Some(period) => (passed / period, passed % period),
        };
        let lasts = self.ramp.saturating_add(self.hold.unwrap_or(u64::MAX));
        if time >= self.repeat || within >= lasts {
            return None;
        }
        let climbs = within < self.ramp;
        Some((time, if climbs { Part { part: within, of: self.ramp } } else { Part::ALL }))
    }

    /// The next moment after `at` at which another amount is to be held.
    fn next_change(&self, at: u64) -> Option<u64> {
        if at < self.start {
            return Some(self.start);
        }
        let (passed, period) = (at - self.start, self.period());
        let (time, within) = match period {
            None => (0, passed),
            Some(0) => return None,
            Some(period) => (passed / period, passed % period),
        };
        if time >= self.repeat {
            return None;
        }
        let begin = at - within;
        let piece = (self.ramp / PIECES).max(1);
        let changes = [
            (within < self.ramp).then(|| at.saturating_add(piece).min(begin + self.ramp)),
            self.hold.map(|hold| begin.saturating_add(self.ramp).saturating_add(hold)),
            period.map(|period| begin.saturating_add(period)),
        ];
        changes.into_iter().flatten().filter(|&change| change > at).min()
    }
}
