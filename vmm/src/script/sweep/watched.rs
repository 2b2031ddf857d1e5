//! A target that is watched for a sweep: what has fired, what the script holds, and how each
//! operation after the fire ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::control::{Context, KernReturn, MAX_THREADS, MapId, Op, Outcome, WaitMessage};
use vmkern_abi::fail::{FailSite, FailSpec};

use super::holdings::Holdings;
use super::rows::{self, Ended, Thread, When};
use crate::Guest;
use crate::check::Report;
use crate::guest::{Pages, PressureReport, PressureTarget};
use crate::script::look::Look;
use crate::script::names::MapField;
use crate::script::stop::Stop;
use crate::script::target::{Panic, Reply, Swept, Target, TargetError, Wanted};

/// How often the end frees everything and joins the threads that this wakes.
const ROUNDS: usize = 16;

/// An operation that has ended.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub op: Op,
    pub context: Context,
    pub thread: Thread,
    pub when: When,
    pub ended: Ended,
}

impl Last {
    /// The rule that it breaks, if it breaks one.
    pub fn broken(&self) -> Option<String> {
        rows::broken(&self.op, (self.context, self.thread), self.when, &self.ended)
    }
}

/// A result that no row documents.
#[derive(Clone, Debug)]
pub(super) struct Odd {
    /// The line of its statement, if it was one.
    pub line: Option<usize>,
    pub what: String,
}

/// Why the end could not be reached.
#[derive(Debug)]
pub(super) enum Unwound {
    /// The guest died.
    Panicked(Box<Panic>),
    /// There was no answer.
    Lost(TargetError),
}

/// The target.
pub(super) struct Watched<'t> {
    target: &'t mut dyn Target,
    /// The site that is armed; none in a survey.
    site: Option<FailSite>,
    pub holdings: Holdings,
    /// Operations of threads that have not ended, with what the thread waits for.
    working: BTreeMap<u16, (Op, Option<WaitMessage>)>,
    /// Threads that exist.
    made: BTreeSet<u16>,
    has_fired: bool,
    /// The end of the operation in which the site fired.
    pub first: Option<Last>,
    /// The last end since the fire that the script has not judged.
    pub last: Option<Last>,
    pub odd: Vec<Odd>,
}

impl<'t> Watched<'t> {
    /// Watches `target`, at which `site` is armed.
    pub fn new(target: &'t mut dyn Target, site: Option<FailSite>) -> Self {
        let has_fired = site.is_some_and(|site| target.fires(site) > 0);
        Self {
            target,
            site,
            holdings: Holdings::default(),
            working: BTreeMap::new(),
            made: BTreeSet::from([0]),
            has_fired,
            first: None,
            last: None,
            odd: Vec::new(),
        }
    }

    /// Notes how an operation ended.
    fn note(&mut self, context: Context, op: Op, reply: &Reply) {
        // 1. The operation that the reply is about: a join's is that of its thread, and a panic's
        // that of the thread that died.
        let (thread, op) = match (context, op, reply) {
            (Context::Start(thread), op, Reply::Completed { .. }) => {
                self.started(thread, op);
                return;
            }
            (_, op, Reply::Panicked(panic)) => self.culprit(panic, context, op),
            (_, Op::Join { thread }, _) => {
                (Some(thread), self.working.get(&thread).map_or(op, |&(op, _)| op))
            }
            (Context::Thread(thread), op, _) => (Some(thread), op),
            (_, op, _) => (None, op),
        };
        let has_to_wait = thread.is_some_and(|thread| !self.made.contains(&thread));
        // 2. What becomes of the thread, and of the script's holdings.
        let ended = match reply {
            Reply::Completed { outcome, .. } => {
                let was_started = thread.is_some_and(|thread| self.working.contains_key(&thread));
                self.note_thread(thread, op, *outcome);
                self.note_holdings(context, &op, *outcome, was_started);
                Ended::With(*outcome)
            }
            Reply::Panicked(panic) => Ended::Panic(panic.message.clone()),
        };
        // 3. Whether the site has fired in it.
        let had_fired = self.has_fired;
        self.has_fired |= self.site.is_some_and(|site| self.target.fires(site) > 0);
        if !self.has_fired {
            return;
        }
        let when = match self.site {
            Some(site) if !had_fired => When::Fired(site),
            _ => When::After,
        };
        let thread = if has_to_wait { Thread::New } else { Thread::Known };
        let last = Last { op, context, thread, when, ended };
        if !had_fired {
            self.first = Some(last.clone());
        }
        self.last = Some(last);
    }

    /// A statement of `thread` was started. The order in which started statements end is not known,
    /// so what one of them frees is not the script's any more.
    fn started(&mut self, thread: u16, op: Op) {
        self.working.insert(thread, (op, None));
        if is_free(&op) {
            self.holdings.note(Context::Start(thread), &op, Outcome::Ok);
        }
    }

