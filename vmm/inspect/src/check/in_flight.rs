//! Pages and items that only a thread in the middle of an operation refers to: no structure leads
//! to them, but words on its stack do.
//!
//! As in a conservative garbage collector, every word on the used part of a stack counts as a
//! pointer, unless the thread waits for work. The registers of an interrupted thread are in a trap
//! frame on its stack. Stacks are read only when something appears to be lost.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::kva::{dmap_to_phys, phys_in_dmap};
use vmkern_abi::layout::{Thread, ThreadState, VmPage, Zone};

use super::context::Context;
use super::stacks::Saved;
use super::threads::waits_for_work;
use super::zones::zone_of_item;
use crate::cpu::RunState;

/// The most bytes of one stack that are read: several times the size of any thread's stack.
const STACK_MAX: u64 = 64 << 10;
/// Bytes below the stack pointer that are in use (System V ABI).
const RED_ZONE: u64 = 128;

/// Words on the stacks of threads, read on first use.
pub(super) struct InFlight<'a, 'b> {
    ctx: &'a Context<'b>,
    words: Option<Vec<u64>>,
}

impl<'a, 'b> InFlight<'a, 'b> {
    pub(super) fn new(ctx: &'a Context<'b>) -> Self {
        Self { ctx, words: None }
    }

    /// All words that may be pointers, ascending.
    pub(super) fn words(&mut self) -> &[u64] {
        let ctx = self.ctx;
        self.words.get_or_insert_with(|| read_stacks(ctx))
    }

    /// Whether any thread has a pointer into the `size` bytes from `at` on.
    pub(super) fn mentions(&mut self, at: GuestVirt, size: u64) -> bool {
        let words = self.words();
        let first = words.partition_point(|&word| word < at.get());
        words.get(first).is_some_and(|&word| word < at.get().saturating_add(size))
    }

    /// Whether any thread refers to the `size` bytes of the direct map from `at` on, by virtual or
    /// physical address.
    pub(super) fn has(&mut self, at: GuestVirt, size: u64) -> bool {
        let phys = dmap_to_phys(at).map(|phys| GuestVirt::new(phys.get()));
        self.mentions(at, size) || phys.is_some_and(|phys| self.mentions(phys, size))
    }

    /// Whether any thread refers to page `pfn`: to its element of the page array, or to an address
    /// in the page.
    pub(super) fn has_page(&mut self, pfn: u64) -> bool {
        let element = size_of::<VmPage>() as u64;
        self.has(self.ctx.pages.address(pfn), element)
            || phys_in_dmap(GuestPhys::from_pfn(pfn)).is_some_and(|at| self.has(at, PAGE_SIZE))
    }

    /// The pages among `suspects`, which are unclaimed, that no thread refers to either. A thread
    /// that refers to the head of a chain through the page array also accounts for the rest of the
    /// chain.
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

/// All words on the stacks in use, and in the registers of CPUs, that look like addresses,
/// ascending.
fn read_stacks(ctx: &Context<'_>) -> Vec<u64> {
    let cpus = ctx.memory.source().cpus().unwrap_or_default();
    let mut words: Vec<u64> = cpus.iter().flat_map(|cpu| cpu.registers.gpr).collect();
    for thread in ctx.sched.threads.iter().filter(|thread| !waits_for_work(&thread.value)) {
        let runs_on = ctx.sched.runs(thread.at).map(|cpu| cpu.value.cpuid.get());
        let cpu = cpus.iter().find(|cpu| Some(cpu.cpu) == runs_on);
        // A CPU only halts in its idle thread, with no work left.
        if cpu.is_some_and(|cpu| cpu.state == RunState::Halted) {
            continue;
        }
        for range in in_use(&thread.value, cpu.map(|cpu| cpu.registers.rsp().get())) {
            read_range(ctx, &range, &mut words);
        }
    }
    words.retain(|&word| word >= PAGE_SIZE);
    let queues: Vec<u64> =
        words.iter().filter_map(|&word| queue_of_thread_to_be(ctx, word)).collect();
    words.extend(queues);
    words.sort_unstable();
    words
}

/// The sleep queue of the thread that `word` points into, if that thread is being created or freed:
/// it is on no list, and only the thread leads to its queue.
fn queue_of_thread_to_be(ctx: &Context<'_>, word: u64) -> Option<u64> {
    let word = GuestVirt::new(word);
    let at = Zone::Thread.item_around(phys_word(ctx, word).unwrap_or(word));
    let is_thread = zone_of_item(ctx, at) == Some(Zone::Thread)
        && !ctx.sched.threads.iter().any(|t| t.addr() == at);
    let thread: Thread = is_thread.then(|| ctx.memory.get("thread", KPtr::new(at)).ok())??;
    Some(thread.sleepqueue.get().addr().get())
}

/// The direct-map address of `word`, taken as a physical address, if it can be one.
fn phys_word(ctx: &Context<'_>, word: GuestVirt) -> Option<GuestVirt> {
    let phys = GuestPhys::new(word.get());
    phys_in_dmap(phys).filter(|_| ctx.pages.is_managed(phys.pfn()))
}

/// The used part of a thread's stack, and its trap slots. `running` is the stack pointer if the
/// thread is running. A thread that has never run has stack pointer 0 and uses neither.
fn in_use(thread: &Thread, running: Option<u64>) -> [Range<u64>; 2] {
    // The bounds do not change while the thread lives.
    let Saved { rsp, low, high, slots, slots_end, .. } = Saved::of(thread);
    if rsp == 0 && running.is_none() && thread.state() != Some(ThreadState::Running) {
        return [0..0, 0..0];
    }
    let kstack = thread.kstack.get().get();
    let low = if kstack == 0 { low } else { kstack };
    let rsp = running.unwrap_or(rsp);
    let start =
        if (low..=high).contains(&rsp) { rsp.saturating_sub(RED_ZONE).max(low) } else { low };
    [start..high, slots..slots_end]
}

fn read_range(ctx: &Context<'_>, range: &Range<u64>, words: &mut Vec<u64>) {
    let end = range.end.min(range.start.saturating_add(STACK_MAX));
    let mut va = range.start & !7;
    while va < end {
        let at = GuestVirt::new(va);
        let page =
            ctx.translate(at).and_then(|mapping| ctx.memory.page("stack", mapping.phys).ok());
        let Some(page) = page else { break };
        let first = usize::try_from(at.page_offset() / 8).unwrap_or(0);
        words.extend(page[first..].iter().map(|word| word.load(Ordering::Relaxed)));
        va = at.page().get().saturating_add(PAGE_SIZE);
    }
}
