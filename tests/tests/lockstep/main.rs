//! A guest and the simulated machine replay one list of operations: equal results, equal addresses,
//! equal counters.

mod threads;

use kmem::sim::Sim;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vmkern::abi::layout::Protection;
use vmkern::guest::Tunables;
use vmkern::testing::{Balance, TestGuest};
use vmkern::{Guest, GuestVirt, KernReturn, MallocFlags, MapId, Op, Outcome};
use vmkern_tests::{MEMORY, Run, launch};

/// Operations of one run.
const OPERATIONS: usize = 10_000;
/// The most pages that may be live at a time.
const LIVE_PAGES: u64 = 3_000;

/// The same operation on both.
struct Pair {
    guest: TestGuest,
    sim: Sim,
    done: usize,
    protections: usize,
}

impl Pair {
    fn run(&mut self, op: Op) -> Outcome {
        let (guest, sim) = (self.guest.run(op), self.sim.execute_on(0, op));
        match op {
            // Physical addresses depend on where the boot found memory; their existence does not.
            Op::Vtop { .. } => assert_eq!(guest == Outcome::Null, sim == Outcome::Null, "{op:?}"),
            _ => assert_eq!(guest, sim, "operation {} {op:?}", self.done),
        }
        self.done += 1;
        guest
    }

    /// Checks the counters that do not depend on how much memory the boot took.
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
        assert_eq!(guest.kmem_entries, sim.kmem_entries, "entries of kmem_map");
        assert_eq!(guest.kmem_size, sim.kmem_size, "bytes in use in kmem_map");
    }
}

fn sim_balance(sim: &Sim) -> Balance {
    let vm = sim.vm();
    let map = |id| vm.get(vm.map_by_id(id).expect("the map exists"));
    let (kernel, kmem) = (map(MapId::KERNEL), map(MapId::KMEM));
    Balance {
        free: vm.cnt().v_free_count.get(),
        wired: vm.cnt().v_wire_count.get(),
        kernel_entries: kernel.nentries.get(),
        kmem_entries: kmem.nentries.get(),
        kmem_size: kmem.size.get(),
    }
}

/// What a live range consists of.
#[derive(Clone, Copy, PartialEq)]
enum Backing {
    Memory,
    Nothing,
    Entered,
}

struct Range {
    map: MapId,
    addr: GuestVirt,
    pages: u64,
    backing: Backing,
    seed: u64,
    /// Pages at the beginning that were never protected.
    open: u64,
    /// What the others allow.
    tail: Protection,
}

impl Range {
    /// Pages from the beginning on that can be read.
    fn readable(&self) -> u64 {
        if self.tail.contains(Protection::READ) { self.pages } else { self.open }
    }

    fn is_writable(&self) -> bool {
        self.open == self.pages || self.tail.contains(Protection::WRITE)
    }
}

struct Script {
    rng: Xoshiro256PlusPlus,
    live: Vec<Range>,
    pages: u64,
}

impl Script {
    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn step(&mut self, pair: &mut Pair) {
        match self.below(10) {
            0..=3 if self.pages < LIVE_PAGES => self.allocate(pair),
            4 => self.change_backing(pair),
            5 => self.look(pair),
            8 => self.protect(pair),
            9 => self.write(pair),
            _ => self.free(pair),
        }
    }

