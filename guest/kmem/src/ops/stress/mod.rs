//! One thread's part of a random mix of all functions.
//!
//! Several threads share the maps and fill them to between 70 and 95 percent: each has a quota of
//! every map, and frees when it comes near. Memory is filled with a pattern and verified before it
//! is freed, in whole or in part; memory that must come zeroed is verified to be zero. Live blocks
//! are listed in books ([`book`]), in memory that the operation itself allocates.
//!
//! **Waiting.** No thread waits for ever: a thread holds at most one block of exec_map and one of
//! the other pageable map, takes the first only while it holds none of the second, and waits for
//! address space of the system maps for a single page, which the quotas leave, or now and then for
//! a few in kmem_map while its own part is half empty.

mod book;

use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MallocFlags, MapId, Outcome};
use vmkern_abi::layout::VmMap;
use vmkern_abi::pattern;

use self::book::{Block, Book};
use super::{Access, bytes, qenter};
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::Sleep;
use crate::vm::{Vm, VmMachine};

/// Pages of a buffer of exec_map, as execve requests them.
const EXEC_PAGES: u64 = 66;
/// Most pages of kernel_map that a thread has, of each sort.
const KERNEL_QUOTA: u64 = 48;

/// The function and map from which a block comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// `kmem_malloc` from kmem_map.
    Kmem,
    /// `kmem_malloc` from another system map.
    System,
    /// `kmem_alloc` from kernel_map.
    Wired,
    /// `kmem_alloc_nofault` from kernel_map, with all pages except the first entered by
    /// `pmap_qenter`.
    Nofault,
    /// `kmem_alloc_wait` from exec_map.
    Exec,
    /// `kmem_alloc_wait` from another pageable map.
    Pageable,
}

const SORTS: [Sort; 6] =
    [Sort::Kmem, Sort::System, Sort::Wired, Sort::Nofault, Sort::Exec, Sort::Pageable];

/// A thread's part.
struct Stress<'a, M: VmMachine, A> {
    vm: &'a Vm<M>,
    access: &'a A,
    /// State of the random numbers.
    random: u64,
    /// Seed of the next block's pattern.
    next_seed: u64,
    /// Maps by sort.
    maps: [KPtr<VmMap>; 6],
    /// Pages that it may have, by sort.
    quotas: [u64; 6],
    /// Blocks, by sort.
    books: [Book; 6],
    done: u64,
}

/// Runs a thread's part. See [`vmkern_abi::control::Workload::Stress`]; `others` are its maps, the
/// pageable one first. Locks: none may be held. Sleeps.
pub fn run<M: VmMachine, A: Access>(
    vm: &Vm<M>,
    access: &A,
    seed: u64,
    operations: u64,
    parties: u64,
    others: [MapId; 2],
) -> Outcome {
    // 1. The maps, by sort.
    let ids = [MapId::KMEM, others[1], MapId::KERNEL, MapId::KERNEL, MapId::EXEC, others[0]];
    let maps = ids.map(|id| vm.map_by_id(id).unwrap_or(KPtr::NULL));
    let is_system = |sort: Sort| {
        !maps[sort as usize].is_null() && vm.get(maps[sort as usize]).system_map.is_set()
    };
    let is_pageable = |sort: Sort| !maps[sort as usize].is_null() && !is_system(sort);
    if parties == 0 || !is_system(Sort::System) || !is_pageable(Sort::Pageable) {
        return Outcome::Error(KernReturn::InvalidArgument);
    }
    // 2. This thread's share of each, of 95 percent of the maps that all share.
    let quotas = SORTS.map(|sort| match sort {
        Sort::Kmem | Sort::System | Sort::Pageable => {
            let map = vm.get(maps[sort as usize]);
            (map.max_offset().since(map.min_offset()) / PAGE_SIZE * 95 / 100 / parties).max(1)
        }
        Sort::Wired | Sort::Nofault => KERNEL_QUOTA,
        Sort::Exec => EXEC_PAGES,
    });
    // 3. The work.
    let books = [const { Book::new() }; 6];
    let mut stress = Stress {
        vm,
        access,
        random: seed,
        next_seed: seed.wrapping_mul(0x1_0001),
        maps,
        quotas,
        books,
        done: 0,
    };
    match stress.mix(operations) {
        Ok(()) => Outcome::Value(stress.done),
        Err(wrong) => wrong,
    }
}

