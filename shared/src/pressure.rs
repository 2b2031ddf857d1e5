//! Stalls on memory as Linux's PSI (`kernel/sched/psi.c`) defines and averages them.
//!
//! A thread is *stalled* while it sleeps for one of the reasons of [`StallCause`]. At any moment
//! the system is in one of the states of [`Stalls`]. Each of the two lines, `some` and `full`, has
//! a total in microseconds and averages over 10 and 60 seconds.
//!
//! **Averages.** Time is cut into periods of two seconds, counted from the boot. When a period ends
//! its share of stalled time enters the averages: `avg = avg * e + share * (1 - e)`, where `e` is
//! `exp(-2 s / window)`. Linux does this in a timer; here nobody has to be awake for it. Between
//! two changes of the state every whole period has the share 0 or 1, so [`StallLine::advance`]
//! computes any number of them at once. The kernel calls it when the state changes, a reader for
//! the time since then, and both get what a timer would have got.

use crate::kmem::WaitMessage;

macro_rules! causes {
    ($($(#[$doc:meta])* $cause:ident = $name:literal,)+) => {
        /// Why a thread sleeps for memory: the wait message of its sleep.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum StallCause {
            $($(#[$doc])* $cause,)+
        }

        impl StallCause {
            /// All of them; [`StallCause::index`] is the position.
            pub const ALL: [Self; STALL_CAUSES] = [$(Self::$cause,)+];

            /// The wait message.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$cause => $name,)+
                }
            }
        }
    };
}

/// Number of causes.
pub const STALL_CAUSES: usize = 6;

causes! {
    /// Free pages.
    Vmwait = "vmwait",
    /// Free pages, in a page fault.
    Pfault = "pfault",
    /// Address space of kmem_map.
    Nokva = "nokva",
    /// Room in a map, or the end of a wiring there.
    Vmmaps = "vmmaps",
    /// A page that another thread works on, in a page fault.
    Vmpfw = "vmpfw",
    /// An item of a zone that is at its limit.
    Zonelimit = "zonelimit",
}

impl StallCause {
    /// The cause behind a wait message, if a thread with that message sleeps for memory.
    #[must_use]
    pub fn of(message: WaitMessage) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| WaitMessage::new(cause.name()) == message)
    }

    /// Its position in [`StallCause::ALL`], and in arrays by cause.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The state of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stalls {
    /// No thread is stalled.
    None,
    /// At least one thread is stalled, and another works.
    Some,
    /// At least one thread is stalled, and no thread works.
    Full,
}

impl Stalls {
    /// The state with so many stalled and working threads.
    #[must_use]
    pub const fn of(stalled: u32, working: u32) -> Self {
        match (stalled, working) {
            (0, _) => Self::None,
            (_, 0) => Self::Full,
            _ => Self::Some,
        }
    }
}

/// Microseconds of a period (`PSI_FREQ`).
pub const PERIOD: u64 = 2_000_000;

/// An average of 1: stalled all the time (`FIXED_1`, with more bits).
pub const WHOLE: u64 = 1 << 31;

/// `exp(-2/10)` in units of `1 / WHOLE` (`EXP_10s`).
const EXP_10S: u64 = 1_758_210_904;
/// `exp(-2/60)` (`EXP_60s`).
const EXP_60S: u64 = 2_077_080_760;

/// One of the lines `some` and `full`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallLine {
    /// Microseconds in all.
    pub total: u64,
    /// Of these, microseconds within the present period.
    pub sampled: u64,
    /// Average over 10 seconds, in units of `1 / WHOLE`.
    pub avg10: u64,
    /// Average over 60 seconds.
    pub avg60: u64,
}

/// Whether a line's state lasts during a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// It does not.
    No,
    /// It does.
    Yes,
}

impl Lasts {
    const fn within(self, micros: u64) -> u64 {
        match self {
            Self::No => 0,
            Self::Yes => micros,
        }
    }
}

impl StallLine {
    /// The line at time `to`, if `self` is the line at time `from`, and the state has lasted, or
    /// not, all the time in between. Nothing changes if `to` is not later.
    #[must_use]
    pub fn advance(self, from: u64, to: u64, lasts: Lasts) -> Self {
        let Some(passed) = to.checked_sub(from) else { return self };
        let total = self.total.saturating_add(lasts.within(passed));
        // 1. Within the same period only the sample grows.
        let (first, last) = (from / PERIOD, to / PERIOD);
        if first == last {
            let sampled = self.sampled.saturating_add(lasts.within(passed));
            return Self { total, sampled, ..self };
        }
        // 2. The rest of the period of `from`; then whole periods, all alike; then a new period.
        let rest = PERIOD - from % PERIOD;
        let sampled = self.sampled.saturating_add(lasts.within(rest)).min(PERIOD);
        let share = sampled * WHOLE / PERIOD;
        let average = |avg: u64, exp: u64| {
            let ended = decay(avg.min(WHOLE), share, exp);
            decay(ended, lasts.within(WHOLE), power(exp, last - first - 1))
        };
        Self {
            total,
            sampled: lasts.within(to % PERIOD),
            avg10: average(self.avg10, EXP_10S),
            avg60: average(self.avg60, EXP_60S),
        }
    }
}

