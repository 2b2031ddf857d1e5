//! The list of live blocks, in memory of kernel_map that grows with them.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};

use super::super::{Access, Intent};
use crate::num::to_usize;
use crate::vm::{Shortage, Vm, VmMachine};

/// Words of a block in the book, a power of two.
const WORDS: u64 = 8;
/// Blocks in a page of the book.
const PER_PAGE: u64 = PAGE_SIZE / (WORDS * 8);

/// A block: `pages` pages from `addr` on, of which those of `[first, end)` hold the pattern of
/// `seed`.
#[derive(Clone, Copy)]
pub struct Block {
    pub addr: GuestVirt,
    pub pages: u64,
    pub first: u64,
    pub end: u64,
    pub seed: u64,
}

impl Block {
    /// The pages `[from, to)` as a block, unless there are none.
    pub fn part(&self, from: u64, to: u64) -> Option<Self> {
        let within = |page: u64| page.clamp(from, to) - from;
        let addr = self.addr.add(from * PAGE_SIZE);
        let (first, end) = (within(self.first), within(self.end));
        (from < to).then_some(Self { addr, pages: to - from, first, end, seed: self.seed })
    }
}

/// The blocks of one sort, in no particular order.
pub struct Book {
    /// The address of the book; meaningless while `pages_of_book` is 0.
    addr: GuestVirt,
    /// Pages of the book itself.
    pages_of_book: u64,
    len: u64,
    pages: u64,
}

impl Book {
    /// An empty book, without memory.
    pub const fn new() -> Self {
        Self { addr: GuestVirt::new(0), pages_of_book: 0, len: 0, pages: 0 }
    }

    /// Blocks.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Pages of all blocks.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    fn words<'a, A: Access>(
        &self,
        access: &'a A,
        index: u64,
    ) -> &'a [vmkern_abi::field::Field<u64>] {
        access.words(self.addr.add(index * WORDS * 8), to_usize(WORDS), Intent::Write)
    }

    fn get<A: Access>(&self, access: &A, index: u64) -> Block {
        let words = self.words(access, index);
        Block {
            addr: GuestVirt::new(words[0].get()),
            pages: words[1].get(),
            first: words[2].get(),
            end: words[3].get(),
            seed: words[4].get(),
        }
    }

    fn set<A: Access>(&self, access: &A, index: u64, block: &Block) {
        let values = [block.addr.get(), block.pages, block.first, block.end, block.seed];
        self.words(access, index).iter().zip(values).for_each(|(word, value)| word.set(value));
    }

    /// Adds `block`. May sleep.
    pub fn push<M: VmMachine, A: Access>(
        &mut self,
        vm: &Vm<M>,
        access: &A,
        block: &Block,
    ) -> Result<(), Shortage> {
        if self.len == self.pages_of_book * PER_PAGE {
            self.grow(vm, access)?;
        }
        self.set(access, self.len, block);
        self.len += 1;
        self.pages += block.pages;
        Ok(())
    }

    /// Removes the block number `index`; the last block gets its number.
    pub fn swap_remove<A: Access>(&mut self, access: &A, index: u64) -> Block {
        let block = self.get(access, index);
        self.len -= 1;
        let last = self.get(access, self.len);
        self.set(access, index, &last);
        self.pages -= block.pages;
        block
    }

    /// Moves the book to twice the memory.
    fn grow<M: VmMachine, A: Access>(&mut self, vm: &Vm<M>, access: &A) -> Result<(), Shortage> {
        let pages = (self.pages_of_book * 2).max(1);
        let addr = vm.kmem_alloc(vm.kernel_map(), pages * PAGE_SIZE).ok_or(Shortage)?;
        let larger = Self { addr, pages_of_book: pages, ..*self };
        for index in 0..self.len {
            larger.set(access, index, &self.get(access, index));
        }
        self.close(vm);
        *self = larger;
        Ok(())
    }

    /// Frees its memory.
    pub fn close<M: VmMachine>(&self, vm: &Vm<M>) {
        if self.pages_of_book != 0 {
            vm.kmem_free(vm.kernel_map(), self.addr, self.pages_of_book * PAGE_SIZE);
        }
    }
}
