//! Allocations that are freed again leave nothing behind, in any order.

use proptest::prelude::*;
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::MapId;

use super::super::Sim;
use super::super::check::check;
use super::{MIB, NOWAIT, ZEROED};

/// The values that scripts compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Balance {
    free: u64,
    wired: u64,
    map_pages: u64,
}

impl Balance {
    fn of(sim: &Sim) -> Self {
        let cnt = sim.vm().cnt();
        Self {
            free: cnt.v_free_count.get(),
            wired: cnt.v_wire_count.get(),
            map_pages: sim.vm().state().map_pages.get(),
        }
    }
}

/// Entries of kernel_map and kmem_map.
fn entries(sim: &Sim) -> [u64; 2] {
    [MapId::KERNEL, MapId::KMEM].map(|id| sim.map(id).nentries.get())
}

/// A small generator (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below a usize")
    }

    fn pages(&mut self, most: usize) -> u64 {
        (1 + self.below(most)) as u64 * PAGE_SIZE
    }
}

/// The kind of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Nofault,
}

/// Which blocks are sometimes freed in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parts {
    /// All.
    Any,
    /// Those with memory behind them. A map cannot distinguish a part of a range without an object
    /// from a whole range, and keeps fewer entries for the rest, until all are free.
    Memory,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    kind: Kind,
    map: MapId,
    addr: GuestVirt,
    size: u64,
}

/// A machine whose page tables already reach as far as any test here needs: only page tables are
/// never freed.
fn grown() -> Sim {
    let sim = Sim::boot(128 * MIB, Tunables::default());
    let addr = sim.nofault(256 * MIB).expect("there is room");
    sim.free(MapId::KERNEL, addr, 256 * MIB);
    sim
}

struct History {
    sim: Sim,
    random: Random,
    live: Vec<Block>,
    parts: Parts,
}

impl History {
    fn allocate(&mut self) {
        let size = self.random.pages(4);
        let (kind, map, addr) = match self.random.below(6) {
            0 => (Kind::Memory, MapId::KMEM, self.sim.malloc(size, ZEROED)),
            1 | 2 => (Kind::Memory, MapId::KMEM, self.sim.malloc(size, NOWAIT)),
            3 => (Kind::Memory, MapId::KERNEL, self.sim.alloc(size)),
            _ => (Kind::Nofault, MapId::KERNEL, self.sim.nofault(size)),
        };
        self.live.extend(addr.map(|addr| Block { kind, map, addr, size }));
    }

    fn free(&self, block: Block) {
        self.sim.free(block.map, block.addr, block.size);
    }

    fn free_one(&mut self) {
        if !self.live.is_empty() {
            let which = self.random.below(self.live.len());
            let block = self.live.swap_remove(which);
            self.free(block);
        }
    }

    /// Frees the first page of a larger block.
    fn free_part(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let which = self.random.below(self.live.len());
        let block = &mut self.live[which];
        if block.size > PAGE_SIZE && (self.parts == Parts::Any || block.kind == Kind::Memory) {
            let part = Block { size: PAGE_SIZE, ..*block };
            block.addr = block.addr.add(PAGE_SIZE);
            block.size -= PAGE_SIZE;
            self.free(part);
        }
    }

    /// Allocates and frees until there are `most` live blocks, or memory is short.
    fn grow(&mut self, most: usize) {
        while self.live.len() < most && self.sim.free_pages() > 2000 {
            match self.random.below(16) {
                0..11 => self.allocate(),
                11..15 => self.free_one(),
                _ => self.free_part(),
            }
        }
    }

    /// Frees live blocks down to `rest`, in random order.
    fn shrink(&mut self, rest: usize) {
        while self.live.len() > rest {
            self.free_one();
        }
    }

    /// Frees everything, neighbours of a map in one call.
    fn free_in_runs(&mut self) {
        let mut runs: Vec<Block> = Vec::new();
        self.live.sort_by_key(|block| (block.map.0, block.addr));
        for block in self.live.drain(..) {
            match runs.last_mut() {
                Some(run) if run.map == block.map && run.addr.add(run.size) == block.addr => {
                    run.size += block.size
                }
                _ => runs.push(block),
            }
        }
        self.live = runs;
        self.shrink(0);
    }
}

fn history(seed: u64, parts: Parts) -> History {
    History { sim: grown(), random: Random(seed | 1), live: Vec::new(), parts }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_allocations_that_are_all_freed_leaves_what_was_there_after_boot(
        seed in any::<u64>(),
        peaks in prop::collection::vec((1usize..4000, 0usize..200), 1..4),
        in_runs in any::<bool>(),
    ) {
        let mut history = history(seed, Parts::Any);
        let before = (Balance::of(&history.sim), entries(&history.sim));
        for (most, rest) in peaks {
            history.grow(most);
            history.shrink(rest);
        }
        check(&history.sim);
        if in_runs {
            history.free_in_runs();
        } else {
            history.shrink(0);
        }
        check(&history.sim);
        prop_assert_eq!((Balance::of(&history.sim), entries(&history.sim)), before);
    }

    #[test]
    fn what_stays_allocated_takes_as_many_pages_after_any_history_as_before(
        seed in any::<u64>(),
        staying in 1usize..1500,
        most in 1usize..2500,
    ) {
        let mut history = history(seed, Parts::Memory);
        history.grow(staying);
        let before = Balance::of(&history.sim);
        let stays = std::mem::take(&mut history.live);
        history.grow(most);
        history.shrink(0);
        check(&history.sim);
        prop_assert_eq!(Balance::of(&history.sim), before);
        history.live = stays;
        history.shrink(0);
    }
}

#[test]
fn thousands_of_ranges_that_merge_and_split_leave_what_was_there_after_boot() {
    let sim = grown();
    let before = (Balance::of(&sim), entries(&sim));
    for round in 0..4 {
        let size = (1 + round % 2) * PAGE_SIZE;
        let ranges: Vec<_> = (0..5000).map(|_| sim.nofault(size).expect("there is room")).collect();
        for &addr in ranges.iter().skip(1).step_by(2) {
            sim.free(MapId::KERNEL, addr, size);
        }
        assert!(sim.map(MapId::KERNEL).nentries.get() > 2500);
        let again: Vec<_> = (0..1000).map(|_| sim.nofault(size).expect("there is room")).collect();
        check(&sim);
        again
            .iter()
            .rev()
            .chain(ranges.iter().step_by(2))
            .for_each(|&addr| sim.free(MapId::KERNEL, addr, size));
        assert_eq!((Balance::of(&sim), entries(&sim)), before, "round {round}");
    }
}

#[test]
fn a_block_that_comes_and_goes_takes_pages_for_nothing_but_itself() {
    let mut history = history(11, Parts::Any);
    for most in [0, 1, 5, 100, 1000] {
        history.grow(most);
        let sim = &history.sim;
        let before = Balance::of(sim);
        for _ in 0..100 {
            let addr = sim.malloc(3 * PAGE_SIZE, NOWAIT).expect("there is memory");
            assert_eq!(
                Balance::of(sim),
                Balance { free: before.free - 3, wired: before.wired + 3, ..before }
            );
            sim.free(MapId::KMEM, addr, 3 * PAGE_SIZE);
            assert_eq!(Balance::of(sim), before);
        }
    }
}