/// The average after `avg` when `share` enters with weight `1 - exp` (`calc_load`). None of the
/// three is above [`WHOLE`].
const fn decay(avg: u64, share: u64, exp: u64) -> u64 {
    (avg * exp + share * (WHOLE - exp) + WHOLE / 2) / WHOLE
}

/// `exp` to the power of `n` (`fixed_power_int`).
const fn power(mut exp: u64, mut n: u64) -> u64 {
    let mut result = WHOLE;
    while n != 0 {
        if n & 1 != 0 {
            result = (result * exp + WHOLE / 2) / WHOLE;
        }
        exp = (exp * exp + WHOLE / 2) / WHOLE;
        n >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Hundredths of a percent.
    fn percent(avg: u64) -> u64 {
        (avg * 10_000 + WHOLE / 2) / WHOLE
    }

    fn averages(line: StallLine) -> (u64, u64) {
        (percent(line.avg10), percent(line.avg60))
    }

    #[test]
    fn a_cause_is_found_by_its_wait_message_and_other_sleeps_are_not_stalls() {
        for cause in StallCause::ALL {
            assert_eq!(StallCause::of(WaitMessage::new(cause.name())), Some(cause));
            assert_eq!(StallCause::ALL[cause.index()], cause);
        }
        for other in ["VMWait", "request", "psleep", "vmopar", ""] {
            assert_eq!(StallCause::of(WaitMessage::new(other)), None, "{other}");
        }
    }

    #[test]
    fn the_state_is_full_only_when_no_thread_works() {
        assert_eq!(Stalls::of(0, 0), Stalls::None);
        assert_eq!(Stalls::of(0, 3), Stalls::None);
        assert_eq!(Stalls::of(1, 3), Stalls::Some);
        assert_eq!(Stalls::of(2, 0), Stalls::Full);
    }

    #[test]
    fn averages_after_a_stall_of_10_and_60_seconds_are_those_of_the_exponential() {
        // 1 - 1/e, and 1 - exp(-1/6).
        let line = StallLine::default().advance(0, 10 * SECOND, Lasts::Yes);
        assert_eq!((line.total, averages(line)), (10 * SECOND, (6321, 1535)));
        // 1 - exp(-6), and 1 - 1/e.
        let line = StallLine::default().advance(0, 60 * SECOND, Lasts::Yes);
        assert_eq!((line.total, averages(line)), (60 * SECOND, (9975, 6321)));
        // They fade as they grew.
        let line = line.advance(60 * SECOND, 120 * SECOND, Lasts::No);
        assert_eq!((line.total, averages(line)), (60 * SECOND, (25, 2325)));
    }

    #[test]
    fn a_period_that_has_not_ended_is_in_the_total_and_not_in_the_averages() {
        let line = StallLine::default().advance(0, PERIOD - 1, Lasts::Yes);
        assert_eq!((line.total, line.sampled, averages(line)), (PERIOD - 1, PERIOD - 1, (0, 0)));
        let line = line.advance(PERIOD - 1, PERIOD, Lasts::Yes);
        // 1 - exp(-1/5), and 1 - exp(-1/30).
        assert_eq!((line.total, line.sampled, averages(line)), (PERIOD, 0, (1813, 328)));
    }

    #[test]
    fn half_a_period_counts_half() {
        let line = StallLine::default().advance(0, SECOND, Lasts::Yes);
        let line = line.advance(SECOND, PERIOD, Lasts::No);
        assert_eq!((line.total, averages(line)), (SECOND, (906, 164)));
    }

    #[test]
    fn one_step_over_many_periods_gives_what_a_step_at_each_period_gives() {
        for lasts in [Lasts::Yes, Lasts::No] {
            let start = StallLine { total: 7, sampled: 5, avg10: WHOLE / 3, avg60: WHOLE / 7 };
            let (from, to) = (3_700_000, 3_700_000 + 311 * PERIOD / 7);
            let leap = start.advance(from, to, lasts);
            let (mut steps, mut at) = (start, from);
            while at < to {
                let next = (at + 100_000).min(to);
                steps = steps.advance(at, next, lasts);
                at = next;
            }
            assert_eq!((leap.total, leap.sampled), (steps.total, steps.sampled));
            for (leap, steps) in [(leap.avg10, steps.avg10), (leap.avg60, steps.avg60)] {
                assert!(leap.abs_diff(steps) < 64, "{leap} and {steps}: more than rounding");
            }
        }
    }

    #[test]
    fn wild_values_and_a_clock_that_goes_back_do_not_overflow() {
        let wild = StallLine { total: u64::MAX, sampled: u64::MAX, avg10: u64::MAX, avg60: 1 };
        let line = wild.advance(0, u64::MAX, Lasts::Yes);
        assert!(line.avg10 <= WHOLE && line.avg60 <= WHOLE, "{line:?}");
        assert_eq!(wild.advance(5, 4, Lasts::Yes), wild);
    }
}
