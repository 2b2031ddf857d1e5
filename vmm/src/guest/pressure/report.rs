//! Requests for memory and their results, in numbers.

use std::fmt;

use serde::Serialize;
use vmkern_abi::addr::PAGE_SIZE;

/// A number of pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Pages(pub u64);

impl Pages {
    /// More than any guest has: all that there are.
    pub const ALL: Self = Self(u64::MAX);

    /// As many whole pages as `bytes` bytes touch.
    #[must_use]
    pub const fn holding(bytes: u64) -> Self {
        Self(bytes.div_ceil(PAGE_SIZE))
    }

    /// Their bytes; saturates.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE)
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 page"),
            pages => write!(f, "{pages} pages"),
        }
    }
}

/// How much to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PressureTarget {
    /// This many more.
    More(Pages),
    /// All free pages but this many: `v_free_count` afterwards, CPUs' caches included.
    Leave(Pages),
}

/// Why less was taken than was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Refusal {
    /// No more pages were free: the guest uses the rest.
    NotFree,
    /// The guest's structures are damaged: says where.
    Damaged(String),
    /// The balloon's driver says that it cannot go on, and why.
    Driver(&'static str),
    /// The guest has no driver for the balloon.
    NoDriver,
    /// The driver did not answer in the guest's time.
    Silent,
    /// The driver has not reached the target, and nothing in the guest runs any more.
    AtRest,
    /// The pages were taken, but the host's kernel did not take all memory back: says why.
    NotDiscarded(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFree => f.write_str("no more pages were free"),
            Self::Driver(why) => f.write_str(why),
            Self::NoDriver => f.write_str("the guest has no driver for the balloon"),
            Self::Silent => f.write_str("the driver did not answer in time"),
            Self::AtRest => f.write_str("the driver stopped without a word"),
            Self::Damaged(how) => write!(f, "the guest's structures make no sense: {how}"),
            Self::NotDiscarded(why) => write!(f, "the host did not take the memory back: {why}"),
        }
    }
}

/// What came of a request. The numbers have different sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PressureReport {
    /// Pages asked for, by the request.
    pub asked: Pages,
    /// Pages taken, by the guest's structures.
    pub taken: Pages,
    /// Pages that are seized now, by the guest's structures.
    pub held: Pages,
    /// Pages by which the host's own account of the guest's memory fell. Those that were never
    /// touched took no memory of the host, and what other threads of the guest touched meanwhile is
    /// in the account, too.
    pub back: Pages,
    /// Why fewer were taken than asked for, if so.
    pub refused: Option<Refusal>,
}
