//! Concurrent operations of several threads, and of an interrupt.
//!
//! The results of a round are right when there is an order of its operations in which the model
//! gives the same results. This is checked for addresses, where the model is exact; when pages run
//! short, or a function fails at a fail point, the model only says what may happen.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use proptest::prelude::*;
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MallocFlags, MapKind, Op, Outcome};

use super::Telling;
use super::explain::{Effect, Entries, Event, Place, explain, kind};
use super::failing::{Failing, failing};
use super::naive::{Content, What, pages, rounded, touched};
use super::protect::Planned;
use super::step::{Extent, FreeBy, How, On, Part, Shape, Size, Step, allows, memory};
use super::world::{Cause, Sleeper, World};
use crate::sim::SimMachine;
use crate::vm::Vm;

/// Operations that run concurrently.
#[derive(Clone, Debug)]
pub struct Round {
    /// Decides when the clock interrupts.
    seed: u64,
    /// The clock interrupts at one point of this many.
    one_in: u64,
    /// The operations of the threads.
    steps: Vec<Step>,
    /// The operation of an interrupt, and the number of points before it.
    interrupt: Option<(u64, Step)>,
    /// What fails meanwhile.
    failing: Failing,
}

/// A machine and its rounds.
#[derive(Clone, Debug)]
pub struct Race {
    pub(super) shape: Shape,
    /// Pairs of unlike pages that kmem_map has at first: many nearly outgrow the home of its
    /// entries.
    crowd: u64,
    pub(super) rounds: Vec<Round>,
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![
        6 => (1..6 * PAGE_SIZE).prop_map(Size::Bytes),
        2 => (1..60 * PAGE_SIZE).prop_map(Size::Bytes),
        1 => (-3i8..1).prop_map(Size::Map),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let nowait = prop_oneof![Just(MallocFlags::NOWAIT), Just(super::ZEROED)];
    let how = prop_oneof![
        2 => Just(How::Alloc),
        1 => Just(How::Nofault),
        3 => nowait.prop_map(How::Malloc),
        2 => Just(How::Malloc(MallocFlags::WAITOK | MallocFlags::ZERO)),
        3 => Just(How::Wait),
    ];
    let by = prop_oneof![1 => Just(FreeBy::Free), 2 => Just(FreeBy::Wakeup)];
    let part = prop_oneof![
        1 => Just(Part::Whole),
        1 => (0..1u64 << 16, 0..1u64 << 16).prop_map(|(from, size)| Part::Bytes(from, size)),
    ];
    prop_oneof![
        5 => (any::<u8>(), size(), how)
            .prop_map(|(map, size, how)| Step::Allocate { map, size, how }),
        4 => (any::<u16>(), part.clone(), by)
            .prop_map(|(pick, part, by)| Step::Free { pick, part, by }),
        2 => (any::<u16>(), part.clone()).prop_map(|(pick, part)| Step::Touch { pick, part }),
        2 => (any::<u16>(), part, allows()).prop_map(|(pick, part, allows)| Step::Protect {
            pick,
            place: Extent::Part(part),
            allows
        }),
        1 => (0u8..90).prop_map(|left| Step::Drain { left }),
    ]
}

/// A protection without a page for the entries of its cuts.
const SHORTAGE_OUTCOME: Option<Outcome> = Some(Outcome::Error(KernReturn::ResourceShortage));

/// Races on machines with two to four threads.
pub fn race() -> impl Strategy<Value = Race> {
    let shape = (prop_oneof![Just(24), Just(64), Just(256), Just(1000)], 2u8..5);
    let shape = shape.prop_map(|(kmem, workers)| Shape { memory: memory(), kmem, workers });
    let interrupt = prop::option::of((0u64..400, step()));
    let steps = prop::collection::vec(step(), 1..5);
    let round = (any::<u64>(), 2u64..60, steps, interrupt, failing());
    let round = round.prop_map(|(seed, one_in, steps, interrupt, failing)| Round {
        seed,
        one_in,
        steps,
        interrupt,
        failing,
    });
    let crowd = prop_oneof![7 => Just(0), 1 => 11u64..16];
    (shape, crowd, prop::collection::vec(round, 1..7)).prop_map(|(shape, crowd, rounds)| Race {
        shape,
        crowd,
        rounds,
    })
}

/// Performs the rounds of a race up to the end or the failure, which is a panic.
pub fn at_once(race: &Race, telling: &Telling) {
    let mut world = World::new(race.shape, telling);
    let pair = [How::Malloc(MallocFlags::NOWAIT), How::Nofault];
    for how in (0..race.crowd).flat_map(|_| pair) {
        world.step(On::Driver, &Step::Allocate { map: 1, size: Size::Bytes(PAGE_SIZE), how });
    }
    for round in &race.rounds {
        world.round(round);
    }
    world.finish();
}

impl World {
    /// Runs a round, explains it, and compares.
    pub fn round(&mut self, round: &Round) {
        let mut claimed = BTreeSet::new();
        let mut planned: Vec<(Op, Effect)> = Vec::new();
        let idle: Vec<u32> = (1..=u32::from(self.shape.workers))
            .filter(|tid| self.sleepers.iter().all(|sleeper| sleeper.tid != *tid))
            .collect();
        for step in round.steps.iter().take(idle.len()) {
            planned.extend(self.plan(step, &mut claimed));
        }
        let handler = round.interrupt.as_ref().and_then(|(points, step)| {
            let planned = self.plan(step, &mut claimed).filter(|(op, _)| self.may_interrupt(op))?;
            Some((*points, planned))
        });
        let all: Vec<Effect> =
            planned.iter().map(|p| p.1).chain(handler.map(|(_, p)| p.1)).collect();
        planned.retain(|(_, effect)| self.cannot_fail(effect, &all));

        let (free, wanted) = (self.sim.free_pages(), all.iter().map(wanted).sum::<u64>() + 64);
        self.script.borrow_mut().remark(&format!(
            "At once, with seed {} and one interrupt in {}:",
            round.seed, round.one_in
        ));
        let armed = self.arm_round(round.failing, wanted);
        let mut events = self.run_at_once(round, &idle, &planned, handler);
        let scarce = self.disarm_round(&armed) || free < wanted;
        let mut at = 0;
        while at < self.sleepers.len() {
            match self.sim.answer(self.sleepers[at].tid) {
                Some(outcome) => {
                    self.agree_on_place(at, outcome);
                    events.push(woken(&self.sleepers.remove(at), outcome));
                }
                None => at += 1,
            }
        }
        for (_, effect) in &planned {
            // A thread that sleeps for room need not have been woken by a free that came before it
            // looked, nor by a plain free.
            if let Effect::Free { map, .. } = *effect {
                self.quiet.insert(map);
            }
        }
        let entries = Entries::look(&self.sim, &self.naive.maps);
        let order = explain(&events, &self.naive.maps, scarce, &entries).unwrap_or_else(|| {
            panic!("no order explains {events:#?}\nin {:#x?}\nand {entries:#x?}", self.naive.maps)
        });
        self.turn += 1;
        for (number, place) in order {
            self.take_effect(&events[number], place);
        }
        self.settle();
        self.check();
    }

