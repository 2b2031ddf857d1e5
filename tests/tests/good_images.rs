//! A thousand good images: the check finds nothing in guests that are held at random moments of a stress run.

use std::collections::HashMap;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmkern::{Guest, GuestVirt, Image, MallocFlags, MapId, MapKind, Op, Outcome, Report, Response, TimeMode};
use vmkern_tests::{Run as _, launch_unchecked};

const PAGE: u64 = 4096;
/// Memory of a guest: little, so that its pages are used again and again.
const MEMORY: u64 = 24 << 20;
/// Threads of a guest that work.
const THREADS: u16 = 8;
/// Looks at each guest.
const LOOKS: u64 = 125;
/// Each of so many looks is at an image in a file.
const SAVED: u64 = 25;

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

struct Stress {
    guest: Guest,
    random: Xoshiro256PlusPlus,
    /// A map in which there is room for two at a time.
    narrow: MapId,
    has: Vec<Vec<Has>>,
    owed: HashMap<u32, (u16, Asked)>,
    busy: [bool; THREADS as usize],
    /// Threads that wait for room, with what they asked for.
    blocked: Vec<(u16, Asked)>,
}

impl Stress {
    fn new(seed: u64, vcpus: u32, time: TimeMode) -> Self {
        let mut guest = launch_unchecked(Guest::builder().memory(MEMORY).vcpus(vcpus).time(time));
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

    fn draw(&mut self, below: u64) -> u64 {
        self.random.next_u64() % below
    }

    /// Has `thread`, which has nothing to do, do something.
    fn submit(&mut self, thread: u16) {
        let own = usize::from(thread);
        let (op, asked) = if !self.has[own].is_empty() && (self.draw(2) == 0 || self.has[own].len() > 20) {
            let index = usize::try_from(self.draw(self.has[own].len() as u64)).expect("an index");
            self.give_back(own, index)
        } else {
            self.take()
        };
        let tag = self.guest.submit(thread, op).expect("the guest lives");
        self.owed.insert(tag, (thread, asked));
        self.busy[own] = true;
    }

    fn take(&mut self) -> (Op, Asked) {
        let size = (1 + self.draw(12)) * PAGE;
        match self.draw(10) {
            0..4 => {
                let zero = if self.draw(3) == 0 { MallocFlags::ZERO } else { MallocFlags::empty() };
                (Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT | zero }, Asked::Malloc(size))
            }
            4..6 => (Op::KmemAlloc { map: MapId::KERNEL, size }, Asked::Alloc(size)),
            6 => (Op::KmemAllocNofault { map: MapId::KERNEL, size }, Asked::Window(size)),
            7 => (Op::KmemAllocWait { map: MapId::EXEC, size }, Asked::Pageable(MapId::EXEC, size)),
            8 => (Op::KmemAllocWait { map: self.narrow, size: 2 * PAGE }, Asked::Pageable(self.narrow, 2 * PAGE)),
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
    fn receive(&mut self) {
        let Response { tag, outcome, .. } = self.guest.next_response().expect("the guest lives");
        let (thread, asked) = self.owed.remove(&tag).expect("it was asked for");
        let own = usize::from(thread);
        if let Outcome::Blocked { .. } = outcome {
            self.blocked.push((thread, asked));
            return;
        }
        self.busy[own] = false;
        let Outcome::Value(addr) = outcome else {
            assert!(matches!(outcome, Outcome::Ok | Outcome::Null), "{asked:?} gave {outcome:?}");
            return;
        };
        let addr = GuestVirt::new(addr);
        self.has[own].push(match asked {
            Asked::Malloc(size) => Has::Block(MapId::KMEM, addr, size),
            Asked::Alloc(size) => Has::Block(MapId::KERNEL, addr, size),
            Asked::Window(size) => Has::Window(addr, size, 0),
            Asked::Pageable(map, size) => Has::Pageable(map, addr, size),
            Asked::Other => panic!("nothing was asked for, and {addr} came"),
        });
    }

    /// Makes room in the narrow map and asks those who waited for their answers.
    fn unblock(&mut self) {
        for own in 0..usize::from(THREADS) {
            let narrow = self.narrow;
            let gives = |has: &Has| matches!(has, Has::Pageable(map, ..) if *map == narrow);
            if self.busy[own] {
                continue;
            }
            while let Some(index) = self.has[own].iter().position(gives) {
                let Has::Pageable(map, addr, size) = self.has[own].swap_remove(index) else { break };
                let thread = u16::try_from(own).expect("it is small");
                self.guest.call(thread, Op::KmemFreeWakeup { map, addr, size }).expect("the guest lives");
            }
        }
        for (thread, asked) in std::mem::take(&mut self.blocked) {
            let tag = self.guest.submit(thread, Op::Join { thread }).expect("the guest lives");
            self.owed.insert(tag, (thread, asked));
        }
    }

    /// A little work: every idle thread gets something to do, and a few answers are taken.
    fn step(&mut self) {
        for thread in 0..THREADS {
            if !self.busy[usize::from(thread)] {
                self.submit(thread);
            }
        }
        for _ in 0..1 + self.draw(6) {
            if self.owed.is_empty() {
                self.unblock();
            }
            self.receive();
        }
        if self.blocked.len() > 2 {
            self.unblock();
        }
    }
}

/// Looks at a guest at random moments. How many of the looks came upon work that was not done.
fn looks(seed: u64, vcpus: u32, time: TimeMode) -> u64 {
    let mut stress = Stress::new(seed, vcpus, time);
    let directory = tempfile::tempdir().expect("there is a directory for temporary files");
    let mut busy = 0;
    for look in 0..LOOKS {
        for _ in 0..1 + stress.draw(8) {
            stress.step();
        }
        // It works on while it is held: nobody takes an answer before.
        for thread in 0..THREADS {
            if !stress.busy[usize::from(thread)] {
                stress.submit(thread);
            }
        }
        busy += u64::from(stress.guest.in_flight() > 0);
        let report = if look % SAVED == 0 {
            let path = directory.path().join("good.img");
            let pause = stress.guest.pause().expect("it can be held");
            stress.guest.save_image(&path).expect("the image can be written");
            drop(pause);
            Report::of(&Image::open(&path).expect("the image can be read"))
        } else {
            stress.guest.check()
        };
        let report = report.expect("the roots can be read");
        assert!(report.is_clean(), "look {look}, seed {seed}, {vcpus} CPUs, {time:?}:\n{report}");
    }
    busy
}

/// A guest of each of `seeds`, every other one with a clock that ticks.
fn good(seeds: std::ops::Range<u64>, vcpus: u32) {
    let all = LOOKS * (seeds.end - seeds.start);
    let time = |seed| if seed % 2 == 0 { TimeMode::Virtual } else { TimeMode::Real };
    let busy: u64 = seeds.map(|seed| looks(seed, vcpus, time(seed))).sum();
    assert!(busy > all / 2, "only {busy} of {all} looks came upon a guest at work");
}

#[test]
fn nothing_is_found_in_500_images_of_guests_with_one_cpu() {
    good(0..4, 1);
}

#[test]
fn nothing_is_found_in_500_images_of_guests_with_several_cpus() {
    good(4..6, 2);
    good(6..8, 4);
}
