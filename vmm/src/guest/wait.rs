//! Waiting for the guest: first by polling, then asleep.
//!
//! A sleep costs the guest a doorbell (an exit to the VMM) and the host a wake-up; by then the
//! guest, which got no request in the meantime, sleeps too, and the next request costs an
//! interrupt: some 300 us in total on software KVM. Polling uses a CPU that other work may need. So
//! the host polls for about as long as a sleep would cost, and for less if polling has been in
//! vain: the budget halves with each sleep that proved long, and doubles with each that a little
//! more polling would have avoided. If the vCPU's thread waits for the CPU on which the host polls,
//! the host sleeps at once, and does not change the budget.

use std::sync::OnceLock;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use super::link::Link;
use crate::kvm::bell::Bell;
use crate::kvm::crew::Crew;

/// The least time to poll before a sleep.
const BUDGET_MIN: Duration = Duration::from_micros(4);
/// The most time to poll before a sleep.
const BUDGET_MAX: Duration = Duration::from_micros(400);
/// How long to poll before the host yields between polls. Never within [`BUDGET_MAX`]: a thread
/// that yields to a process that only computes waits for a whole time slice, milliseconds, although
/// the answer comes in microseconds.
const UNDISTURBED: Duration = BUDGET_MAX;
/// How many polls are made between two readings of the clock.
const LOOKS: u32 = 32;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The awaited event has happened, or the guest has ended.
    News,
    /// The wait was interrupted.
    Interrupted,
    /// The deadline has passed.
    Deadline,
}

/// Waits, and learns from it.
#[derive(Debug)]
pub(crate) struct Waiter {
    budget: Duration,
}

impl Waiter {
    pub(crate) fn new() -> Self {
        Self { budget: if cpus() > 1 { BUDGET_MAX } else { Duration::ZERO } }
    }

    /// Waits until `news` returns true or the guest has ended. `look_at_least` extends the time of
    /// polling.
    pub(crate) fn wait(
        &mut self,
        link: &Link,
        crew: &Crew,
        deadline: Instant,
        look_at_least: Duration,
        news: impl Fn(&Link) -> bool,
    ) -> Woken {
        // 1. There may be nothing to wait for.
        let bell: &Bell = &crew.bell;
        let is_over = || news(link) || crew.end.get().is_some();
        if is_over() {
            return Woken::News;
        }
        // 2. Poll, if another CPU can bring the news.
        let start = Instant::now();
        let can_look = cpus() > 1 && !crew.needs_this_cpu();
        let budget = if can_look { self.budget.max(look_at_least) } else { Duration::ZERO };
        if let Some(woken) = look(bell, start, budget, is_over) {
            return woken;
        }
        // 3. Sleep. The flag is set before the last poll, so no news can be missed.
        let sleeper = &link.region().host_sleeper;
        loop {
            sleeper.prepare();
            let woken = if is_over() {
                Woken::News
            } else if bell.take_interrupt() {
                Woken::Interrupted
            } else if Instant::now() >= deadline {
                Woken::Deadline
            } else {
                bell.wait(deadline);
                continue;
            };
            sleeper.cancel();
            if woken == Woken::News && can_look {
                self.learn(start.elapsed());
            }
            return woken;
        }
    }

    /// A wait ended in a sleep and took `took` in total.
    fn learn(&mut self, took: Duration) {
        let better = if took < 2 * BUDGET_MAX { self.budget * 2 } else { self.budget / 2 };
        self.budget = better.clamp(BUDGET_MIN, BUDGET_MAX);
    }
}

/// Polls for `budget` from `start` on; `None` if that has passed without an end of the wait.
fn look(
    bell: &Bell,
    start: Instant,
    budget: Duration,
    is_over: impl Fn() -> bool,
) -> Option<Woken> {
    while start.elapsed() < budget {
        for _ in 0..LOOKS {
            if is_over() {
                return Some(Woken::News);
            }
            std::hint::spin_loop();
        }
        if bell.take_interrupt() {
            return Some(Woken::Interrupted);
        }
        // If CPUs are scarce, the vCPU may be waiting for this one: a long poll must not block it.
        if start.elapsed() > UNDISTURBED {
            thread::yield_now();
        }
    }
    None
}

fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| available_parallelism().map_or(1, usize::from))
}
