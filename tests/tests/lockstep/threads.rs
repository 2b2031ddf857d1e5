//! Several threads, interrupts and waits for room, on a guest and on the simulated machine.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vmkern::guest::Tunables;
use vmkern::testing::{Balance, TestGuest};
use vmkern::{Context, Guest, GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome};
use vmkern_tests::{MEMORY, launch, t};

use super::{OPERATIONS, sim_balance};
use kmem::sim::Sim;

/// Threads that operate.
const THREADS: u16 = 4;
/// Bytes of the map that they wait for room in.
const ROOM: u64 = 96 << 10;
/// Pages of kmem_map that may be live at a time.
const KMEM_PAGES: u64 = 2_000;

/// A range that a thread got.
#[derive(Clone, Copy)]
struct Range {
    map: MapId,
    addr: GuestVirt,
    size: u64,
}

/// A guest and a simulation that have performed the same operations so far.
struct Pair {
    guest: TestGuest,
    sim: Sim,
    rng: Xoshiro256PlusPlus,
    done: usize,
    /// What each blocked thread waits for.
    blocked: [Option<Op>; THREADS as usize],
    live: Vec<Range>,
    kmem_pages: u64,
    room: MapId,
}

impl Pair {
    fn new(seed: u64) -> Self {
        // The default sizes of the submaps follow from the number of pages, which depends on how
        // much the boot took.
        let mut tunables = Tunables::default();
        tunables.set("kern.nbuf", 1000).expect("the tunable exists");
        let builder = Guest::builder().memory(MEMORY).tunable("kern.nbuf", 1000);
        let mut pair = Self {
            guest: launch(builder),
            sim: Sim::boot(MEMORY, tunables),
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            done: 0,
            blocked: [None; THREADS as usize],
            live: Vec::new(),
            kmem_pages: 0,
            room: MapId::KERNEL,
        };
        // All threads are created before anything is counted.
        for thread in 0..THREADS {
            pair.run(thread, Op::Nop);
        }
        let op = Op::KmemSuballoc { parent: MapId::KERNEL, size: ROOM, kind: MapKind::User };
        match pair.run(0, op) {
            Outcome::Value(map) => pair.room = MapId(map),
            other => panic!("{op:?} gave {other:?}"),
        }
        pair
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    /// Performs the same operation on both, on a thread that is not blocked.
    fn run(&mut self, thread: u16, op: Op) -> Outcome {
        let guest = self
            .guest
            .call(t(thread), op)
            .unwrap_or_else(|error| panic!("{op:?}: {error}"))
            .outcome;
        let sim = match op {
            Op::Join { thread } => self.sim.finish(thread.into()),
            _ => self.sim.execute_on(thread.into(), op),
        };
        self.agree(op, guest, sim)
    }

    fn interrupt(&mut self, op: Op) -> Outcome {
        let guest = self
            .guest
            .call_in(Context::Interrupt, op)
            .unwrap_or_else(|error| panic!("{op:?}: {error}"))
            .outcome;
        let sim = self.sim.execute_in_interrupt(&op);
        self.sim.run();
        self.agree(op, guest, sim)
    }

    fn agree(&mut self, op: Op, guest: Outcome, sim: Outcome) -> Outcome {
        assert_eq!(guest, sim, "operation {}: {op:?}", self.done);
        self.done += 1;
        guest
    }

    /// A thread that is not blocked. There always is one: the last never gets an operation that
    /// blocks.
    fn idle_thread(&mut self) -> u16 {
        let start = self.below(THREADS.into());
        let threads = (0..THREADS).cycle().skip(usize::try_from(start).unwrap_or(0));
        threads
            .take(THREADS.into())
            .find(|&thread| self.blocked[usize::from(thread)].is_none())
            .expect("one is idle")
    }

    fn step(&mut self) {
        match self.below(10) {
            0..=2 => self.wait_for_room(),
            3 | 4 => self.allocate(),
            5 => self.interrupt_allocates(),
            6 => self.touch(),
            7 => self.join_one(),
            _ => self.free(),
        }
    }

    fn wait_for_room(&mut self) {
        let thread = self.idle_thread();
        if thread == THREADS - 1 {
            return;
        }
        let op = Op::KmemAllocWait { map: self.room, size: self.below(ROOM) + 1 };
        let outcome = self.run(thread, op);
        self.take(thread, op, outcome);
    }

    /// Notes the result of a wait for room.
    fn take(&mut self, thread: u16, op: Op, outcome: Outcome) {
        let Op::KmemAllocWait { map, size } = op else { panic!("{op:?} is not a wait for room") };
        match outcome {
            Outcome::Value(addr) => {
                self.blocked[usize::from(thread)] = None;
                self.live.push(Range { map, addr: GuestVirt::new(addr), size });
            }
            Outcome::Blocked { .. } => self.blocked[usize::from(thread)] = Some(op),
            other => panic!("{op:?} gave {other:?}"),
        }
    }

    fn join_one(&mut self) {
        let thread = u16::try_from(self.below(THREADS.into())).expect("a small number");
        if let Some(op) = self.blocked[usize::from(thread)] {
            let outcome = self.run(0, Op::Join { thread });
            self.take(thread, op, outcome);
        }
    }

    fn allocate(&mut self) {
        let (thread, size) = (self.idle_thread(), self.below(1 << 16));
        let flags = if self.below(2) == 0 {
            MallocFlags::NOWAIT
        } else {
            MallocFlags::NOWAIT | MallocFlags::ZERO
        };
        let outcome = self.run(thread, Op::KmemMalloc { map: MapId::KMEM, size, flags });
        self.take_kmem(size, outcome);
    }

    fn interrupt_allocates(&mut self) {
        let size = self.below(1 << 14);
        let outcome =
            self.interrupt(Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT });
        self.take_kmem(size, outcome);
    }