    fn allocate(&mut self, pair: &mut Pair) {
        // Mostly small, sometimes large; the sizes are not multiples of the page size.
        let size = if self.below(16) == 0 { self.below(1 << 20) } else { self.below(1 << 16) };
        let all = MallocFlags::NOWAIT | MallocFlags::ZERO;
        let (map, backing, op) = match self.below(6) {
            0 => (MapId::KERNEL, Backing::Memory, Op::KmemAlloc { map: MapId::KERNEL, size }),
            1 => {
                (MapId::KERNEL, Backing::Nothing, Op::KmemAllocNofault { map: MapId::KERNEL, size })
            }
            2 => (
                MapId::KMEM,
                Backing::Memory,
                Op::KmemMalloc { map: MapId::KMEM, size, flags: all },
            ),
            _ => (
                MapId::KMEM,
                Backing::Memory,
                Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT },
            ),
        };
        match pair.run(op) {
            Outcome::Value(addr) => {
                let (addr, pages, seed) =
                    (GuestVirt::new(addr), size.div_ceil(4096), self.rng.next_u64());
                if backing == Backing::Memory {
                    pair.run(Op::Fill { addr, size: pages * 4096, seed });
                    self.pages += pages;
                }
                let (open, tail) = (pages, Protection::ALL);
                self.live.push(Range { map, addr, pages, backing, seed, open, tail });
            }
            Outcome::Null => {}
            other => panic!("{op:?} gave {other:?}"),
        }
    }

    fn pick(&mut self) -> Option<usize> {
        let bound = self.live.len() as u64;
        (bound > 0).then(|| usize::try_from(self.below(bound)).expect("an index"))
    }

    /// Maps pages into an empty window, or removes them.
    fn change_backing(&mut self, pair: &mut Pair) {
        let Some(range) = self.live.iter_mut().find(|range| range.backing != Backing::Memory)
        else {
            return;
        };
        let (addr, count) = (range.addr, range.pages);
        range.backing = match range.backing {
            Backing::Nothing => {
                assert_eq!(pair.run(Op::PmapQenter { addr, count }), Outcome::Ok);
                pair.run(Op::Fill { addr, size: count * 4096, seed: range.seed });
                Backing::Entered
            }
            _ => {
                pair.run(Op::Verify { addr, size: count * 4096, seed: range.seed });
                pair.run(Op::PmapQremove { addr, count });
                Backing::Nothing
            }
        };
    }

    fn look(&mut self, pair: &mut Pair) {
        let Some(index) = self.pick() else { return };
        let offset = self.below(self.live[index].pages * 4096);
        let range = &self.live[index];
        pair.run(Op::Vtop { addr: range.addr.add(offset) });
        if range.backing != Backing::Nothing {
            let outcome = pair.run(Op::Verify {
                addr: range.addr,
                size: range.readable() * 4096,
                seed: range.seed,
            });
            assert_eq!(outcome, Outcome::Ok);
        }
    }

    /// Protects the end of a range, from a page on that was never protected: entries are cut, and
    /// merged again.
    fn protect(&mut self, pair: &mut Pair) {
        let Some(index) = self.pick() else { return };
        let from = self.below(self.live[index].open.min(self.live[index].pages - 1) + 1);
        let rw = Protection::READ | Protection::WRITE;
        let protection = match self.below(4) {
            0 => Protection::READ,
            1 => Protection::empty(),
            _ => rw,
        };
        let range = &mut self.live[index];
        if range.backing == Backing::Entered {
            return;
        }
        let (map, addr) = (range.map, range.addr.add(from * 4096));
        let size = (range.pages - from) * 4096;
        let unaligned = Op::Protect { map, addr, size: size - 1, protection };
        assert_eq!(pair.run(unaligned), Outcome::Error(KernReturn::InvalidArgument));
        assert_eq!(pair.run(Op::Protect { map, addr, size, protection }), Outcome::Ok);
        pair.protections += 1;
        (range.open, range.tail) = (from, protection);
    }

    /// Writes to a range that allows it, with soft faults where its translations are gone.
    fn write(&mut self, pair: &mut Pair) {
        let Some(index) = self.pick() else { return };
        let seed = self.rng.next_u64();
        let range = &mut self.live[index];
        if range.backing == Backing::Memory && range.is_writable() {
            range.seed = seed;
            let (addr, size) = (range.addr, range.pages * 4096);
            assert_eq!(pair.run(Op::Fill { addr, size, seed }), Outcome::Ok);
        }
    }

    /// Frees a range or only its end, with sizes and addresses that are not multiples of the page
    /// size.
    fn free(&mut self, pair: &mut Pair) {
        let Some(index) = self.pick() else { return };
        let keep = if self.below(4) == 0 { self.below(self.live[index].pages) } else { 0 };
        if self.live[index].backing == Backing::Entered {
            self.change_backing_of(pair, index);
        }
        let range = &mut self.live[index];
        let (map, gone) = (range.map, range.pages - keep);
        pair.run(Op::KmemFree {
            map,
            addr: range.addr.add(keep * 4096 + 7),
            size: gone * 4096 - 9,
        });
        if range.backing == Backing::Memory {
            self.pages -= gone;
        }
        range.pages = keep;
        range.open = range.open.min(keep);
        if keep == 0 {
            self.live.swap_remove(index);
        }
    }

    fn change_backing_of(&mut self, pair: &mut Pair, index: usize) {
        let range = &mut self.live[index];
        pair.run(Op::PmapQremove { addr: range.addr, count: range.pages });
        range.backing = Backing::Nothing;
    }
}

#[test]
fn guest_and_simulation_agree_on_ten_thousand_operations() {
    for seed in 0..2 {
        // The default sizes of the submaps follow from the number of pages, which depends on how
        // much the boot took.
        let mut tunables = Tunables::default();
        tunables.set("kern.nbuf", 1000).expect("the tunable exists");
        let builder = Guest::builder().memory(MEMORY).tunable("kern.nbuf", 1000);
        let mut pair = Pair {
            guest: launch(builder),
            sim: Sim::boot(MEMORY, tunables),
            done: 0,
            protections: 0,
        };
        // Both create the working thread before anything is counted.
        pair.run(Op::Nop);
        let start = (Balance::of(&pair.guest), sim_balance(&pair.sim));
        let mut script =
            Script { rng: Xoshiro256PlusPlus::seed_from_u64(seed), live: Vec::new(), pages: 0 };
        while pair.done < OPERATIONS {
            script.step(&mut pair);
            if pair.done.is_multiple_of(97) {
                pair.assert_same_counters(&start);
            }
        }
        pair.assert_same_counters(&start);
        assert!(pair.protections > OPERATIONS / 100, "only {} protections", pair.protections);
    }
}