    /// The operation for a step, on ranges that no other step of the round uses.
    fn plan(&mut self, step: &Step, claimed: &mut BTreeSet<u64>) -> Option<(Op, Effect)> {
        match *step {
            Step::Allocate { map, size, how } => {
                let map = usize::from(map) % self.naive.maps.len();
                self.plan_allocation(map, self.bytes(map, size), how)
            }
            Step::Drain { left } => {
                let bytes = self.sim.free_pages().checked_sub(u64::from(left) + 32)? * PAGE_SIZE;
                let map =
                    [1, 0].into_iter().find(|&map| self.naive.maps[map].hole(bytes).is_some())?;
                self.plan_allocation(map, bytes, How::Malloc(MallocFlags::NOWAIT))
            }
            Step::Free { pick, part, by } => {
                let at = self.pick(pick, |_, _| true).filter(|at| claimed.insert(at.start))?;
                let (addr, size) = Self::part(&at, part);
                let (start, end) = touched(addr, size)?;
                self.verify(start, end);
                let (map, addr) = (self.naive.maps[at.map].id, GuestVirt::new(addr));
                let op = match by {
                    FreeBy::Free => Op::KmemFree { map, addr, size },
                    FreeBy::Wakeup => Op::KmemFreeWakeup { map, addr, size },
                };
                Some((op, Effect::Free { map: at.map, start, end }))
            }
            Step::Touch { pick, part } => {
                let at = self
                    .pick(pick, |_, range| range.what != What::Nofault && range.allows.writes());
                let at = at.filter(|at| claimed.insert(at.start))?;
                let (addr, size) = Self::part(&at, part);
                let (start, end) = touched(addr, size)?;
                let addr = GuestVirt::new(start);
                if pages(start, end - start).all(|va| self.naive.memory.contains_key(&va)) {
                    let (seed, bytes) = (self.seed(), end - start);
                    return Some((
                        Op::Fill { addr, size: bytes, seed },
                        Effect::Fill { start, bytes, seed },
                    ));
                }
                let effect = Effect::Touch { pin: at.start, start, bytes: end - start };
                Some((Op::Touch { addr, size: end - start }, effect))
            }
            Step::Protect { pick, place: Extent::Part(part), allows } => {
                let at = self.pick(pick, |_, _| true).filter(|at| claimed.insert(at.start))?;
                let (start, end) = Self::whole_pages(&at, part);
                let planned = Planned { map: at.map, start, end, allows };
                Some((self.protect_op(planned), Effect::Protect(planned)))
            }
            _ => None,
        }
    }

