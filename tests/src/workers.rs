//! Threads of a guest that do a random mix of operations, and get more of them as they answer: for
//! whoever looks at guests at work.

use std::collections::HashMap;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmkern::{Guest, GuestError, GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome, Response};

use crate::{Run as _, t};

const PAGE: u64 = 4096;
/// Threads that work, from 0 on.
pub const THREADS: u16 = 8;

/// What a thread has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Malloc(u64),
    Alloc(u64),
    Window(u64),
    Pageable(MapId, u64),
    Other,
}

/// What a thread has.
#[derive(Clone, Copy, Debug)]
enum Has {
    Block(MapId, GuestVirt, u64),
    /// A window with as many pages in it.
    Window(GuestVirt, u64, u64),
    Pageable(MapId, GuestVirt, u64),
}

/// A guest and what its threads have and are asked for.
#[derive(Debug)]
pub struct Workers {
    /// The guest.
    pub guest: Guest,
    random: Xoshiro256PlusPlus,
    /// A map in which there is room for two at a time.
    narrow: MapId,
    has: Vec<Vec<Has>>,
    owed: HashMap<u32, (u16, Asked)>,
    busy: [bool; THREADS as usize],
    /// Threads that wait for room, with what they asked for.
    blocked: Vec<(u16, Asked)>,
}

impl Workers {
    /// Threads of `guest`, whose work follows from `seed`.
    ///
    /// # Panics
    /// When the guest dies of it.
    #[must_use]
    pub fn new(mut guest: Guest, seed: u64) -> Self {
        let op = Op::KmemSuballoc { parent: MapId::KERNEL, size: 4 * PAGE, kind: MapKind::User };
        let narrow = MapId(guest.address(op).get());
        Self {
            guest,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            narrow,
            has: vec![Vec::new(); THREADS.into()],
            owed: HashMap::new(),
            busy: [false; THREADS as usize],
            blocked: Vec::new(),
        }
    }

    /// A number below `below`.
    pub fn draw(&mut self, below: u64) -> u64 {
        self.random.next_u64() % below
    }

    /// Has `thread`, which has nothing to do, do something.
    fn submit(&mut self, thread: u16) -> Result<(), GuestError> {
        let own = usize::from(thread);
        let (op, asked) = if !self.has[own].is_empty()
            && (self.draw(2) == 0 || self.has[own].len() > 20)
        {
            let index = usize::try_from(self.draw(self.has[own].len() as u64)).expect("an index");
            self.give_back(own, index)
        } else {
            self.take()
        };
        let tag = self.guest.submit(t(thread), op)?;
        self.owed.insert(tag, (thread, asked));
        self.busy[own] = true;
        Ok(())
    }

