//! The kernel's account of stalls on memory ([`crate::pressure`]).

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::field::Field;
use crate::pressure::{Lasts, STALL_CAUSES, StallLine, Stalls};

/// A [`StallLine`] in the kernel's memory.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PressureLine {
    /// Microseconds in all.
    pub total: Field<u64>,
    /// Of these, microseconds within the period of [`Pressure::since`].
    pub sampled: Field<u64>,
    /// Average over 10 seconds, in units of `1 / WHOLE` ([`crate::pressure::WHOLE`]).
    pub avg10: Field<u64>,
    /// Average over 60 seconds, in the same unit.
    pub avg60: Field<u64>,
}

impl PressureLine {
    /// Its values.
    #[must_use]
    pub fn get(&self) -> StallLine {
        StallLine {
            total: self.total.get(),
            sampled: self.sampled.get(),
            avg10: self.avg10.get(),
            avg60: self.avg60.get(),
        }
    }

    fn set(&self, line: StallLine) {
        self.total.set(line.total);
        self.sampled.set(line.sampled);
        self.avg10.set(line.avg10);
        self.avg60.set(line.avg60);
    }
}

/// Stalls of all threads. Guarded by [`super::Scheduler::lock`].
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Pressure {
    /// Threads that sleep for memory.
    pub stalled: Field<u32>,
    /// Threads that work: they run or can run, and are neither idle threads nor the kernel's own
    /// daemons, the pagedaemon and pagezero.
    pub working: Field<u32>,
    /// The time, in microseconds since boot, until which the lines are accounted: that of the last
    /// change of the state.
    pub since: Field<u64>,
    /// At least one thread is stalled.
    pub some: PressureLine,
    /// At least one thread is stalled, and none works.
    pub full: PressureLine,
    /// Microseconds of the sleeps that have ended, of all threads together, by cause.
    pub micros: [Field<u64>; STALL_CAUSES],
}

const _: () = assert!(size_of::<Pressure>() == 128);

impl Pressure {
    /// The state now.
    #[must_use]
    pub fn stalls(&self) -> Stalls {
        Stalls::of(self.stalled.get(), self.working.get())
    }

    /// The lines `some` and `full` at `now`, if the state has been `stalls` since the last change.
    #[must_use]
    pub fn lines(&self, stalls: Stalls, now: u64) -> [StallLine; 2] {
        [(&self.some, Stalls::Some), (&self.full, Stalls::Full)].map(|(line, least)| {
            let lasts = if stalls >= least { Lasts::Yes } else { Lasts::No };
            line.get().advance(self.since.get(), now, lasts)
        })
    }

    /// Brings the account to `now`, until which the state has been `stalls`. A time before the last
    /// change, from another CPU's clock, is taken for that of the change.
    pub fn account(&self, stalls: Stalls, now: u64) {
        let [some, full] = self.lines(stalls, now);
        self.some.set(some);
        self.full.set(full);
        self.since.set(now.max(self.since.get()));
    }
}
