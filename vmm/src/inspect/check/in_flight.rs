//! What a thread in the middle of an operation has in its hands: pages and items that no structure leads to, but words
//! on its stack do.
//!
//! As a collector that knows no types does, every word on the stack of a thread that does not wait for work counts as a
//! pointer. The running thread's registers are in a trap frame on its stack when the guest was stopped at a quiescent point.
//! Nothing is read until something is suspected to be lost.

use std::collections::HashSet;

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::kva::phys_to_dmap;

use super::context::Context;

/// Most bytes of one stack that are read: several times what any thread has.
const STACK_MAX: u64 = 64 << 10;
/// Word of `Thread::md` with the lowest address of the stack.
const LOW: usize = 2;
/// Word of `Thread::md` with the end of the trap slots, for a thread that has a stack of its own.
const HIGH: usize = 3;
/// Word of `Thread::md` with the end of the trap slots.
const SLOTS_END: usize = 5;

/// Words on the stacks of threads, once somebody has asked.
pub(super) struct InFlight<'a, 'b> {
    ctx: &'a Context<'b>,
    words: Option<Vec<u64>>,
}

impl<'a, 'b> InFlight<'a, 'b> {
    pub(super) fn new(ctx: &'a Context<'b>) -> Self {
        Self { ctx, words: None }
    }

    /// Whether anything can be in anybody's hands.
    pub(super) fn is_possible(&self) -> bool {
        !self.ctx.is_quiet()
    }

    /// Whether some thread has a pointer into the `size` bytes from `at` on.
    pub(super) fn mentions(&mut self, at: GuestVirt, size: u64) -> bool {
        if !self.is_possible() {
            return false;
        }
        let ctx = self.ctx;
        let words = self.words.get_or_insert_with(|| read_stacks(ctx));
        let first = words.partition_point(|&word| word < at.get());
        words.get(first).is_some_and(|&word| word < at.get().saturating_add(size))
    }

    /// Whether some thread has page `pfn`: its element of the page array, its physical address, or one in the direct map.
    pub(super) fn has_page(&mut self, pfn: u64) -> bool {
        let phys = GuestPhys::from_pfn(pfn);
        self.mentions(self.ctx.pages.address(pfn), 1)
            || self.mentions(phys_to_dmap(phys), PAGE_SIZE)
            || self.mentions(GuestVirt::new(phys.get()), 1)
    }

    /// Of `suspects`, pages that nobody has claimed, those that no thread has either. A page that heads a chain through the
    /// page array brings the others along.
    pub(super) fn lost(&mut self, suspects: &[u64]) -> Vec<u64> {
        let mut held = HashSet::new();
        let mut left: HashSet<u64> = suspects.iter().copied().collect();
        for &pfn in suspects {
            if !left.contains(&pfn) || !self.has_page(pfn) {
                continue;
            }
            let mut at = pfn;
            while left.remove(&at) && held.insert(at) {
                at = self.ctx.pages.get(at).map_or(0, |page| u64::from(page.next));
            }
        }
        suspects.iter().copied().filter(|pfn| left.contains(pfn)).collect()
    }
}

/// All words on all stacks that look like addresses, ascending.
fn read_stacks(ctx: &Context<'_>) -> Vec<u64> {
    let mut words = Vec::new();
    for thread in &ctx.sched.threads {
        let md = |word: usize| thread.value.md[word].get();
        let (low, end) = (md(LOW), md(HIGH).max(md(SLOTS_END)));
        let own = thread.value.kstack.get().get();
        let (low, end) = if own != 0 { (own, own.saturating_add(STACK_MAX)) } else { (low, end) };
        let end = end.min(low.saturating_add(STACK_MAX));
        let mut va = low & !(PAGE_SIZE - 1);
        while va < end {
            let page = ctx.translate(GuestVirt::new(va)).and_then(|at| ctx.memory.page("stack", at.phys).ok());
            let Some(page) = page else { break };
            words.extend(page.iter().map(|word| word.load(std::sync::atomic::Ordering::Relaxed)));
            va = va.saturating_add(PAGE_SIZE);
        }
    }
    words.retain(|&word| word >= PAGE_SIZE);
    words.sort_unstable();
    words
}
