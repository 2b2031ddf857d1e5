//! Time: the TSC says what time it is, the APIC's timer only ends a halt.
//!
//! In virtual time the clock stands still but for [`Clock::sleep`], which moves it on by the time slept. In real time it
//! follows the TSC. Either way `ticks` is the time since boot, cut to `1 / hz` seconds.

use core::sync::atomic::{AtomicU64, Ordering};

use vmkern_abi::boot::{BootArgs, TimeMode};

use super::percpu::PerCpu;
use super::{apic, instr, interrupt};

/// Where the loader does not tell the TSC's frequency.
const DEFAULT_TSC_KHZ: u64 = 1_000_000;

/// Ticks a second unless `kern.hz` says otherwise.
const DEFAULT_HZ: u64 = 100;

/// Where a clock comes to its end, in microseconds: two of the longest ticks before the last that it can tell, so that a
/// sleep up to here, rounded up to a tick, ends.
const END_OF_TIME: u64 = u64::MAX - 2_000_000;

/// The kernel's clock.
#[derive(Debug)]
pub struct Clock {
    mode: TimeMode,
    start_tsc: u64,
    tsc_khz: u64,
    hz: u64,
    /// Microseconds slept in virtual time.
    slept: AtomicU64,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start(args: &BootArgs) -> Self {
        let tsc_khz = args.tsc_khz.unwrap_or(DEFAULT_TSC_KHZ);
        let hz = args.tunables.kern_hz.unwrap_or(DEFAULT_HZ);
        Self { mode: args.time, start_tsc: instr::rdtsc(), tsc_khz, hz, slept: AtomicU64::new(0) }
    }

    /// Microseconds since boot.
    #[must_use]
    pub fn micros(&self) -> u64 {
        match self.mode {
            TimeMode::Virtual => self.slept.load(Ordering::Relaxed),
            TimeMode::Real => {
                let cycles = u128::from(instr::rdtsc() - self.start_tsc);
                u64::try_from(cycles * 1000 / u128::from(self.tsc_khz)).unwrap_or(u64::MAX)
            }
        }
    }

    /// How many microseconds the clock can go on: one that stood at its end would never come to a later tick.
    #[must_use]
    pub fn left(&self) -> u64 {
        END_OF_TIME.saturating_sub(self.micros())
    }

    /// Clock ticks since boot.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        let ticks = u128::from(self.micros()) * u128::from(self.hz) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// How the clock moves.
    #[must_use]
    pub fn mode(&self) -> TimeMode {
        self.mode
    }

    /// Ticks that `micros` microseconds last, rounded up, at least one.
    #[must_use]
    pub fn ticks_of(&self, micros: u64) -> u64 {
        let ticks = (u128::from(micros) * u128::from(self.hz)).div_ceil(1_000_000);
        u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
    }

    /// Microseconds from now to the beginning of tick `tick`.
    #[must_use]
    pub fn micros_until(&self, tick: u64) -> u64 {
        let at = (u128::from(tick) * 1_000_000).div_ceil(u128::from(self.hz));
        u64::try_from(at).unwrap_or(u64::MAX).saturating_sub(self.micros())
    }

    /// Moves a virtual clock on to the beginning of tick `tick`, if it is not there yet. A real clock is not moved.
    pub fn jump_to(&self, tick: u64) {
        self.slept
            .fetch_add(if self.mode == TimeMode::Virtual { self.micros_until(tick) } else { 0 }, Ordering::Relaxed);
    }

    /// Lets `micros` microseconds pass without threads.
    pub fn sleep(&self, micros: u64) {
        match self.mode {
            TimeMode::Virtual => {
                let _ =
                    self.slept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |s| Some(s.saturating_add(micros)));
            }
            TimeMode::Real => {
                let end = self.micros().saturating_add(micros);
                loop {
                    let left = end.saturating_sub(self.micros());
                    if left == 0 {
                        break;
                    }
                    PerCpu::current().idle().arm();
                    halt_for(left);
                }
            }
        }
    }
}

/// Has the timer fire once, `1 / hz` seconds from now.
pub fn start_slice(clock: &Clock) {
    let nanos = 1_000_000_000 / clock.hz.clamp(1, 1_000_000_000);
    apic::timer_one_shot(u32::try_from(nanos / apic::TIMER_COUNT_NANOS).unwrap_or(u32::MAX));
}

/// Halts until an interrupt comes or about `micros` microseconds (at most one second) have passed. Not at all when one has
/// come since [`IdleCpu::arm`](kmem::kern::idle::IdleCpu::arm).
pub fn halt_for(micros: u64) {
    const SECOND: u64 = 1_000_000;
    let nanos = micros.clamp(1, SECOND) * 1000;
    apic::timer_one_shot(u32::try_from(nanos / apic::TIMER_COUNT_NANOS).expect("a second's nanoseconds fit"));
    interrupt::halt();
    apic::timer_one_shot(0);
}