    fn plan_allocation(&self, map: usize, size: u64, how: How) -> Option<(Op, Effect)> {
        let (id, kind, bytes) = (self.naive.maps[map].id, self.naive.maps[map].kind, rounded(size));
        let op = match how {
            How::Alloc => Op::KmemAlloc { map: id, size },
            How::Nofault => Op::KmemAllocNofault { map: id, size },
            How::Malloc(flags) => Op::KmemMalloc { map: id, size, flags },
            How::Wait => Op::KmemAllocWait { map: id, size },
        };
        let is_right = match how {
            How::Malloc(_) => kind == MapKind::System,
            How::Wait => {
                kind == MapKind::User
                    && bytes.is_some_and(|bytes| self.sim.free_pages() >= 40 && bytes < 1 << 30)
            }
            _ => true,
        };
        let small = bytes.is_none_or(|bytes| bytes < 1 << 24);
        (is_right && small).then_some((op, Effect::Allocate { map, bytes, how }))
    }

    fn may_interrupt(&self, op: &Op) -> bool {
        let is_system =
            |id| self.naive.maps.iter().any(|m| m.id == id && m.kind == MapKind::System);
        match *op {
            Op::KmemMalloc { flags, .. } => flags.contains(MallocFlags::NOWAIT),
            Op::KmemFree { map, .. }
            | Op::KmemFreeWakeup { map, .. }
            | Op::KmemAllocNofault { map, .. } => is_system(map),
            _ => false,
        }
    }

    /// Whether an operation that would panic, or sleep in more than one way, has no reason to.
    fn cannot_fail(&self, effect: &Effect, all: &[Effect]) -> bool {
        let Effect::Allocate { map, bytes: Some(bytes), how } = *effect else { return true };
        let others = all.iter().map(|other| match *other {
            Effect::Allocate { map: other, bytes: Some(bytes), .. } if other == map => bytes,
            _ => 0,
        });
        let room = self.naive.maps[map].hole(bytes.max(others.sum())).is_some();
        let plenty = self.sim.free_pages() >= all.iter().map(wanted).sum::<u64>() + 200;
        match how {
            How::Alloc => plenty,
            How::Malloc(flags) if !flags.contains(MallocFlags::NOWAIT) => {
                room && (plenty || self.overhead(map, bytes / PAGE_SIZE, how) == 0)
            }
            _ => true,
        }
    }

    /// Makes threads and interrupt perform the planned operations.
    fn run_at_once(
        &mut self,
        round: &Round,
        idle: &[u32],
        planned: &[(Op, Effect)],
        handler: Option<(u64, (Op, Effect))>,
    ) -> Vec<Event> {
        for (&tid, &(op, _)) in idle.iter().zip(planned) {
            self.sim.submit(tid, op);
        }
        let answer = Arc::new(Mutex::new(None));
        if let Some((points, (op, _))) = handler {
            let answer = Arc::clone(&answer);
            self.sim.raise_after(points, move |vm: &Vm<SimMachine>| {
                let outcome = crate::sim::threads::perform(vm, &op);
                *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            });
        }
        self.sim.interrupt_at_random(round.seed, round.one_in);
        self.sim.run();
        self.sim.interrupt_at_random(0, 0);
        self.sim.cancel_interrupts();
        self.sim.run();
        let mut events: Vec<Event> = Vec::new();
        for (&tid, &(op, effect)) in idle.iter().zip(planned) {
            events.push(Event { tid, op, effect, outcome: self.sim.answer(tid), settled: false });
        }
        let outcome = *answer.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some((_, (op, effect))), Some(_)) = (handler, outcome) {
            events.push(Event { tid: 0, op, effect, outcome, settled: false });
        }
        for event in &events {
            let told = event.outcome.map_or("sleeps".to_owned(), |outcome| format!("{outcome:x?}"));
            self.script.borrow_mut().remark(&format!("  t{}: {:x?}: {told}", event.tid, event.op));
        }
        events
    }

