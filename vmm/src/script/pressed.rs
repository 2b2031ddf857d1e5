//! A script under a schedule of pressure: the schedule's driver is polled between two operations.

use serde::Serialize;

use super::guest::GuestTarget;
use super::target::Target;
use crate::guest::{Pages, PressureTarget};
use crate::schedule::{Driver, Event, Moment, Sample, Schedule, Series, Squeeze};

/// The schedule of a run, and what came of it.
#[derive(Debug)]
pub(super) struct Pressing {
    driver: Driver,
    series: Series,
    operations: u64,
}

/// Thresholds of free pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Thresholds {
    /// The pagedaemon works up to here.
    pub v_free_target: u64,
    /// Sleepers are woken from here on.
    pub v_free_min: u64,
    /// NORMAL allocations stop here.
    pub v_free_reserved: u64,
    /// SYSTEM allocations stop here.
    pub v_interrupt_free_min: u64,
}

/// What a schedule did in a run, and the state of memory after each operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PressureRun {
    /// What happened.
    pub events: Vec<Event>,
    /// Thresholds of free pages at the end.
    pub thresholds: Thresholds,
    /// Every how many operations there is a sample.
    pub every: u64,
    /// Samples, in the order of time.
    pub samples: Vec<Sample>,
}

impl Pressing {
    pub fn new(schedule: Schedule) -> Self {
        Self { driver: Driver::new(schedule), series: Series::default(), operations: 0 }
    }

    /// An operation is over: the schedule does what it says for this moment.
    pub fn poll(&mut self, guest: &mut GuestTarget) {
        self.operations += 1;
        let now = self.now(guest);
        self.driver.poll(now, guest);
        self.series.extend(sample(now, guest));
    }

    /// The script has ended: everything is given back. Returns what came of it.
    pub fn end(mut self, guest: &mut GuestTarget) -> PressureRun {
        let now = self.now(guest);
        self.driver.end(now, guest);
        self.series.extend(sample(now, guest));
        PressureRun {
            events: self.driver.events().to_vec(),
            thresholds: thresholds(guest),
            every: self.series.stride(),
            samples: self.series.samples().to_vec(),
        }
    }

    fn now(&self, guest: &mut GuestTarget) -> Moment {
        Moment { micros: guest.now().unwrap_or(0), operations: self.operations }
    }
}

/// The guest's memory now; `None` if it cannot be read.
fn sample(at: Moment, guest: &mut GuestTarget) -> Option<Sample> {
    let (_, roots) = guest.guest().look(|view| view.kernel_roots()).ok()?;
    let seized = guest.counter(super::names::SEIZED_PAGES).ok()?;
    let meter = &roots.meter;
    Some(Sample {
        at,
        free: meter.v_free_count.get(),
        balloon: roots.balloon.pages.get(),
        seized,
        sleepers: roots.sched.pressure.stalled.get().into(),
        faults: meter.v_faults.get(),
        lowmem_events: meter.lowmem_events.get(),
    })
}

fn thresholds(guest: &GuestTarget) -> Thresholds {
    let Ok(meter) = guest.guest().meter() else { return Thresholds::default() };
    Thresholds {
        v_free_target: meter.v_free_target.get(),
        v_free_min: meter.v_free_min.get(),
        v_free_reserved: meter.v_free_reserved.get(),
        v_interrupt_free_min: meter.v_interrupt_free_min.get(),
    }
}

impl Squeeze for GuestTarget {
    fn seize(&mut self, more: Pages) -> Result<Pages, String> {
        let report = Target::seize(self, PressureTarget::More(more));
        report.map(|report| report.taken).map_err(|error| error.to_string())
    }

    fn release(&mut self, pages: Pages) -> Result<Pages, String> {
        let before = self.counter(super::names::SEIZED_PAGES).map_err(|error| error.to_string())?;
        let held = self.give_back(pages).map_err(|error| error.to_string())?;
        Ok(Pages(before.saturating_sub(held.0)))
    }

    fn squeeze(&mut self, total: Pages) -> Result<Pages, String> {
        let report = Target::squeeze(self, total);
        report.map(|report| report.held).map_err(|error| error.to_string())
    }

    fn free_pages(&mut self) -> Result<Pages, String> {
        self.counter("v_free_count").map(Pages).map_err(|error| error.to_string())
    }
}
