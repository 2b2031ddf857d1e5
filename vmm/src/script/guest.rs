//! A guest as the target of a script.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::boot::TimeMode;
use vmkern_abi::control::{Context, MapId, Op, Response};
use vmkern_abi::fail::{FailSite, FailSpec};
use vmkern_abi::field::Field;
use vmkern_abi::layout::{ThreadState, VmMeter};

use super::look::Look;
use super::names::{self, MapField};
use super::pressed::{Pressing, PressureRun};
use super::stop::Stop;
use super::target::{Panic, Reply, Target, TargetError};
use crate::check::Report;
use crate::dump::{Dump, Saving};
use crate::guest::{LogEnd, Pages, PressureError, PressureReport, PressureTarget, SaveError};
use crate::inspect::draw::draw;
use crate::inspect::{InspectError, Inspection, StallTimes, View};
use crate::output::Destination;
use crate::schedule::Schedule;
use crate::text::unstyled;
use crate::{Crash, Guest, GuestError};

/// The kernel's log is moved out of the guest after this many operations.
const DRAIN_EVERY: u32 = 512;
/// Bytes of log that are kept for a report.
const TAIL: usize = 16 << 10;

/// A guest that does what a script says.
pub struct GuestTarget {
    guest: Guest,
    tail: Vec<u8>,
    since_drain: u32,
    /// Threads whose answers no wait expects any more, with the tags of the answers.
    left: BTreeMap<u16, u32>,
    /// The schedule of pressure.
    pressing: Option<Pressing>,
}

impl GuestTarget {
    /// Drives `guest`.
    #[must_use]
    pub fn new(guest: Guest) -> Self {
        Self { guest, tail: Vec::new(), since_drain: 0, left: BTreeMap::new(), pressing: None }
    }

    /// The same, under a schedule of pressure that acts between two operations.
    #[must_use]
    pub fn under(mut self, schedule: Option<Schedule>) -> Self {
        self.pressing = schedule.map(Pressing::new);
        self
    }

    /// Ends the schedule of pressure, if there is one: everything that it holds is given back.
    pub fn end_pressure(&mut self) -> Option<PressureRun> {
        let pressing = self.pressing.take()?;
        Some(pressing.end(self))
    }

