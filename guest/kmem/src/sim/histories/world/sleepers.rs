//! Operations that sleep: what each waits for, and its expected result when it is woken.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{Op, Outcome, WaitMessage};

use super::World;
use crate::sim::histories::naive::{Content, What};

/// The reason for a thread's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It waits for pages for a range that it has.
    Memory { map: usize, start: u64, bytes: u64, what: What, content: Content },
    /// It waits for room in a map.
    Room { map: usize, bytes: u64 },
    /// It waits for pages of a pageable range, at the first touch; the range begins at `pin`.
    Touch { pin: u64, start: u64, bytes: u64 },
}

/// A thread that sleeps in the middle of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Sleeper {
    pub tid: u32,
    pub op: Op,
    pub cause: Cause,
    /// The step or round in which it fell asleep.
    pub turn: u64,
}

impl World {
    /// Records that an operation sleeps from now on.
    pub fn fall_asleep(&mut self, tid: u32, op: Op, cause: Cause) {
        self.sleepers.push(Sleeper { tid, op, cause, turn: self.turn });
    }

    /// Lets threads run, and checks the results of the operations that slept. Then everything must
    /// be as the model says.
    pub fn settle(&mut self) {
        self.sim.run();
        self.count_events();
        let mut at = 0;
        let mut woken = Vec::new();
        while at < self.sleepers.len() {
            let sleeper = self.sleepers[at];
            match self.sim.answer(sleeper.tid) {
                Some(outcome) => {
                    self.agree_on_place(at, outcome);
                    let sleeper = self.sleepers.remove(at);
                    self.script.borrow_mut().join(sleeper.tid, &sleeper.op, &outcome);
                    woken.push((sleeper, outcome));
                }
                None => at += 1,
            }
        }
        while !woken.is_empty() {
            let (sleeper, outcome) = woken.remove(self.first_to_come(&woken));
            self.woken(&sleeper, outcome);
        }
        self.sleepers.iter().for_each(|sleeper| self.must_sleep(sleeper));
        self.sim.run();
        self.count_events();
        self.compare();
        self.tell_counters();
    }

    /// Stored operations run at the event, all of them.
    pub fn count_events(&mut self) {
        let events = self.sim.vm().cnt().lowmem_events.get();
        if events != self.events {
            self.events = events;
            for (map, start, end) in std::mem::take(&mut self.doomed) {
                self.pinned.remove(&start);
                self.free(map, start, end);
            }
        }
    }

    /// The operation of a sleeper has answered. If two fell asleep in one round over equal ranges,
    /// only now is it known which has which.
    pub fn agree_on_place(&mut self, at: usize, outcome: Outcome) {
        let Sleeper { cause: Cause::Memory { start, .. }, turn, .. } = self.sleepers[at] else {
            return;
        };
        let Outcome::Value(addr) = outcome else { return };
        let at_place = |cause: Cause, place: u64| match cause {
            Cause::Memory { map, bytes, what, content, .. } => {
                Cause::Memory { map, start: place, bytes, what, content }
            }
            other => other,
        };
        let there = at_place(self.sleepers[at].cause, addr);
        let twin =
            self.sleepers.iter().position(|other| other.turn == turn && other.cause == there);
        if let Some(twin) = twin {
            self.sleepers[at].cause = there;
            self.sleepers[twin].cause = at_place(there, start);
        }
    }

    /// Which of those that have answered got its room first: the first, or, as nobody knows in
    /// which order those of one round fell asleep, one of its round whose room is where a hole is
    /// now.
    fn first_to_come(&self, woken: &[(Sleeper, Outcome)]) -> usize {
        let turn = woken.first().map(|(sleeper, _)| sleeper.turn);
        let fits = |(sleeper, outcome): &(Sleeper, Outcome)| match sleeper.cause {
            Cause::Room { map, bytes } => {
                self.naive.maps[map].hole(bytes).map(Outcome::Value) == Some(*outcome)
            }
            Cause::Memory { .. } | Cause::Touch { .. } => true,
        };
        let same_turn = woken.iter().take_while(|(sleeper, _)| Some(sleeper.turn) == turn);
        same_turn.enumerate().find(|(_, one)| fits(one)).map_or(0, |(at, _)| at)
    }

    /// The operation of a sleeper has answered.
    fn woken(&mut self, sleeper: &Sleeper, outcome: Outcome) {
        match sleeper.cause {
            Cause::Memory { start, bytes, what, content, .. } => {
                assert_eq!(outcome, Outcome::Value(start), "{sleeper:?}");
                self.pinned.remove(&start);
                self.arrived(start, bytes, what, content);
            }
            Cause::Room { map, bytes } => {
                let hole = self.naive.maps[map].hole(bytes).expect("a hole for who was woken");
                assert_eq!(outcome, Outcome::Value(hole), "{sleeper:?}");
                self.naive.take(map, hole, bytes, What::Pageable);
            }
            Cause::Touch { pin, start, bytes } => {
                assert_eq!(outcome, Outcome::Ok, "{sleeper:?}");
                self.pinned.remove(&pin);
                self.touched(start, bytes);
            }
        }
    }

    /// Checks that a thread that sleeps has a reason to.
    fn must_sleep(&self, sleeper: &Sleeper) {
        let wmesg = self.sim.waits_for(sleeper.tid).expect("who has not answered sleeps");
        let short = self.sim.vm().vm_page_count_min();
        match sleeper.cause {
            Cause::Memory { .. } => {
                assert!(wmesg == WaitMessage::new("vmwait") && short, "{wmesg}: {sleeper:?}")
            }
            Cause::Touch { .. } => {
                assert!(wmesg == WaitMessage::new("pfault") && short, "{wmesg}: {sleeper:?}")
            }
            Cause::Room { map, bytes } if wmesg == WaitMessage::new("vmmaps") => {
                let hole = self.naive.maps[map].hole(bytes);
                assert!(hole.is_none() || self.quiet.contains(&map), "a lost wakeup: {sleeper:?}");
            }
            Cause::Room { .. } => {
                assert!(wmesg == WaitMessage::new("vmwait") && short, "{wmesg}: {sleeper:?}")
            }
        }
    }

    /// Pages that sleepers may already have, of those that they will have.
    pub(super) fn underway(&self, of: What) -> u64 {
        let bytes = |sleeper: &Sleeper| match sleeper.cause {
            Cause::Memory { bytes, what, .. } if what == of => bytes,
            Cause::Touch { bytes, .. } if of == What::Pageable => bytes,
            _ => 0,
        };
        self.sleepers.iter().map(bytes).sum::<u64>() / PAGE_SIZE
    }

    pub(super) fn is_asleep_in(&self, at: u64) -> bool {
        self.sleepers.iter().any(|sleeper| match sleeper.cause {
            Cause::Memory { start, .. } => start == at,
            Cause::Touch { pin, .. } => pin == at,
            Cause::Room { .. } => false,
        })
    }
}