    /// The operation that the guest died of, and its thread. A started one may not be the one that
    /// was waited for.
    fn culprit(&self, panic: &Panic, context: Context, op: Op) -> (Option<u16>, Op) {
        let name = panic.thread.as_deref().and_then(|name| name.strip_prefix('t'));
        let thread = name.and_then(|number| number.parse().ok());
        match thread.and_then(|thread| Some((thread, self.working.get(&thread)?))) {
            Some((thread, &(op, _))) if context != Context::Interrupt => (Some(thread), op),
            _ => (None, op),
        }
    }

    fn note_holdings(&mut self, context: Context, op: &Op, outcome: Outcome, was_started: bool) {
        self.note_foreign(op, outcome);
        // Of a free that has ended now, another statement may hold the range again.
        if !(was_started && is_free(op)) {
            self.holdings.note(context, op, outcome);
        }
        // What a handler allocates, nobody knows the address of.
        let map = match *op {
            Op::KmemAlloc { map, .. }
            | Op::KmemAllocNofault { map, .. }
            | Op::KmemAllocWait { map, .. }
            | Op::KmemMalloc { map, .. } => map,
            _ => return,
        };
        if context == Context::Lowmem
            && let Ok(min) = self.target.map_field(map, MapField::Min)
            && let Ok(max) = self.target.map_field(map, MapField::Max)
        {
            self.holdings.share(map, min..max);
        }
    }

    /// In a survey, notes a write to memory that is not the script's: to page tables, for example.
    /// After a fire it would not be undone.
    fn note_foreign(&mut self, op: &Op, outcome: Outcome) {
        let is_write = matches!(op, Op::Write { .. } | Op::Fill { .. });
        if self.site.is_none() && is_write && outcome == Outcome::Ok && !self.holdings.admits(op) {
            let what = "it writes memory that it has not allocated".to_owned();
            self.odd.push(Odd { line: None, what });
        }
    }

    fn note_thread(&mut self, thread: Option<u16>, op: Op, outcome: Outcome) {
        let Some(thread) = thread else { return };
        match outcome {
            Outcome::Blocked { waits_for } => {
                self.working.insert(thread, (op, Some(waits_for)));
            }
            // It could not be created.
            Outcome::Error(KernReturn::NoSpace) => {
                self.working.remove(&thread);
            }
            _ => {
                self.working.remove(&thread);
                self.made.insert(thread);
            }
        }
    }

    /// The threads that sleep in an operation, and what they wait for.
    pub fn asleep(&self) -> BTreeMap<u16, String> {
        let told = |waits_for: &Option<WaitMessage>| match waits_for {
            Some(message) => message.to_string(),
            None => "?".to_owned(),
        };
        self.working.iter().map(|(&thread, (_, waits_for))| (thread, told(waits_for))).collect()
    }

    /// A thread that can work, which exists if there is one.
    fn idle(&self) -> u16 {
        let mut threads = self.made.iter().copied().chain(0..MAX_THREADS);
        threads.find(|thread| !self.working.contains_key(thread)).unwrap_or(0)
    }

    /// Does `op` on `context`, for the end.
    fn work(&mut self, context: Context, op: Op) -> Result<Outcome, Unwound> {
        match self.execute(context, op).map_err(Unwound::Lost)? {
            Reply::Completed { outcome, .. } => Ok(outcome),
            Reply::Panicked(panic) => Err(Unwound::Panicked(panic)),
        }
    }

    /// Brings the guest to its end: gives seized memory back, joins threads, frees what the script
    /// holds and wakes the threads that wait for room, again and again until nothing changes. Then
    /// the guest comes to rest.
    pub fn wind_up(&mut self) -> Result<(), Unwound> {
        self.target.release().map_err(Unwound::Lost)?;
        for round in 0..ROUNDS {
            // 1. Threads, whose results may be something to free.
            let before = self.working.len();
            for thread in self.working.keys().copied().collect::<Vec<_>>() {
                self.work(Context::Thread(thread), Op::Join { thread })?;
            }
            let release = self.holdings.release();
            let is_over = release.is_empty() && before == self.working.len();
            self.holdings.released();
            // 2. Memory.
            for op in release {
                let outcome = self.work(Context::Thread(self.idle()), op)?;
                if !matches!(outcome, Outcome::Ok | Outcome::Blocked { .. }) {
                    let what = format!("at the end, {op:?} gave {outcome:?}");
                    self.odd.push(Odd { line: None, what });
                }
            }
            // 3. Room: what handlers hold, and a wakeup for those that wait.
            let wakes = self.starved().into_iter().map(|map| Op::KmemFreeWakeup {
                map,
                addr: GuestVirt::new(0),
                size: 0,
            });
            for op in self.holdings.release_shared().into_iter().chain(wakes) {
                self.work(Context::Thread(self.idle()), op)?;
            }
            // The threads that the first round has woken are joined in the second.
            if is_over && round > 0 {
                break;
            }
        }
        // 4. Idle work.
        self.work(Context::Thread(self.idle()), Op::Settle)?;
        Ok(())
    }