    /// An operation is over: the schedule does what it says for this moment. What it does itself
    /// is not an operation.
    fn press(&mut self) {
        if let Some(mut pressing) = self.pressing.take() {
            pressing.poll(self);
            self.pressing = Some(pressing);
        }
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Stops the guest. Returns the end of the kernel's log, and what came of all of it.
    #[must_use = "it says whether the log is whole"]
    pub fn end(mut self) -> (String, LogEnd) {
        self.drain();
        let end = self.guest.end();
        keep_end(&mut self.tail, &end.rest);
        (String::from_utf8_lossy(&self.tail).into_owned(), end)
    }

    /// Lets the guest do `op`, or resumes the wait for the answer of the thread that it joins.
    fn call(&mut self, context: Context, op: Op) -> Result<Response, GuestError> {
        let thread = match (context, op) {
            (_, Op::Join { thread }) | (Context::Thread(thread), _) => Some(thread),
            _ => None,
        };
        let left = thread.and_then(|thread| self.left.remove(&thread));
        let tag = match (left, op) {
            (Some(tag), Op::Join { .. }) => tag,
            (_, _) if matches!(context, Context::Start(_)) => {
                return self.guest.call_in(context, op);
            }
            _ => self.guest.submit_in(context, op)?,
        };
        let answer = self.guest.response_to(tag);
        if let (Some(thread), Err(GuestError::Interrupted)) = (thread, &answer) {
            self.left.insert(thread, tag);
        }
        answer
    }

    /// In virtual time nothing runs between two statements: what was woken runs now.
    fn settle(&mut self) -> Result<(), TargetError> {
        let is_virtual = self.guest.environment().time == TimeMode::Virtual;
        let Some(thread) = self.guest.idle_thread().filter(|_| is_virtual) else { return Ok(()) };
        match self.guest.call(thread, Op::Settle) {
            // What it dies of, a later statement finds.
            Ok(_) | Err(GuestError::Crashed(_)) => Ok(()),
            Err(GuestError::Interrupted) => Err(TargetError::Interrupted),
            Err(error) => Err(TargetError::Broken(error.to_string())),
        }
    }

    /// Gives `pages` seized pages back, and in virtual time lets the threads run that wait for
    /// them. Returns the pages that are still seized.
    pub(super) fn give_back(&mut self, pages: Pages) -> Result<Pages, TargetError> {
        if self.guest.pressure().seized()? == Pages(0) {
            return Ok(Pages(0));
        }
        let held = self.guest.pressure().release(pages)?;
        self.settle()?;
        Ok(held)
    }

    fn drain(&mut self) {
        self.since_drain = 0;
        keep_end(&mut self.tail, &self.guest.take_log());
    }
}

impl From<PressureError> for TargetError {
    fn from(error: PressureError) -> Self {
        match error {
            PressureError::Unstoppable(_) | PressureError::Damaged(_) => {
                Self::Broken(error.to_string())
            }
            PressureError::Interrupted => Self::Interrupted,
            PressureError::Died(_) => Self::Broken(error.to_string()),
            PressureError::Untold(_) => Self::Host(error.to_string()),
            _ => Self::Unable(error.to_string()),
        }
    }
}

/// Adds `log` to `tail`, which is cut to what a report needs.
fn keep_end(tail: &mut Vec<u8>, log: &[u8]) {
    tail.extend_from_slice(log);
    let surplus = tail.len().saturating_sub(TAIL);
    tail.drain(..surplus);
}

impl Target for GuestTarget {
    fn execute(&mut self, context: Context, op: Op) -> Result<Reply, TargetError> {
        self.since_drain += 1;
        if self.since_drain >= DRAIN_EVERY {
            self.drain();
        }
        match self.call(context, op) {
            Ok(response) => {
                self.press();
                Ok(Reply::Completed { outcome: response.outcome, cycles: response.cycles })
            }
            Err(GuestError::Crashed(crash)) => Ok(Reply::Panicked(Box::new(Panic::from(&*crash)))),
            Err(GuestError::Timeout { limit, at }) => {
                Err(TargetError::Timeout { limit, at: Some(at.to_string()) })
            }
            Err(GuestError::Interrupted) => Err(TargetError::Interrupted),
            Err(error @ GuestError::Kvm(_)) => Err(TargetError::Host(error.to_string())),
            Err(other) => Err(TargetError::Broken(other.to_string())),
        }
    }

    fn restart_clock(&mut self) {
        self.guest.restart_clock();
    }

    fn forget_interrupt(&mut self) {
        self.guest.forget_interrupt();
    }

    fn guest(&self) -> Option<&Guest> {
        Some(&self.guest)
    }

    fn counter(&mut self, name: &'static str) -> Result<u64, TargetError> {
        if name == names::BALLOON_PAGES {
            return Ok(self.guest.pressure().ballooned()?.0);
        }
        if name == names::SEIZED_PAGES {
            return Ok(self.guest.pressure().seized()?.0);
        }
        let broken = |error: InspectError| TargetError::Broken(error.to_string());
        if StallTimes::NAMES.contains(&name) {
            let times = self.guest.stall_times().map_err(broken)?;
            return Ok(times.by_name(name).unwrap_or(0));
        }
        let meter = self.guest.meter().map_err(broken)?;
        meter
            .by_name(name)
            .map(Field::get)
            .ok_or_else(|| TargetError::Broken(format!("the kernel has no counter {name}")))
    }

    fn now(&mut self) -> Result<u64, TargetError> {
        self.guest.now_micros().map_err(|error| TargetError::Broken(error.to_string()))
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        let Ok(meter) = self.guest.meter() else { return Vec::new() };
        VmMeter::NAMES.iter().filter_map(|&name| Some((name, meter.by_name(name)?.get()))).collect()
    }

