//! A schedule as data.

use serde::Serialize;

use crate::guest::Pages;

/// What the numbers of a schedule count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// Microseconds of the guest's clock since the schedule began: steps have `at`.
    Time,
    /// Operations of the guest since the schedule began: steps have `after`.
    Operations,
}

/// How memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The host takes free pages by itself.
    Seize,
    /// The guest is asked to give pages by its balloon.
    Squeeze,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Seize, Self::Squeeze];

    /// The word in a schedule.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seize => "seize",
            Self::Squeeze => "squeeze",
        }
    }
}

/// How much a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// So many pages in total.
    Hold(Pages),
    /// All free pages but these, at the moment at which the step begins.
    Leave(Pages),
}

/// A step: it begins, grows to its target, holds it, and gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// When it begins, in units of [`Schedule::base`].
    pub start: u64,
    /// How it takes memory.
    pub kind: Kind,
    /// How much.
    pub target: Target,
    /// For how long it grows, evenly; 0 for at once.
    pub ramp: u64,
    /// For how long it then holds; `None` until another step of its kind begins, or the end.
    pub hold: Option<u64>,
    /// How often it happens, at least once.
    pub repeat: u64,
    /// For how long nothing is held between two times.
    pub pause: u64,
}

impl Step {
    /// How long one time lasts, with the pause behind it, if it ends by itself.
    #[must_use]
    pub fn period(&self) -> Option<u64> {
        Some(self.ramp.saturating_add(self.hold?).saturating_add(self.pause))
    }

    /// When it has ended for the last time; `None` if only another step ends it.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        let all = self.period()?.saturating_mul(self.repeat);
        Some(self.start.saturating_add(all.saturating_sub(self.pause)))
    }
}

/// The closed loop: between two bounds nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Keep {
    /// Fewer free pages than this: pages are given back.
    pub low: Pages,
    /// More than this: pages are taken.
    pub high: Pages,
    /// How.
    pub kind: Kind,
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Schedule {
    /// What its numbers count.
    pub base: Base,
    /// Its steps, in the order in which they begin. Steps of a kind do not overlap.
    pub steps: Vec<Step>,
    /// Its closed loop.
    pub keep: Option<Keep>,
}

impl Schedule {
    /// Whether it uses the guest's balloon, which a guest has only if that is known before it
    /// boots.
    #[must_use]
    pub fn needs_balloon(&self) -> bool {
        self.steps.iter().any(|step| step.kind == Kind::Squeeze)
            || self.keep.is_some_and(|keep| keep.kind == Kind::Squeeze)
    }
}