    /// Changes the model as an event says.
    fn take_effect(&mut self, event: &Event, place: Place) {
        let &Event { tid, op, outcome, effect, settled } = event;
        match (effect, outcome) {
            (Effect::Free { map, start, end }, _) => self.naive.free(map, start, end),
            (Effect::Allocate { map, bytes: Some(bytes), how }, Some(Outcome::Value(addr))) => {
                let zeroed = match how {
                    How::Alloc => true,
                    How::Malloc(flags) => flags.contains(MallocFlags::ZERO),
                    _ => false,
                };
                let content = if zeroed { Content::Zero } else { Content::Unknown };
                if settled {
                    self.pinned.remove(&addr);
                } else {
                    self.naive.take(map, addr, bytes, kind(how));
                }
                if matches!(how, How::Alloc | How::Malloc(_)) {
                    self.arrived(addr, bytes, kind(how), content);
                }
            }
            (Effect::Allocate { map, bytes: Some(bytes), how }, None) => {
                let cause = match place {
                    Some(start) => {
                        self.naive.take(map, start, bytes, kind(how));
                        self.pinned.insert(start);
                        Cause::Memory { map, start, bytes, what: kind(how), content: Content::Zero }
                    }
                    None => Cause::Room { map, bytes },
                };
                self.fall_asleep(tid, op, cause);
            }
            (Effect::Allocate { .. }, _) => {}
            (Effect::Touch { pin, start, bytes }, None) => {
                self.pinned.insert(pin);
                self.fall_asleep(tid, op, Cause::Touch { pin, start, bytes });
            }
            (Effect::Touch { pin, start, bytes }, Some(outcome)) => {
                assert_eq!(outcome, Outcome::Ok, "{op:?}");
                self.pinned.remove(&pin);
                self.touched(start, bytes);
            }
            (Effect::Protect(planned), outcome) => match outcome {
                Some(Outcome::Ok) => self.protected(planned),
                outcome => assert_eq!(outcome, SHORTAGE_OUTCOME, "{op:?}"),
            },
            (Effect::Fill { start, bytes, seed }, outcome) => {
                assert_eq!(outcome, Some(Outcome::Ok), "{op:?}");
                self.filled(start, bytes, seed);
            }
        }
    }
}

/// The event that a sleeper of an earlier round has become.
fn woken(sleeper: &Sleeper, outcome: Outcome) -> Event {
    let (effect, settled) = match sleeper.cause {
        Cause::Memory { map, start, bytes, what, content } => {
            assert_eq!(outcome, Outcome::Value(start), "{sleeper:?}");
            let zero =
                if content == Content::Zero { MallocFlags::ZERO } else { MallocFlags::empty() };
            let how = if what == What::Kernel { How::Alloc } else { How::Malloc(zero) };
            (Effect::Allocate { map, bytes: Some(bytes), how }, true)
        }
        Cause::Room { map, bytes } => {
            (Effect::Allocate { map, bytes: Some(bytes), how: How::Wait }, false)
        }
        Cause::Touch { pin, start, bytes } => (Effect::Touch { pin, start, bytes }, false),
    };
    Event { tid: sleeper.tid, op: sleeper.op, effect, outcome: Some(outcome), settled }
}

/// Pages that an operation may take, including page tables and entries.
fn wanted(effect: &Effect) -> u64 {
    match *effect {
        Effect::Allocate { bytes: Some(bytes), .. } => {
            bytes / PAGE_SIZE + bytes / PAGE_SIZE / 128 + 16
        }
        Effect::Touch { bytes, .. } => bytes / PAGE_SIZE + 8,
        _ => 0,
    }
}
