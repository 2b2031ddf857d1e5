//! A target that answers from a table, and remembers what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::control::{Context, MapId, Op, Outcome};
use vmkern_abi::fail::{FailSite, FailSpec};

use crate::check::{Finding, Report};
use crate::guest::{Pages, PressureReport, PressureTarget, Refusal};
use crate::inspect::What;
use crate::script::{
    Ending, Look, MapField, Panic, Reply, Source, Step, Stop, Target, TargetError, parse, run,
};

/// Addresses are handed out from here on.
pub const BASE: u64 = 0xffff_ff80_0000_0000;

/// The map that kmem_suballoc makes.
pub const SUBMAP: MapId = MapId(0xffff_ff00_0012_3000);

/// Allocates without end, and remembers words.
#[derive(Default)]
pub struct Fake {
    pub ops: Vec<Op>,
    /// Where each of them ran.
    pub contexts: Vec<Context>,
    pub memory: BTreeMap<u64, u64>,
    pub next: u64,
    /// What the next operations give, in place of what they would.
    pub scripted: VecDeque<Result<Reply, TargetError>>,
    /// The images that were asked for.
    pub dumps: Vec<String>,
    /// The fail points that were armed, with their programmes.
    pub armed: Vec<(FailSite, String)>,
    /// What a check finds.
    pub findings: Vec<Finding>,
    /// Microseconds that pass between two looks at the clock, and those that have passed so.
    pub step: u64,
    pub passed: u64,
    /// Operations after which every fail point has fired, if it does.
    pub fires_after: Option<usize>,
    /// Pages that are seized.
    pub seized: Pages,
    /// Pages in the balloon.
    pub ballooned: Pages,
    /// Set to make the witness lie.
    pub skew: u64,
}

pub fn given(outcome: Outcome) -> Result<Reply, TargetError> {
    Ok(Reply::Completed { outcome, cycles: 7 })
}

pub fn panic(message: &str) -> Result<Reply, TargetError> {
    Ok(Reply::Panicked(Box::new(Panic { message: message.to_owned(), ..Panic::default() })))
}

impl Target for Fake {
    fn execute(&mut self, context: Context, op: Op) -> Result<Reply, TargetError> {
        self.ops.push(op);
        self.contexts.push(context);
        if let Some(reply) = self.scripted.pop_front() {
            return reply;
        }
        given(match op {
            Op::KmemAlloc { size, .. }
            | Op::KmemAllocNofault { size, .. }
            | Op::KmemMalloc { size, .. } => {
                if size == 0 {
                    Outcome::Null
                } else {
                    let at = BASE + self.next;
                    self.next += size.next_multiple_of(4096);
                    Outcome::Value(at)
                }
            }
            Op::Read { addr } => Outcome::Value(self.memory.get(&addr.get()).copied().unwrap_or(0)),
            Op::Write { addr, value } => {
                self.memory.insert(addr.get(), value);
                Outcome::Ok
            }
            Op::Vtop { addr } => Outcome::Value(addr.get() - BASE),
            Op::KmemSuballoc { .. } => Outcome::Value(SUBMAP.0),
            _ => Outcome::Ok,
        })
    }

    fn fires(&self, _: FailSite) -> u64 {
        u64::from(self.fires_after.is_some_and(|count| self.ops.len() >= count))
    }

    fn counter(&mut self, name: &'static str) -> Result<u64, TargetError> {
        Ok(match name {
            "v_free_count" => 1000 - self.next / 4096,
            "seized_pages" => self.seized.0,
            "balloon_pages" => self.ballooned.0,
            _ => 0,
        })
    }

    fn now(&mut self) -> Result<u64, TargetError> {
        self.passed += self.step;
        Ok(self.ops.len() as u64 * 1_000 + self.passed)
    }

    fn map_field(&mut self, map: MapId, field: MapField) -> Result<u64, TargetError> {
        Ok(match field {
            MapField::Min if map == SUBMAP => BASE + 0x10_0000,
            MapField::Min => BASE,
            _ => 5,
        })
    }

    fn threads(&mut self) -> Vec<(String, String)> {
        vec![("pagedaemon".to_owned(), "sleeps in \"psleep\"".to_owned())]
    }

    fn arm(&mut self, site: FailSite, spec: &FailSpec) {
        self.armed.push((site, spec.to_string()));
    }

    fn seize(&mut self, target: PressureTarget) -> Result<PressureReport, TargetError> {
        let asked = match target {
            PressureTarget::More(pages) => pages,
            PressureTarget::Leave(left) => Pages(1000 - self.next / 4096 - left.0),
        };
        let taken = Pages(asked.0.min(500));
        self.seized.0 += taken.0;
        let refused = (taken < asked).then_some(Refusal::NotFree);
        Ok(PressureReport { asked, taken, held: self.seized, back: taken, refused })
    }

    fn squeeze(&mut self, target: Pages) -> Result<PressureReport, TargetError> {
        let (asked, before) = (target, self.ballooned);
        self.ballooned = Pages(asked.0.min(500));
        let held = self.ballooned;
        let taken = Pages(held.0.saturating_sub(before.0));
        let refused = (held < asked).then_some(Refusal::NotFree);
        Ok(PressureReport { asked, taken, held, back: taken, refused })
    }

    fn release(&mut self) -> Result<Pages, TargetError> {
        self.seized = Pages(0);
        Ok(self.seized)
    }

    fn dump(&mut self, path: &Path, program: &str, stop: &Stop) -> Result<(), TargetError> {
        stop.check()?;
        if path.starts_with("/full") {
            return Err(TargetError::Unable("No space left on device".to_owned()));
        }
        self.dumps.push(format!("{program}: {}", path.display()));
        Ok(())
    }

    fn check(&mut self) -> Result<Report, TargetError> {
        Ok(Report { findings: self.findings.clone(), ..Report::default() })
    }

    fn inspect(&mut self, name: &str, look: &Look) -> Result<String, TargetError> {
        match look {
            Look::At(What::Page(pfn)) => {
                Err(TargetError::Unable(format!("there is no page {pfn:#x}")))
            }
            look => Ok(format!("{name}: {look}")),
        }
    }

    fn vtop(&mut self, addr: GuestVirt) -> Result<Option<GuestPhys>, TargetError> {
        Ok(Some(GuestPhys::new(addr.get() - BASE + self.skew)))
    }
}

/// Runs `text` on `fake`.
pub fn run_on(fake: &mut Fake, text: &str) -> (Ending, Vec<Step>) {
    let source = Source::new("test.kmem", text);
    let script = match parse(&source) {
        Ok(script) => script,
        Err(errors) => panic!("{}", errors[0].render(&source)),
    };
    let mut steps = Vec::new();
    let stop = Stop::after(std::time::Duration::from_secs(3600));
    let ending = run(&script, fake, 0, &stop, &mut |step: &Step| steps.push(step.clone()));
    (ending, steps)
}

/// Runs `text` on a fresh fake.
pub fn run_text(text: &str) -> (Ending, Vec<Step>) {
    run_on(&mut Fake::default(), text)
}