    fn map_field(&mut self, map: MapId, field: MapField) -> Result<u64, TargetError> {
        let stats =
            self.guest.map_stats(map).map_err(|error| TargetError::Broken(error.to_string()))?;
        Ok(match field {
            MapField::Min => stats.min.get(),
            MapField::Max => stats.max.get(),
            MapField::Size => stats.size,
            MapField::Entries => stats.entries,
            MapField::MaxFree => stats.max_free,
        })
    }

    fn threads(&mut self) -> Vec<(String, String)> {
        let threads = self.guest.threads().unwrap_or_default();
        let told = threads.into_iter().map(|thread| {
            let doing = match (thread.state, thread.waits_for) {
                (ThreadState::Sleeping, Some(waits_for)) => format!("sleeps in \"{waits_for}\""),
                (ThreadState::Sleeping, None) => "sleeps".to_owned(),
                (ThreadState::Running, _) => "running".to_owned(),
                (ThreadState::Runnable, _) => "runnable".to_owned(),
                (ThreadState::Inactive | ThreadState::Zombie, _) => "ended".to_owned(),
            };
            (thread.label(), doing)
        });
        told.collect()
    }

    fn arm(&mut self, site: FailSite, spec: &FailSpec) {
        self.guest.arm(site, spec);
    }

    fn seize(&mut self, target: PressureTarget) -> Result<PressureReport, TargetError> {
        Ok(self.guest.pressure().seize(target)?)
    }

    fn squeeze(&mut self, target: Pages) -> Result<PressureReport, TargetError> {
        let report = self.guest.pressure().squeeze(target)?;
        self.settle()?;
        Ok(report)
    }

    fn release(&mut self) -> Result<Pages, TargetError> {
        self.give_back(Pages::ALL)
    }

    fn dump(&mut self, path: &Path, program: &str, stop: &Stop) -> Result<(), TargetError> {
        let mut stopped = None;
        let mut go_on = |_: Saving| match stop.check() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                stopped = Some(error);
                ControlFlow::Break(())
            }
        };
        let saved = Destination::of_bytes(path)
            .map_err(SaveError::from)
            .and_then(|to| self.guest.save_dump_to(to, program, &mut go_on));
        match (saved, stopped) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(error)) => Err(error),
            (Err(SaveError::Source(error)), None) => Err(TargetError::Broken(error.to_string())),
            (Err(error), None) => Err(TargetError::Unable(error.to_string())),
        }
    }

    fn check(&mut self) -> Result<Report, TargetError> {
        self.guest.check().map_err(|error| TargetError::Broken(error.to_string()))
    }

    fn inspect(&mut self, name: &str, look: &Look) -> Result<String, TargetError> {
        let seen = match look {
            Look::At(what) => self.guest.inspect(name, what),
            Look::Since(path) => {
                let image =
                    Dump::open(path).map_err(|error| TargetError::Unable(error.to_string()))?;
                let diff = |before: View<'_>| {
                    self.guest.look(|after| Ok(Inspection::diff((path, &before), (name, after))))
                };
                View::new(&image).and_then(diff)
            }
        };
        // Text goes to wherever the script's output goes: it carries no styles.
        let text = seen.map(|inspection| unstyled(&draw(&inspection)));
        text.map(|text| text.trim_end().to_owned()).map_err(|error| match error {
            InspectError::NotThere(error) => TargetError::Unable(error.to_string()),
            other => TargetError::Broken(other.to_string()),
        })
    }

    fn vtop(&mut self, addr: GuestVirt) -> Result<Option<GuestPhys>, TargetError> {
        let walk = self.guest.vtop(addr).map_err(|error| TargetError::Broken(error.to_string()))?;
        Ok(walk.mapping.map(|mapping| mapping.phys))
    }
}

impl From<&Crash> for Panic {
    fn from(crash: &Crash) -> Self {
        Self {
            message: crash.message.clone(),
            thread: crash.thread_name.clone(),
            cpu: crash.cpu,
            backtrace: crash.backtrace.iter().map(ToString::to_string).collect(),
            text: crash.to_string(),
        }
    }
}
