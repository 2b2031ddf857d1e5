//! The time, computed by each reader.
//!
//! The kernel publishes a base ([`ClockBase`]) once. In virtual time it also publishes the
//! microseconds that have passed, whenever they change. Everything else follows from these: no word
//! has to be written at each tick, so the time is right without an interrupt for each tick. The
//! kernel and the host compute with the same functions.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::boot::TimeMode;
use crate::field::{Field, Flag};

/// Ticks a second unless `kern.hz` says otherwise (`HZ` on amd64).
pub const DEFAULT_HZ: u64 = 1000;

/// The base from which the time since boot follows. All zero while the kernel has no clock yet.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ClockBase {
    /// The TSC at boot.
    pub start_tsc: Field<u64>,
    /// Frequency of the TSC. 0 while there is no clock.
    pub tsc_khz: Field<u64>,
    /// Ticks a second.
    pub hz: Field<u64>,
    /// Set when the clock follows the TSC; clear when it advances by the time slept.
    pub is_real: Field<Flag<u64>>,
    /// Microseconds slept in virtual time.
    pub slept: Field<u64>,
}

impl ClockBase {
    /// Publishes a clock that starts at `start_tsc`.
    pub fn publish(&self, mode: TimeMode, start_tsc: u64, tsc_khz: u64, hz: u64) {
        self.start_tsc.set(start_tsc);
        self.is_real.set((mode == TimeMode::Real).into());
        self.hz.set(hz);
        self.tsc_khz.set(tsc_khz);
    }

    /// Microseconds since boot when the TSC is `tsc`; virtual time does not depend on it. `None`
    /// while there is no clock.
    #[must_use]
    pub fn micros_at(&self, tsc: u64) -> Option<u64> {
        let khz = self.tsc_khz.get();
        if khz == 0 {
            return None;
        }
        Some(if self.is_real.is_set() {
            micros(tsc.saturating_sub(self.start_tsc.get()), khz)
        } else {
            self.slept.get()
        })
    }

    /// Clock ticks since boot when the TSC is `tsc`. `None` while there is no clock.
    #[must_use]
    pub fn ticks_at(&self, tsc: u64) -> Option<u64> {
        self.micros_at(tsc).map(|micros| ticks(micros, self.hz.get()))
    }
}

/// The duration of `cycles` of a TSC of `khz` (not 0) in microseconds, rounded down.
#[must_use]
pub fn micros(cycles: u64, khz: u64) -> u64 {
    u64::try_from(u128::from(cycles) * 1000 / u128::from(khz)).unwrap_or(u64::MAX)
}

/// Ticks in `micros` microseconds at `hz` ticks a second, rounded down.
#[must_use]
pub fn ticks(micros: u64, hz: u64) -> u64 {
    u64::try_from(u128::from(micros) * u128::from(hz) / 1_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(mode: TimeMode, hz: u64) -> ClockBase {
        let base = ClockBase::default();
        base.publish(mode, 1_000_000, 2_000_000, hz);
        base
    }

    #[test]
    fn real_time_follows_the_tsc_and_virtual_time_what_was_slept() {
        let real = base(TimeMode::Real, 1000);
        // 2 GHz: 2,000 cycles a microsecond.
        let at = |tsc| (real.micros_at(tsc), real.ticks_at(tsc));
        assert_eq!(at(1_000_000), (Some(0), Some(0)));
        assert_eq!(at(1_000_000 + 2_999_999), (Some(1499), Some(1)));
        assert_eq!(at(1_000_000 + 3_000_000_000), (Some(1_500_000), Some(1500)));
        let still = base(TimeMode::Virtual, 100);
        still.slept.set(2_500_000);
        assert_eq!((still.micros_at(u64::MAX), still.ticks_at(0)), (Some(2_500_000), Some(250)));
    }

    #[test]
    fn no_base_is_no_time_and_a_wild_one_no_overflow() {
        assert_eq!(ClockBase::default().ticks_at(5), None);
        let wild = base(TimeMode::Real, u64::MAX);
        wild.tsc_khz.set(1);
        assert_eq!(wild.micros_at(0), Some(0), "a TSC before the boot's");
        assert_eq!(
            (wild.micros_at(u64::MAX), wild.ticks_at(u64::MAX)),
            (Some(u64::MAX), Some(u64::MAX))
        );
    }
}