    fn take(&mut self) -> (Op, Asked) {
        let size = (1 + self.draw(12)) * PAGE;
        match self.draw(10) {
            0..4 => {
                let zero = if self.draw(3) == 0 { MallocFlags::ZERO } else { MallocFlags::empty() };
                (
                    Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT | zero },
                    Asked::Malloc(size),
                )
            }
            4..6 => (Op::KmemAlloc { map: MapId::KERNEL, size }, Asked::Alloc(size)),
            6 => (Op::KmemAllocNofault { map: MapId::KERNEL, size }, Asked::Window(size)),
            7 => (Op::KmemAllocWait { map: MapId::EXEC, size }, Asked::Pageable(MapId::EXEC, size)),
            8 => (
                Op::KmemAllocWait { map: self.narrow, size: 2 * PAGE },
                Asked::Pageable(self.narrow, 2 * PAGE),
            ),
            _ => (Op::UmaReclaim, Asked::Other),
        }
    }

    /// Uses what is `index` of what thread `own` has, or gives it back.
    fn give_back(&mut self, own: usize, index: usize) -> (Op, Asked) {
        let uses = self.draw(3) == 0;
        let seed = self.draw(1 << 20);
        let op = match self.has[own][index] {
            Has::Block(_, addr, size) if uses => Op::Fill { addr, size, seed },
            Has::Block(map, addr, size) => {
                self.has[own].swap_remove(index);
                Op::KmemFree { map, addr, size }
            }
            Has::Window(addr, size, 0) if uses => {
                let count = 1 + self.draw(size / PAGE);
                self.has[own][index] = Has::Window(addr, size, count);
                Op::PmapQenter { addr, count }
            }
            Has::Window(addr, size, 0) => {
                self.has[own].swap_remove(index);
                Op::KmemFree { map: MapId::KERNEL, addr, size }
            }
            Has::Window(addr, size, count) => {
                self.has[own][index] = Has::Window(addr, size, 0);
                Op::PmapQremove { addr, count }
            }
            Has::Pageable(_, addr, size) if uses => Op::Touch { addr, size },
            Has::Pageable(map, addr, size) => {
                self.has[own].swap_remove(index);
                Op::KmemFreeWakeup { map, addr, size }
            }
        };
        (op, Asked::Other)
    }

    /// Takes an answer.
    fn receive(&mut self) -> Result<(), GuestError> {
        let Response { tag, outcome, .. } = self.guest.next_response()?;
        let (thread, asked) = self.owed.remove(&tag).expect("it was asked for");
        let own = usize::from(thread);
        if let Outcome::Blocked { .. } = outcome {
            self.blocked.push((thread, asked));
            return Ok(());
        }
        self.busy[own] = false;
        let Outcome::Value(addr) = outcome else {
            assert!(matches!(outcome, Outcome::Ok | Outcome::Null), "{asked:?} gave {outcome:?}");
            return Ok(());
        };
        let addr = GuestVirt::new(addr);
        self.has[own].push(match asked {
            Asked::Malloc(size) => Has::Block(MapId::KMEM, addr, size),
            Asked::Alloc(size) => Has::Block(MapId::KERNEL, addr, size),
            Asked::Window(size) => Has::Window(addr, size, 0),
            Asked::Pageable(map, size) => Has::Pageable(map, addr, size),
            Asked::Other => panic!("nothing was asked for, and {addr} came"),
        });
        Ok(())
    }

    /// Makes room in the narrow map and asks those who waited for their answers.
    fn unblock(&mut self) -> Result<(), GuestError> {
        for own in 0..usize::from(THREADS) {
            let narrow = self.narrow;
            let gives = |has: &Has| matches!(has, Has::Pageable(map, ..) if *map == narrow);
            if self.busy[own] {
                continue;
            }
            while let Some(index) = self.has[own].iter().position(gives) {
                let Has::Pageable(map, addr, size) = self.has[own].swap_remove(index) else {
                    break;
                };
                let thread = u16::try_from(own).expect("it is small");
                self.guest.call(t(thread), Op::KmemFreeWakeup { map, addr, size })?;
            }
        }
        for (thread, asked) in std::mem::take(&mut self.blocked) {
            let tag = self.guest.submit(t(thread), Op::Join { thread })?;
            self.owed.insert(tag, (thread, asked));
        }
        Ok(())
    }

    /// Has every thread that has nothing to do do something.
    ///
    /// # Errors
    /// How the guest died.
    pub fn employ(&mut self) -> Result<(), GuestError> {
        for thread in 0..THREADS {
            if !self.busy[usize::from(thread)] {
                self.submit(thread)?;
            }
        }
        Ok(())
    }

    /// A little work: every idle thread gets something to do, and a few answers are taken.
    ///
    /// # Errors
    /// How the guest died.
    ///
    /// # Panics
    /// When an answer makes no sense.
    pub fn step(&mut self) -> Result<(), GuestError> {
        self.employ()?;
        for _ in 0..1 + self.draw(6) {
            if self.owed.is_empty() {
                self.unblock()?;
            }
            self.receive()?;
        }
        if self.blocked.len() > 2 {
            self.unblock()?;
        }
        Ok(())
    }
}
