//! Time: the TSC is the clock, and the APIC's timer only ends a halt.
//!
//! In virtual time the clock stands still except for [`Clock::sleep`], which advances it by the
//! time slept. In real time it follows the TSC. Either way `ticks` is the time since boot, rounded
//! down to `1 / hz` seconds, and each reader computes it ([`ClockBase`]): it needs no interrupt for
//! each tick. The timer fires when something is due: a thread's time-out, or the end of a time
//! slice while other threads wait for the CPU.

use core::sync::atomic::{AtomicU64, Ordering};

use vmkern_abi::boot::{BootArgs, TimeMode};
use vmkern_abi::clock::{self, ClockBase, DEFAULT_HZ};

use super::percpu::{NEVER, PerCpu};
use super::{apic, instr, interrupt};

/// The frequency if the loader does not pass that of the TSC.
const DEFAULT_TSC_KHZ: u64 = 1_000_000;

/// The end of a clock in microseconds: two of the longest ticks before the last time that it can
/// represent, so a sleep until here, rounded up to a tick, ends.
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
    /// The words from which the host computes the time.
    published: Option<&'static ClockBase>,
}

impl Clock {
    /// A clock that starts now. From then on the time can be computed from `published`.
    #[must_use]
    pub fn start(args: &BootArgs, published: Option<&'static ClockBase>) -> Self {
        let tsc_khz = args.tsc_khz.unwrap_or(DEFAULT_TSC_KHZ);
        let hz = args.tunables.kern_hz.unwrap_or(DEFAULT_HZ);
        let start_tsc = instr::rdtsc();
        if let Some(base) = published {
            base.publish(args.time, start_tsc, tsc_khz, hz);
        }
        Self { mode: args.time, start_tsc, tsc_khz, hz, slept: AtomicU64::new(0), published }
    }

    /// Microseconds since boot.
    #[must_use]
    pub fn micros(&self) -> u64 {
        match self.mode {
            TimeMode::Virtual => self.slept.load(Ordering::Relaxed),
            TimeMode::Real => clock::micros(instr::rdtsc() - self.start_tsc, self.tsc_khz),
        }
    }

    /// Microseconds until the end of the clock: a clock at its end would never reach a later tick.
    #[must_use]
    pub fn left(&self) -> u64 {
        END_OF_TIME.saturating_sub(self.micros())
    }

    /// Clock ticks since boot.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        clock::ticks(self.micros(), self.hz)
    }

    /// How the clock moves.
    #[must_use]
    pub fn mode(&self) -> TimeMode {
        self.mode
    }

    /// Ticks to sleep from now until at least `micros` microseconds have passed, at least one. Part
    /// of the present tick is over, so a real clock may need one tick more than a sleep is long
    /// (`tvtohz` adds one for the same reason).
    #[must_use]
    pub fn ticks_for(&self, micros: u64) -> u64 {
        let now = self.micros();
        let end = u128::from(now) + u128::from(micros);
        let tick = (end * u128::from(self.hz)).div_ceil(1_000_000);
        let tick = u64::try_from(tick).unwrap_or(u64::MAX);
        tick.saturating_sub(clock::ticks(now, self.hz)).max(1)
    }

    /// Microseconds from now to the beginning of tick `tick`.
    #[must_use]
    pub fn micros_until(&self, tick: u64) -> u64 {
        let at = (u128::from(tick) * 1_000_000).div_ceil(u128::from(self.hz));
        u64::try_from(at).unwrap_or(u64::MAX).saturating_sub(self.micros())
    }

    /// Length of a time slice in TSC cycles, while others wait for the CPU.
    #[must_use]
    pub fn slice_cycles(&self) -> u64 {
        const MILLISECONDS: u64 = 10;
        MILLISECONDS * self.tsc_khz
    }

    /// The TSC at the beginning of tick `tick` of a real clock.
    #[must_use]
    pub fn tsc_of(&self, tick: u64) -> u64 {
        let cycles =
            (u128::from(tick) * 1000 * u128::from(self.tsc_khz)).div_ceil(u128::from(self.hz));
        u64::try_from(cycles).map_or(NEVER, |cycles| self.start_tsc.saturating_add(cycles))
    }

    /// Spins for `micros` microseconds of real time, whatever the clock's own (`DELAY`).
    pub fn delay(&self, micros: u64) {
        let cycles = u128::from(micros) * u128::from(self.tsc_khz) / 1000;
        let start = instr::rdtsc();
        while u128::from(instr::rdtsc() - start) < cycles {
            core::hint::spin_loop();
        }
    }

    /// Advances a virtual clock to the beginning of tick `tick`, if it is not there yet. A real
    /// clock is not changed.
    pub fn jump_to(&self, tick: u64) {
        if self.mode == TimeMode::Virtual {
            self.pass(self.micros_until(tick));
        }
    }

    /// Advances a virtual clock.
    fn pass(&self, micros: u64) {
        let before = self.slept.load(Ordering::Relaxed);
        // Only the CPU that booted advances the clock, in its idle thread.
        let now = before.saturating_add(micros);
        self.slept.store(now, Ordering::Relaxed);
        if let Some(base) = self.published {
            base.slept.set(now);
        }
    }

    /// Lets `micros` microseconds pass without threads.
    pub fn sleep(&self, micros: u64) {
        match self.mode {
            TimeMode::Virtual => self.pass(micros),
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

/// Sets this CPU's timer to fire when the TSC is `at`, or soon if that is past; within four seconds
/// in any case.
pub fn fire_at(clock: &Clock, at: u64) {
    PerCpu::current().set_timer_at(at);
    let micros = clock::micros(at.saturating_sub(instr::rdtsc()), clock.tsc_khz);
    apic::timer_one_shot(counts(micros + 1));
}

/// Records that this CPU's timer has fired or is stopped: nothing waits for it.
pub fn timer_is_over() {
    PerCpu::current().set_timer_at(NEVER);
}

/// Timer counts in `micros` microseconds, or in the timer's maximum, which is four seconds.
fn counts(micros: u64) -> u32 {
    u32::try_from(micros.saturating_mul(1000) / apic::TIMER_COUNT_NANOS).unwrap_or(u32::MAX).max(1)
}

/// Halts until an interrupt arrives or about `micros` microseconds (at most four seconds) have
/// passed. Does not halt if an interrupt has arrived since
/// [`IdleCpu::arm`](kmem::kern::idle::IdleCpu::arm).
pub fn halt_for(micros: u64) {
    apic::timer_one_shot(counts(micros));
    interrupt::halt();
    apic::timer_one_shot(0);
    timer_is_over();
    PerCpu::current().set_slice_end(NEVER);
}
