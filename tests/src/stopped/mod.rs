//! Guests that are stopped at random instants, or die in one of sixteen ways: the check must have
//! no findings in any of them.
//!
//! A [`Case`] follows from its number: how the guest is configured, what its threads do, how it
//! ends. The instant of the end does not, because host and guest run in parallel; to reproduce a
//! failed case, it is tried a few times.

mod death;

use std::fmt;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmkern::check::Report;
use vmkern::guest::Workload;
use vmkern::{Context, Guest, GuestBuilder, GuestError, MapId, MapKind, Op, TimeMode};

pub use self::death::Death;

use crate::workers::Workers;
use crate::{Run as _, launch_unchecked};

const PAGE: u64 = 4096;
/// The numbers of CPUs of guests, in turn.
const VCPUS: [u32; 3] = [1, 2, 4];
/// Checks of a guest that is held anywhere, before its end.
const LOOKS: u64 = 4;
/// The longest time for which a guest works before its end.
const WORK: Duration = Duration::from_millis(30);
/// Far more than any death takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the threads of a guest do until its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Requests from the host, one by one ([`Workers`]).
    Requests,
    /// A random mix of their own ([`Workload::Stress`]).
    Stress,
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its time is up, or all its threads sleep for want of memory.
    Stopped,
    /// The kernel dies.
    Dead(Death),
}

/// A guest and its end.
#[derive(Clone, Debug)]
pub struct Case {
    number: u64,
    vcpus: u32,
    time: TimeMode,
    work: Work,
    end: End,
    idlezero: bool,
    memory: u64,
}

impl Case {
    /// Case `number`. Six consecutive cases are, for each number of CPUs, one guest that is stopped
    /// and one that dies; the numbers go on through all deaths, both time modes and both kinds of
    /// work.
    #[must_use]
    pub fn new(number: u64) -> Self {
        let pick = |step: u64, of: u64| usize::try_from(number / step % of).expect("it is small");
        let end = match number / 3 % 2 {
            0 => End::Stopped,
            _ => End::Dead(Death::ALL[pick(6, Death::ALL.len() as u64)]),
        };
        let mut random = Xoshiro256PlusPlus::seed_from_u64(number);
        let mut draw = |below: u64| random.next_u64() % below;
        Self {
            number,
            vcpus: VCPUS[pick(1, 3)],
            time: if draw(2) == 0 { TimeMode::Virtual } else { TimeMode::Real },
            work: if draw(2) == 0 { Work::Requests } else { Work::Stress },
            end,
            idlezero: draw(4) == 0,
            memory: (12 + draw(13)) << 20,
        }
    }

    /// Threads that run [`Workload::Stress`]. A guest takes a request on an idle CPU, so one CPU is
    /// left for the request that kills the guest.
    fn parties(&self) -> u16 {
        match self.end {
            End::Stopped => 4,
            End::Dead(_) => u16::try_from(self.vcpus).map_or(1, |vcpus| vcpus.max(2) - 1),
        }
    }

    /// Operations of each of them: unlimited, or so few that a single CPU finishes them soon.
    fn operations(&self) -> u64 {
        match self.end {
            End::Stopped => u64::MAX >> 8,
            End::Dead(_) => 20 + self.number % 500,
        }
    }

    fn builder(&self) -> GuestBuilder {
        let builder = Guest::builder().memory(self.memory).vcpus(self.vcpus).time(self.time);
        if !self.idlezero {
            return builder;
        }
        builder.tunable("vm.idlezero_enable", 1)
    }

    /// Runs the guest to its end, and checks it there and on the way.
    ///
    /// # Errors
    /// What was found.
    ///
    /// # Panics
    /// When the guest cannot be launched, or does not end as it should.
    pub fn run(&self) -> Result<(), String> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(self.number ^ 0x5eed);
        let mut guest = launch_unchecked(self.builder());
        let ready = match self.end {
            End::Stopped => None,
            End::Dead(death) => Some(death.prepare(&mut guest)),
        };
        guest.set_timeout(PATIENCE);
        let mut crowd = Crowd::new(guest, self);
        let work = WORK.mul_f64((random.next_u64() % 1000) as f64 / 1000.0);
        for look in 0..random.next_u64() % (LOOKS + 1) {
            crowd
                .work_for(work / 4)
                .map_err(|error| format!("{self} died before its end: {error}"))?;
            crowd
                .clean_anywhere(&mut random)
                .map_err(|found| format!("{self}, look {look}:\n{found}"))?;
        }
        let error = match ready {
            None => {
                crowd.guest().set_timeout(work);
                crowd.work_until_dead()
            }
            Some(ready) => {
                let early = crowd.work_for(work);
                early.map_err(|error| format!("{self} died before its end: {error}"))?;
                match ready.strike(crowd.guest()) {
                    Ok(()) => crowd.work_until_dead(),
                    Err(error) => error,
                }
            }
        };
        let is_as_meant = match self.end {
            // Its time is up, or all its threads sleep before that: they can take more memory than
            // a small guest has.
            End::Stopped => {
                matches!(error, GuestError::Timeout { .. } | GuestError::NothingInFlight)
            }
            End::Dead(_) => matches!(error, GuestError::Crashed(_)),
        };
        let report = check(crowd.guest())?;
        leave_image(crowd.guest(), self, &report);
        if !is_as_meant {
            return Err(format!("{self} ended otherwise: {error}\n{report}"));
        }
        if report.is_clean() { Ok(()) } else { Err(format!("{self}:\n{error}\n{report}")) }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, vcpus, time, work, end, idlezero, memory } = self;
        write!(
            f,
            "case {number} ({vcpus} CPUs, {} MiB, {time:?} time, {work:?}, {end:?}",
            memory >> 20
        )?;
        f.write_str(if *idlezero { ", idlezero)" } else { ")" })
    }
}

