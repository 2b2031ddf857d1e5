//! Asking the guest for pages, by its balloon.
//!
//! **The end.** A request ends when the driver has reached the target; when it says why it cannot;
//! when all CPUs of the guest have been halted for a while without a word of it, whether or not it
//! has read the target; or at the guest's time limit.

use std::time::{Duration, Instant};

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::seize::Structures as _;
use vmkern_abi::virtio::balloon::Stat;

use super::{Pages, Pressure, PressureError, PressureReport, Refusal};
use crate::devices::balloon::{Account, Stats};
use crate::guest::link::Link;
use crate::guest::wait::Woken;
use crate::inspect::RunState;

/// How long to wait for the driver before a look at the CPUs.
const LOOK: Duration = Duration::from_millis(50);
/// Looks in a row at a guest that does nothing, before that counts as the end.
const LOOKS: u32 = 4;

/// How a wait for the driver ended.
enum Outcome {
    /// The target is reached, or the driver has said why not.
    Answered,
    /// It has read the target, and nothing in the guest runs.
    AtRest,
    /// The time limit has passed.
    Silent,
}

impl Pressure<'_> {
    /// Asks the guest's driver to have `target` in the balloon, no more and no less, and waits
    /// until that is so or the driver cannot go on. The memory of pages in the balloon is back at
    /// the host. The guest must have been built with
    /// [`GuestBuilder::balloon`](crate::GuestBuilder::balloon).
    ///
    /// In the report, `asked` is the target, `held` what is in the balloon then, and `taken` how
    /// many pages came in: 0 if pages left it.
    ///
    /// ```
    /// use vmkern::guest::Pages;
    /// use vmkern::prelude::*;
    ///
    /// let mut guest = Guest::builder().memory(64 << 20).balloon().launch()?;
    /// let report = guest.pressure().squeeze(Pages(4096))?;
    /// assert_eq!((report.held, report.refused), (Pages(4096), None));
    /// assert_eq!(guest.pressure().squeeze(Pages(0))?.held, Pages(0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`PressureError`]: [`NoBalloon`](PressureError::NoBalloon),
    /// [`TooMuch`](PressureError::TooMuch), [`Died`](PressureError::Died).
    pub fn squeeze(&mut self, target: Pages) -> Result<PressureReport, PressureError> {
        // 1. A request that makes sense.
        let memory = Pages(self.guest.hypervisor.ram.size() / PAGE_SIZE);
        if target > memory {
            return Err(PressureError::TooMuch { asked: target, memory });
        }
        let device = self.guest.balloon.as_ref().ok_or(PressureError::NoBalloon)?;
        if let Some(death) = self.guest.death() {
            return Err(PressureError::Died(death.to_string()));
        }
        let (before, resident) = (self.ballooned()?, self.guest.resident_memory());
        let discarded = device.account().discarded;
        // 2. The driver is asked, and answers.
        device.ask(u32::try_from(target.0).unwrap_or(u32::MAX));
        let outcome = self.await_driver(target)?;
        // 3. Three sources: the request, the guest's structures, the host's account of the file.
        let held = self.ballooned()?;
        let account = self.account();
        let refused = match (outcome, account.stopped) {
            _ if held == target => None,
            (_, Some(why)) => Some(Refusal::Driver(why.words())),
            (Outcome::Silent, None) if !account.is_driven => Some(Refusal::NoDriver),
            (Outcome::Silent, None) => Some(Refusal::Silent),
            (Outcome::Answered | Outcome::AtRest, None) => Some(Refusal::AtRest),
        };
        let back = resident.saturating_sub(self.guest.resident_memory()) / PAGE_SIZE;
        let Account { requests, given, misuse, .. } = account;
        let discarded = account.discarded - discarded;
        log::debug!(
            "balloon: {discarded} pages discarded, {given} given, {requests} requests in all, \
             {} pages refused",
            misuse.iter().sum::<u64>()
        );
        Ok(PressureReport {
            asked: target,
            taken: Pages(held.0.saturating_sub(before.0)),
            held,
            back: Pages(back),
            refused,
        })
    }

    /// Pages in the balloon, by the guest's structures.
    ///
    /// # Errors
    /// [`PressureError::NotReady`] and [`PressureError::Damaged`].
    pub fn ballooned(&self) -> Result<Pages, PressureError> {
        let at = self.guest.link.region().roots.get();
        let at = at.non_null().ok_or(PressureError::NotReady)?;
        let damaged = || PressureError::Damaged(format!("the kernel's roots are at {}", at.addr()));
        let roots = self.guest.hypervisor.ram.behind(at).ok_or_else(damaged)?;
        Ok(Pages(roots.balloon.pages.get()))
    }

    /// What the guest's driver says of its memory, by the balloon's queue of statistics: new
    /// numbers, for which this waits. Empty when the driver does not answer in time.
    ///
    /// # Errors
    /// [`PressureError`], as for [`Pressure::squeeze`].
    pub fn statistics(&mut self) -> Result<Vec<(&'static str, u64)>, PressureError> {
        let device = self.guest.balloon.as_ref().ok_or(PressureError::NoBalloon)?;
        let before = device.stats().answers;
        device.ask_stats();
        let guest = &mut *self.guest;
        let Some(device) = guest.balloon.as_ref() else { return Err(PressureError::NoBalloon) };
        let news = |_: &Link| device.stats().answers != before;
        let crew = &guest.hypervisor.vcpus.crew;
        match guest.waiter.wait(&guest.link, crew, guest.deadline, Duration::ZERO, news) {
            Woken::News if crew.end.get().is_some() => {
                Err(PressureError::Died(guest.ended().to_string()))
            }
            Woken::News => Ok(named(&device.stats())),
            Woken::Interrupted => Err(PressureError::Interrupted),
            Woken::Deadline => Ok(Vec::new()),
        }
    }

    fn account(&self) -> Account {
        self.guest.balloon.as_ref().map(|balloon| balloon.account()).unwrap_or_default()
    }

    /// Waits for the driver's answer to `target`.
    fn await_driver(&mut self, target: Pages) -> Result<Outcome, PressureError> {
        let mut idle = 0;
        loop {
            if !self.account().is_driven {
                return Ok(Outcome::Silent);
            }
            // 1. The driver rings the bell when it has said something.
            let until = self.guest.deadline.min(Instant::now() + LOOK);
            let guest = &mut *self.guest;
            let Some(device) = guest.balloon.as_ref() else { return Err(PressureError::NoBalloon) };
            let answered = || {
                let account = device.account();
                u64::from(account.actual) == target.0 && account.is_read
                    || account.stopped.is_some()
            };
            let crew = &guest.hypervisor.vcpus.crew;
            let news = |_: &Link| answered();
            match guest.waiter.wait(&guest.link, crew, until, Duration::ZERO, news) {
                Woken::News if crew.end.get().is_some() => {
                    return Err(PressureError::Died(guest.ended().to_string()));
                }
                Woken::News => return Ok(Outcome::Answered),
                Woken::Interrupted => {
                    return Err(PressureError::Interrupted);
                }
                Woken::Deadline => {}
            }
            // 2. It takes its time. A guest in which nothing runs will say no more.
            if Instant::now() >= self.guest.deadline {
                return Ok(Outcome::Silent);
            }
            idle = if self.is_halted() { idle + 1 } else { 0 };
            if idle == LOOKS {
                let is_read = self.account().is_read;
                return Ok(if is_read { Outcome::AtRest } else { Outcome::Silent });
            }
        }
    }

    /// Whether all CPUs of the guest are halted.
    fn is_halted(&self) -> bool {
        let cpus = self.guest.look(|view| view.source().cpus());
        cpus.is_ok_and(|cpus| cpus.iter().all(|cpu| cpu.state == RunState::Halted))
    }
}

/// The statistics that the driver reports, by name.
fn named(stats: &Stats) -> Vec<(&'static str, u64)> {
    Stat::ALL.into_iter().filter_map(|stat| Some((stat.name(), stats.get(stat)?))).collect()
}