    /// The maps in which threads wait for room.
    fn starved(&self) -> BTreeSet<MapId> {
        let of = |&(op, _): &(Op, Option<WaitMessage>)| match op {
            Op::KmemAllocWait { map, .. } => Some(map),
            _ => None,
        };
        self.working.values().filter_map(of).collect()
    }
}

/// Whether `op` frees a range.
const fn is_free(op: &Op) -> bool {
    matches!(op, Op::KmemFree { .. } | Op::KmemFreeWakeup { .. })
}

impl Swept for Watched<'_> {
    fn has_fired(&self) -> bool {
        self.has_fired
    }

    fn admits(&self, op: &Op) -> bool {
        self.holdings.admits(op)
    }

    fn settled(&mut self, line: usize, wanted: Wanted) {
        let Some(last) = self.last.take() else { return };
        let line = Some(line);
        if let Ended::With(outcome @ Outcome::Mismatch { .. }) = last.ended
            && self.holdings.knows_contents(&last.op)
        {
            let what = format!("{:?} found other contents: {outcome:?}", last.op);
            self.odd.push(Odd { line, what });
        }
        if wanted == Wanted::No
            && let Some(rule) = last.broken()
        {
            let what = format!("{:?} gave {}: {rule}", last.op, rows::kind(&last.ended));
            self.odd.push(Odd { line, what });
        }
    }
}

impl Watched<'_> {
    /// Notes whether the site has fired in a thread of the guest's own, while the script asked for
    /// something that is not an operation.
    fn note_fire(&mut self) {
        self.has_fired |= self.site.is_some_and(|site| self.target.fires(site) > 0);
    }
}

impl Target for Watched<'_> {
    fn execute(&mut self, context: Context, op: Op) -> Result<Reply, TargetError> {
        if context == Context::Lowmem && self.has_fired && !self.holdings.admits(&op) {
            return Ok(Reply::Completed { outcome: Outcome::Ok, cycles: 0 });
        }
        let reply = self.target.execute(context, op)?;
        self.note(context, op, &reply);
        Ok(reply)
    }

    fn fires(&self, site: FailSite) -> u64 {
        self.target.fires(site)
    }

    fn arm(&mut self, site: FailSite, spec: &FailSpec) {
        self.target.arm(site, spec);
    }

    fn swept(&mut self) -> Option<&mut dyn Swept> {
        self.site.is_some().then_some(self as &mut dyn Swept)
    }

    fn restart_clock(&mut self) {
        self.target.restart_clock();
    }

    fn forget_interrupt(&mut self) {
        self.target.forget_interrupt();
    }

    fn guest(&self) -> Option<&Guest> {
        self.target.guest()
    }

    fn counter(&mut self, name: &'static str) -> Result<u64, TargetError> {
        self.target.counter(name)
    }

    fn now(&mut self) -> Result<u64, TargetError> {
        self.target.now()
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        self.target.counters()
    }

    fn map_field(&mut self, map: MapId, field: MapField) -> Result<u64, TargetError> {
        self.target.map_field(map, field)
    }

    fn threads(&mut self) -> Vec<(String, String)> {
        self.target.threads()
    }

    fn seize(&mut self, target: PressureTarget) -> Result<PressureReport, TargetError> {
        self.target.seize(target)
    }

    fn squeeze(&mut self, target: Pages) -> Result<PressureReport, TargetError> {
        let report = self.target.squeeze(target);
        self.note_fire();
        report
    }

    fn release(&mut self) -> Result<Pages, TargetError> {
        let held = self.target.release();
        self.note_fire();
        held
    }

    /// Many runs of one script write no dumps.
    fn dump(&mut self, _: &Path, _: &str, stop: &Stop) -> Result<(), TargetError> {
        stop.check()
    }

    fn check(&mut self) -> Result<Report, TargetError> {
        let report = self.target.check()?;
        if !report.is_clean() {
            let what = format!("check: {}", report.to_string().trim_end());
            self.odd.push(Odd { line: None, what });
        }
        Ok(report)
    }

    fn inspect(&mut self, name: &str, look: &Look) -> Result<String, TargetError> {
        match look {
            // A dump that this run has not written.
            Look::Since(_) => Ok(String::new()),
            look => self.target.inspect(name, look),
        }
    }

    fn vtop(&mut self, addr: GuestVirt) -> Result<Option<GuestPhys>, TargetError> {
        self.target.vtop(addr)
    }
}