fn check(guest: &Guest) -> Result<Report, String> {
    guest.check().map_err(|error| format!("the guest cannot be checked: {error}"))
}

/// Saves a dump of a guest with findings in the directory `VMKERN_STOPPED_IMAGES`, if that is set.
fn leave_image(guest: &Guest, case: &Case, report: &Report) {
    if let (false, Ok(directory)) = (report.is_clean(), std::env::var("VMKERN_STOPPED_IMAGES"))
        && let Err(error) = guest.save_dump(format!("{directory}/case{}.img", case.number))
    {
        eprintln!("{case}: no image: {error}");
    }
}

/// The guest with its threads at work.
enum Crowd {
    Requests(Workers),
    Stress(Guest),
}

impl Crowd {
    fn new(mut guest: Guest, case: &Case) -> Self {
        match case.work {
            Work::Requests => Self::Requests(Workers::new(guest, case.number)),
            Work::Stress => {
                let mut submap = |kind, pages| {
                    let size = u64::from(case.parties()) * pages * PAGE;
                    MapId(
                        guest.address(Op::KmemSuballoc { parent: MapId::KERNEL, size, kind }).get(),
                    )
                };
                let (pageable, system) = (submap(MapKind::User, 16), submap(MapKind::System, 32));
                let operations = case.operations();
                for thread in 0..case.parties() {
                    let (seed, parties) =
                        (case.number << 8 | u64::from(thread), case.parties().into());
                    let op =
                        Op::Work(Workload::Stress { seed, operations, parties, pageable, system });
                    guest.submit_in(Context::Thread(thread), op).expect("the guest lives");
                }
                Self::Stress(guest)
            }
        }
    }

    fn guest(&mut self) -> &mut Guest {
        match self {
            Self::Requests(workers) => &mut workers.guest,
            Self::Stress(guest) => guest,
        }
    }

    fn work_for(&mut self, time: Duration) -> Result<(), GuestError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            match self {
                Self::Requests(workers) => workers.step()?,
                Self::Stress(_) => thread::sleep(time.min(Duration::from_micros(200))),
            }
        }
        Ok(())
    }

    fn work_until_dead(&mut self) -> GuestError {
        loop {
            let step = match self {
                Self::Requests(workers) => workers.step(),
                Self::Stress(guest) => guest.next_response().map(|_| ()),
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    /// Holds the guest anywhere, and checks it.
    fn clean_anywhere(&mut self, random: &mut Xoshiro256PlusPlus) -> Result<(), String> {
        if let Self::Requests(workers) = self {
            workers.employ().map_err(|error| error.to_string())?;
        }
        for _ in 0..random.next_u64() % 5000 {
            spin_loop();
        }
        let guest = self.guest();
        let _pause = guest.pause_within(Duration::ZERO).map_err(|error| error.to_string())?;
        let report = check(guest)?;
        if report.is_clean() { Ok(()) } else { Err(report.to_string()) }
    }
}

/// Keeps CPUs of the host busy while it lives.
#[derive(Debug)]
#[must_use = "the load ends when this is dropped"]
pub struct Load {
    is_over: std::sync::Arc<AtomicBool>,
    loops: Vec<thread::JoinHandle<()>>,
}

impl Load {
    /// `count` busy loops.
    pub fn new(count: usize) -> Self {
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let busy = || {
            let is_over = std::sync::Arc::clone(&is_over);
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    spin_loop();
                }
            })
        };
        let loops = (0..count).map(|_| busy()).collect();
        Self { is_over, loops }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for busy in self.loops.drain(..) {
            // An empty loop does not panic.
            let _ = busy.join();
        }
    }
}

/// Runs `cases`, the second half of them beside two busy loops, and returns the failures.
pub fn campaign(cases: std::ops::Range<u64>, progress: u64) -> Vec<String> {
    let half = cases.start + (cases.end - cases.start) / 2;
    let mut failures = Vec::new();
    let mut load = None;
    for number in cases.clone() {
        if number == half {
            load = Some(Load::new(2));
        }
        if let Err(found) = Case::new(number).run() {
            eprintln!("{found}");
            failures.push(found);
        }
        let done = number - cases.start + 1;
        if progress != 0 && done.is_multiple_of(progress) {
            eprintln!("{done} guests, {} failed", failures.len());
        }
    }
    drop(load);
    failures
}