fn expect_ok(outcome: Outcome) -> Result<(), Outcome> {
    if outcome == Outcome::Ok { Ok(()) } else { Err(outcome) }
}

impl<M: VmMachine, A: Access> Stress<'_, M, A> {
    /// A random number below `bound`, by `SplitMix64`.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }

    fn mix(&mut self, operations: u64) -> Result<(), Outcome> {
        // In the meantime the CPU that takes the requests can take those of the other parties.
        let channel = WaitChannel::of(self.vm.current_thread());
        // Nothing that others could change has been read yet.
        let (Sleep::Woken | Sleep::TimedOut) = self.vm.tsleep(channel, 0, "stress", 2);
        while self.done < operations {
            self.step()?;
        }
        for sort in SORTS {
            while self.book(sort).len() > 0 {
                self.free_one(sort, Part::Whole)?;
            }
            self.books[sort as usize].close(self.vm);
        }
        Ok(())
    }

    fn book(&self, sort: Sort) -> &Book {
        &self.books[sort as usize]
    }

    fn step(&mut self) -> Result<(), Outcome> {
        // 1. The next operation: sometimes a reclaim, otherwise a sort and a size.
        let sort = match self.below(512) {
            0 => {
                self.vm.uma_reclaim();
                self.done += 1;
                return Ok(());
            }
            1..250 => Sort::Kmem,
            250..350 => Sort::System,
            350..410 => Sort::Wired,
            410..450 => Sort::Nofault,
            450..460 => Sort::Exec,
            _ => Sort::Pageable,
        };
        let (used, quota) = (self.book(sort).pages(), self.quotas[sort as usize]);
        let pages = match sort {
            Sort::Exec => EXEC_PAGES,
            Sort::Pageable => quota - self.below(quota / 4 + 1),
            // A guard and at least a page.
            Sort::Nofault => 2 + self.below(4),
            _ if self.below(16) == 0 => 1 + self.below(16),
            _ => 1 + self.below(4),
        };
        if matches!(sort, Sort::Exec | Sort::Pageable) && used > 0 {
            // 2. One block at a time: free a part of it, or all of it and allocate the next at
            //    once.
            if self.below(4) == 0 {
                return self.free_one(sort, Part::Some);
            }
            while self.book(sort).len() > 0 {
                self.free_one(sort, Part::Whole)?;
            }
            return self.allocate(sort, pages);
        }
        // 3. Of the other sorts, an allocation or a free, as the quota says.
        let is_full = used + pages > quota;
        // Between 74 and 100 percent of the quota, which are 70 and 95 of the map, chance decides.
        if is_full || (used * 100 > quota * 74 && self.below(2) == 0) {
            let part = if self.below(4) == 0 { Part::Some } else { Part::Whole };
            return self.free_one(sort, part);
        }
        self.allocate(sort, pages)
    }

    /// Tries to allocate a block of `pages` pages, uses it and enters it into the book.
    fn allocate(&mut self, sort: Sort, pages: u64) -> Result<(), Outcome> {
        // 1. The block. The allocation may fail: then nothing is entered.
        self.done += 1;
        let (vm, map, mut size) = (self.vm, self.maps[sort as usize], pages * PAGE_SIZE);
        let mut is_zeroed = true;
        let addr = match sort {
            Sort::Kmem | Sort::System => {
                let flags;
                (flags, size) = self.malloc_flags(sort, size);
                is_zeroed = flags.contains(MallocFlags::ZERO);
                vm.kmem_malloc(map, size, flags)
            }
            Sort::Wired => vm.kmem_alloc(map, size),
            Sort::Nofault => {
                is_zeroed = false;
                vm.kmem_alloc_nofault(map, size)
            }
            Sort::Exec => {
                // A thread that holds a block of the other pageable map does not wait for this one.
                while self.book(Sort::Pageable).len() > 0 {
                    self.free_one(Sort::Pageable, Part::Whole)?;
                }
                vm.kmem_alloc_wait(map, size)
            }
            Sort::Pageable => vm.kmem_alloc_wait(map, size),
        };
        let Some(addr) = addr else { return Ok(()) };
        // 2. The pages that are used: `[first, end)`.
        let pages = size / PAGE_SIZE;
        let (first, end) = match sort {
            Sort::Nofault => (1, pages),
            Sort::Exec | Sort::Pageable => (0, pages.min(1 + self.below(4))),
            _ => (0, pages),
        };
        let (start, bytes) = (addr.add(first * PAGE_SIZE), (end - first) * PAGE_SIZE);
        if sort == Sort::Nofault && qenter::enter(vm, start, end - first) != Outcome::Ok {
            vm.kmem_free(map, addr, size);
            return Ok(());
        }
        // 3. Their contents, and the entry in the book.
        self.next_seed = self.next_seed.wrapping_add(1);
        let seed = self.next_seed;
        if is_zeroed {
            expect_ok(bytes::verify(self.access, start, bytes, |_| 0))?;
        }
        expect_ok(bytes::fill(self.access, start, bytes, |at| pattern::word(at, seed)))?;
        let block = Block { addr, pages, first, end, seed };
        self.enter(sort, block)
    }

    fn enter(&mut self, sort: Sort, block: Block) -> Result<(), Outcome> {
        let result = self.books[sort as usize].push(self.vm, self.access, &block);
        result.map_err(|_| Outcome::Error(KernReturn::ResourceShortage))
    }

    /// Random flags, and the size that they allow: a request that may wait for room is small.
    fn malloc_flags(&mut self, sort: Sort, size: u64) -> (MallocFlags, u64) {
        let mut flags = MallocFlags::empty();
        flags.set(MallocFlags::ZERO, self.below(2) == 0);
        flags.set(MallocFlags::USE_RESERVE, self.below(4) == 0);
        if self.below(4) != 0 {
            return (flags | MallocFlags::NOWAIT, size);
        }
        flags.set(MallocFlags::WAITOK, self.below(2) == 0);
        let has_plenty = self.book(sort).pages() * 2 < self.quotas[sort as usize];
        let most = if sort == Sort::Kmem && has_plenty { 4 } else { 1 };
        (flags, size.min(most * PAGE_SIZE))
    }

    /// Verifies and frees a random block of this sort, or part of one. Does nothing when there is
    /// none.
    fn free_one(&mut self, sort: Sort, part: Part) -> Result<(), Outcome> {
        self.done += 1;
        let len = self.book(sort).len();
        if len == 0 {
            return Ok(());
        }
        let victim = self.below(len);
        let block = self.books[sort as usize].swap_remove(self.access, victim);
        let (from, to) = match part {
            Part::Whole => (0, block.pages),
            Part::Some => {
                let from = self.below(block.pages);
                (from, from + 1 + self.below(block.pages - from))
            }
        };
        self.release(sort, &block, from, to)?;
        for rest in [block.part(0, from), block.part(to, block.pages)].into_iter().flatten() {
            self.enter(sort, rest)?;
        }
        Ok(())
    }

    /// Verifies and frees the pages `[from, to)` of `block`.
    fn release(&mut self, sort: Sort, block: &Block, from: u64, to: u64) -> Result<(), Outcome> {
        let (vm, map, seed) = (self.vm, self.maps[sort as usize], block.seed);
        let (first, end) = (block.first.clamp(from, to), block.end.clamp(from, to));
        let at = |page: u64| block.addr.add(page * PAGE_SIZE);
        let bytes = (end - first) * PAGE_SIZE;
        expect_ok(bytes::verify(self.access, at(first), bytes, |va| pattern::word(va, seed)))?;
        if sort == Sort::Nofault && first < end {
            expect_ok(qenter::remove(vm, at(first), end - first))?;
        }
        let size = (to - from) * PAGE_SIZE;
        match sort {
            Sort::Exec | Sort::Pageable => vm.kmem_free_wakeup(map, at(from), size),
            _ => vm.kmem_free(map, at(from), size),
        }
        Ok(())
    }
}

/// How much of a block is freed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it.
    Whole,
    /// Some of its pages, next to each other.
    Some,
}