    fn take_kmem(&mut self, size: u64, outcome: Outcome) {
        match outcome {
            Outcome::Value(addr) => {
                self.kmem_pages += size.div_ceil(4096);
                self.live.push(Range { map: MapId::KMEM, addr: GuestVirt::new(addr), size });
                while self.kmem_pages > KMEM_PAGES {
                    self.free();
                }
            }
            Outcome::Null => {}
            other => panic!("kmem_malloc gave {other:?}"),
        }
    }

    /// Writes to a live range, with page faults if it is pageable, and reads it back.
    fn touch(&mut self) {
        let bound = self.live.len() as u64;
        if bound == 0 {
            return;
        }
        let index = usize::try_from(self.below(bound)).expect("an index");
        let Range { addr, size, .. } = self.live[index];
        let (thread, seed) = (self.idle_thread(), self.rng.next_u64());
        assert_eq!(self.run(thread, Op::Fill { addr, size, seed }), Outcome::Ok);
        assert_eq!(self.run(thread, Op::Verify { addr, size, seed }), Outcome::Ok);
    }

    fn free(&mut self) {
        let bound = self.live.len() as u64;
        if bound == 0 {
            return;
        }
        let index = usize::try_from(self.below(bound)).expect("an index");
        let Range { map, addr, size } = self.live.swap_remove(index);
        let thread = self.idle_thread();
        if map == MapId::KMEM {
            self.kmem_pages -= size.div_ceil(4096);
            let op = Op::KmemFree { map, addr, size };
            let _ = if self.below(4) == 0 { self.interrupt(op) } else { self.run(thread, op) };
        } else {
            self.run(thread, Op::KmemFreeWakeup { map, addr, size });
        }
    }

    /// Frees everything, until no thread waits any more.
    fn finish(&mut self) {
        while !self.live.is_empty() || self.blocked.iter().any(Option::is_some) {
            self.free();
            for thread in 0..THREADS {
                if let Some(op) = self.blocked[usize::from(thread)] {
                    let outcome = self.run(THREADS - 1, Op::Join { thread });
                    self.take(thread, op, outcome);
                }
            }
        }
    }

    fn assert_same_counters(&self, start: &(Balance, Balance)) {
        let (guest, sim) = (Balance::of(&self.guest), sim_balance(&self.sim));
        assert_eq!(
            start.0.free - guest.free,
            start.1.free - sim.free,
            "pages taken, after {} operations",
            self.done
        );
        assert_eq!(guest.wired - start.0.wired, sim.wired - start.1.wired, "pages wired");
        assert_eq!(guest.kernel_entries, sim.kernel_entries, "entries of kernel_map");
        assert_eq!(
            (guest.kmem_entries, guest.kmem_size),
            (sim.kmem_entries, sim.kmem_size),
            "kmem_map"
        );
        let map = self.guest.map_stats(self.room).expect("the map can be read");
        let vm = self.sim.vm();
        let same = vm.get(vm.map_by_id(self.room).expect("the map exists"));
        assert_eq!(
            (map.entries, map.size),
            (same.nentries.get(), same.size.get()),
            "the map that threads wait for"
        );
    }
}

#[test]
fn guest_and_simulation_agree_on_ten_thousand_operations_of_threads_that_wait_and_interrupts() {
    for seed in 0..2 {
        let mut pair = Pair::new(seed);
        let start = (Balance::of(&pair.guest), sim_balance(&pair.sim));
        let mut waits = 0;
        while pair.done < OPERATIONS {
            pair.step();
            waits += pair.blocked.iter().flatten().count();
            if pair.done.is_multiple_of(97) {
                pair.assert_same_counters(&start);
            }
        }
        assert!(waits > OPERATIONS / 10, "threads seldom had to wait");
        pair.finish();
        pair.assert_same_counters(&start);
        assert_eq!(pair.guest.map_stats(pair.room).expect("the map can be read").entries, 0);
    }
}
