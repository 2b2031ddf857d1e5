//! CPUs' caches of free pages. The test chooses the CPU on which it runs; nothing happens on the
//! others at that time.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::MapId;
use vmkern_abi::fail::FailSite;
use vmkern_abi::layout::{Pcpu, VmPage};

use super::super::Sim;
use super::super::check::{check, check_zeros};
use super::{MIB, NOWAIT, ZEROED};
use crate::kern::lock::LockClass;
use crate::machine::Cpu;
use crate::vm::page::{AllocClass, AllocFlags, Contents};

/// Most pages in a cache.
pub(super) const MAX: u64 = 64;

/// A machine with several CPUs.
pub(super) struct Cpus {
    pub(super) sim: Sim,
    cpus: Vec<KPtr<Pcpu>>,
}

impl Cpus {
    /// A machine with `cpus` CPUs, of which CPU 0 runs.
    pub(super) fn boot(megabytes: u64, cpus: u32, tunables: Tunables) -> Self {
        let sim = Sim::boot(megabytes * MIB, tunables);
        let first = sim.vm().state().cpuhead.get();
        let others = (1..cpus)
            .map(|cpu| sim.vm().cpu_add(cpu, &format!("idle{cpu}")).expect("there is memory").0);
        let all: Vec<_> = std::iter::once(first).chain(others).collect();
        let cpus = Self { sim, cpus: all };
        for cpu in (1..cpus.cpus.len()).rev() {
            assert!(!cpus.sim.vm().cpu_has_started(cpus.cpus[cpu]), "CPU {cpu} has not run yet");
            cpus.switch(cpu);
            cpus.sim.vm().cpu_started();
            assert!(
                cpus.sim.vm().cpu_has_started(cpus.cpus[cpu]),
                "CPU {cpu} runs its idle thread"
            );
        }
        cpus.switch(0);
        cpus
    }

    /// CPU `cpu` runs from now on.
    pub(super) fn switch(&self, cpu: usize) {
        self.sim.machine().cpu_init(self.cpus[cpu]);
    }

    pub(super) fn cpu(&self, cpu: usize) -> &Pcpu {
        self.sim.vm().get(self.cpus[cpu])
    }

    pub(super) fn cached(&self, cpu: usize) -> u64 {
        self.cpu(cpu).page_cache.pages.count.get()
    }

    pub(super) fn alloc(&self, class: AllocClass) -> Option<KPtr<VmPage>> {
        self.sim.vm().vm_page_alloc_noobj(class, AllocFlags::WIRED)
    }

    pub(super) fn free(&self, m: KPtr<VmPage>) {
        self.sim.vm().vm_page_unwire_free(m);
    }

    pub(super) fn take(&self, pages: u64) -> Vec<KPtr<VmPage>> {
        (0..pages).map(|_| self.alloc(AllocClass::Interrupt).expect("there is a page")).collect()
    }

    /// How often CPU `cpu` has taken the free queue's lock.
    fn free_queue_locks(&self, cpu: usize) -> u64 {
        self.cpu(cpu).locks[LockClass::FreeQueue as usize].acquired.get()
    }

    fn floor(&self) -> u64 {
        self.sim.vm().state().page_cache_floor.get()
    }

    /// Ends on CPU 0, whose idle thread is the test.
    pub(super) fn finish(&self, held: Vec<KPtr<VmPage>>) {
        held.into_iter().for_each(|m| self.free(m));
        self.switch(0);
        check(&self.sim);
        check_zeros(&self.sim);
    }
}

/// A step of a CPU.
#[derive(Clone, Debug)]
enum Step {
    /// It requests this many pages, one after the other.
    Alloc(AllocClass, u64),
    /// It frees this many of all allocated pages, beginning with one of them.
    Free(prop::sample::Index, u64),
    /// It frees one that holds zeros.
    FreeZero(prop::sample::Index),
    /// It requests all pages except this many.
    Leave(u64),
    /// It requests a block of this order, and frees it.
    Block(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let class =
        prop::sample::select(vec![AllocClass::Normal, AllocClass::System, AllocClass::Interrupt]);
    prop_oneof![
        4 => (class, 1..200u64).prop_map(|(class, pages)| Step::Alloc(class, pages)),
        4 => (any::<prop::sample::Index>(), 1..200u64)
            .prop_map(|(which, pages)| Step::Free(which, pages)),
        1 => any::<prop::sample::Index>().prop_map(Step::FreeZero),
        1 => (0..600u64).prop_map(Step::Leave),
        1 => (0..10usize).prop_map(Step::Block),
    ]
}

/// Performs `step`; `held` are the allocated pages.
fn perform(cpus: &Cpus, step: Step, held: &mut Vec<KPtr<VmPage>>) {
    let (vm, cnt) = (cpus.sim.vm(), cpus.sim.vm().cnt());
    match step {
        Step::Alloc(class, pages) => {
            for _ in 0..pages {
                let free = cpus.sim.free_pages();
                let floor = match class {
                    AllocClass::Normal => cnt.v_free_reserved.get(),
                    AllocClass::System => cnt.v_interrupt_free_min.get(),
                    AllocClass::Interrupt => 0,
                };
                let page = cpus.alloc(class);
                assert_eq!(page.is_some(), free > floor, "{class:?} with {free} pages free");
                assert_eq!(cpus.sim.free_pages(), free - u64::from(page.is_some()));
                held.extend(page);
            }
        }
        Step::Free(which, pages) => {
            for _ in 0..pages.min(held.len() as u64) {
                cpus.free(held.swap_remove(which.index(held.len())));
            }
        }
        Step::FreeZero(which) if !held.is_empty() => {
            let m = held.swap_remove(which.index(held.len()));
            vm.pmap_zero_page(m);
            vm.vm_page_free_wired(m, Contents::Zero);
        }
        Step::FreeZero(_) => {}
        Step::Leave(pages) => held.extend(cpus.take(cpus.sim.free_pages().saturating_sub(pages))),
        Step::Block(order) => {
            let queue = vm.free_queue();
            if let Some(m) = vm.vm_phys_alloc_pages(&queue, order) {
                vm.vm_phys_free_pages(&queue, m, order);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_cpus_do_no_page_is_lost_or_given_twice_and_floors_are_exact(
        max in prop::sample::select(vec![1, 2, 7, MAX]),
        steps in prop::collection::vec((0usize..3, step()), 1..60),
    ) {
        let tunables = Tunables { vm_pgcache_zone_max_pcpu: Some(max), ..Tunables::default() };
        let cpus = Cpus::boot(12, 3, tunables);
        let all = cpus.sim.free_pages();
        let mut held = Vec::new();
        for (cpu, step) in steps {
            cpus.switch(cpu);
            perform(&cpus, step, &mut held);
            let distinct: BTreeSet<_> = held.iter().map(|m| m.addr()).collect();
            prop_assert_eq!(distinct.len(), held.len(), "a page was handed out twice");
            prop_assert_eq!(cpus.sim.free_pages() + held.len() as u64, all);
        }
        cpus.switch(0);
        held.drain(..).for_each(|m| cpus.free(m));
        cpus.finish(held);
        prop_assert_eq!(cpus.sim.free_pages(), all);
    }
}

#[test]
fn far_above_the_floors_pages_come_and_go_without_the_free_queues_lock() {
    let cpus = Cpus::boot(64, 2, Tunables::default());
    for cpu in [0, 1] {
        cpus.switch(cpu);
        cpus.take(MAX / 2).into_iter().for_each(|m| cpus.free(m));
        let before = cpus.free_queue_locks(cpu);
        for round in 0..1000 {
            cpus.take(1 + round % (MAX / 2)).into_iter().for_each(|m| cpus.free(m));
        }
        assert_eq!(cpus.free_queue_locks(cpu), before);
        // More pages than a cache holds pass the lists in batches.
        let pages = cpus.take(1000);
        pages.into_iter().for_each(|m| cpus.free(m));
        assert!(cpus.free_queue_locks(cpu) - before <= 2 * 1000 / (MAX / 2) + 2);
    }
    cpus.finish(Vec::new());
}

#[test]
fn a_cache_is_used_only_above_the_floor_which_all_caches_together_cannot_fill() {
    let cpus = Cpus::boot(16, 3, Tunables::default());
    let cnt = cpus.sim.vm().cnt();
    let busy = cnt.v_free_min.get().max(cnt.v_free_reserved.get() + cnt.v_cache_min.get());
    assert_eq!(cpus.floor(), busy + 3 * MAX);
    let before = cpus.cpu(0).page_cache.allocs.get();
    let mut held = cpus.take(cpus.sim.free_pages() - cpus.floor());
    let (allocs, frees) = (cpus.cpu(0).page_cache.allocs.get(), cpus.cpu(0).page_cache.frees.get());
    assert_eq!(allocs - before, held.len() as u64);
    held.extend(cpus.take(1));
    assert_eq!(cpus.cpu(0).page_cache.allocs.get(), allocs, "the page came from the lists");
    cpus.free(held.pop().expect("there are some"));
    assert_eq!(cpus.cpu(0).page_cache.frees.get(), frees, "the page went to the lists");
    cpus.free(held.pop().expect("there are some"));
    assert_eq!(cpus.cpu(0).page_cache.frees.get(), frees + 1, "pages are plenty again");
    cpus.finish(held);
}

#[test]
fn who_finds_the_lists_empty_takes_the_pages_of_other_cpus_caches() {
    let cpus = Cpus::boot(16, 4, Tunables::default());
    let mut held = Vec::new();
    for cpu in 1..4 {
        cpus.switch(cpu);
        cpus.take(MAX).into_iter().for_each(|m| cpus.free(m));
        assert!(cpus.cached(cpu) > 0);
    }
    let cached: u64 = (1..4).map(|cpu| cpus.cached(cpu)).sum();
    cpus.switch(0);
    held.extend(cpus.take(cpus.sim.free_pages()));
    assert_eq!((cpus.sim.free_pages(), cpus.alloc(AllocClass::Interrupt)), (0, None));
    assert_eq!((1..4).map(|cpu| cpus.cpu(cpu).page_cache.drained.get()).sum::<u64>(), cached);
    assert_eq!((0..4).map(|cpu| cpus.cached(cpu)).sum::<u64>(), 0);
    cpus.finish(held);
}

#[test]
fn a_block_is_had_whose_pages_lie_in_the_caches_of_several_cpus() {
    let cpus = Cpus::boot(16, 2, Tunables::default());
    let vm = cpus.sim.vm();
    let pages = cpus.take(cpus.sim.free_pages());
    let pfn = |m: &KPtr<VmPage>| vm.vm_page_to_phys(*m).pfn();
    let block = pfn(&pages[pages.len() / 2]) & !0xf;
    // Every other page is free, and the rest of one block of 16, in caches: half on each CPU.
    let (inside, outside): (Vec<_>, Vec<_>) =
        pages.into_iter().partition(|m| pfn(m) & !0xf == block);
    let (even, odd): (Vec<_>, Vec<_>) = outside.into_iter().partition(|m| pfn(m).is_multiple_of(2));
    even.into_iter().for_each(|m| cpus.free(m));
    assert_eq!(inside.len(), 16);
    for (number, m) in inside.into_iter().enumerate() {
        cpus.switch(number % 2);
        cpus.free(m);
    }
    let large = vm.state().vm_phys_free_queues.iter().flat_map(|orders| &orders[4..]);
    assert_eq!(large.map(|list| list.count.get()).sum::<u64>(), 0, "the lists have no such block");
    let m = vm.vm_phys_alloc_pages(&vm.free_queue(), 4).expect("the caches have one");
    assert_eq!(pfn(&m), block);
    vm.vm_phys_free_pages(&vm.free_queue(), m, 4);
    cpus.finish(odd);
}

#[test]
fn a_page_that_is_freed_while_somebody_waits_goes_to_the_lists_and_wakes() {
    let cpus = Cpus::boot(16, 2, Tunables::default());
    let held = cpus.take(10);
    let (state, cache) = (cpus.sim.vm().state(), &cpus.cpu(0).page_cache);
    let frees = cache.frees.get();
    state.vm_pages_needed.raise();
    held.into_iter().for_each(|m| cpus.free(m));
    assert_eq!((state.vm_pages_needed.get().raw(), cache.frees.get()), (0, frees + 9));
    cpus.finish(Vec::new());
}

#[test]
fn a_handler_allocates_and_frees_in_the_middle_of_a_thread() {
    let cpus = Cpus::boot(16, 2, Tunables::default());
    let vm = cpus.sim.vm();
    let before = cpus.cpu(0).page_cache.allocs.get();
    vm.intr_enter();
    let held = cpus.take(100);
    held.into_iter().for_each(|m| cpus.free(m));
    vm.intr_exit();
    assert_eq!(cpus.cpu(0).page_cache.allocs.get() - before, 100);
    cpus.finish(Vec::new());
}

#[test]
fn a_refused_page_counts_as_a_shortage_and_stays_in_its_cache() {
    let cpus = Cpus::boot(16, 2, Tunables::default());
    let free = cpus.sim.free_pages();
    cpus.sim.fail_nth(FailSite::VmPageAllocInterrupt, 1);
    assert_eq!((cpus.alloc(AllocClass::Interrupt), cpus.sim.free_pages()), (None, free));
    assert_eq!(cpus.sim.vm().state().vm_pageout_deficit.get(), 1);
    let held = cpus.take(1);
    cpus.finish(held);
}

#[test]
fn zeroed_pages_stay_known_to_be_zero_in_a_cache() {
    let cpus = Cpus::boot(64, 2, Tunables::default());
    let (vm, sim) = (cpus.sim.vm(), &cpus.sim);
    let zero = || vm.state().vm_page_zero_count.get();
    let before = zero();
    let m = cpus.take(1)[0];
    assert_eq!(zero(), before - 1);
    vm.pmap_zero_page(m);
    vm.vm_page_free_wired(m, Contents::Zero);
    assert_eq!((zero(), cpus.cpu(0).page_cache.pages.head.get()), (before, vm.vm_page_number(m)));
    let again = vm
        .vm_page_alloc_noobj(AllocClass::Normal, AllocFlags::WIRED | AllocFlags::ZERO)
        .expect("a page");
    assert_eq!(again, m, "the page that was freed last comes first");
    assert!(vm.page(again).flags.get().contains(vmkern_abi::layout::PageFlags::ZERO));
    cpus.free(again);
    // And memory that is requested as zero is zero.
    for round in 0..20 {
        let size = (1 + round) * PAGE_SIZE;
        let addr = sim.malloc(size, ZEROED).expect("there is memory");
        sim.ok(&vmkern_abi::control::Op::VerifyZero { addr, size });
        sim.fill(addr, size, round);
        sim.free(MapId::KMEM, addr, size);
    }
    cpus.finish(Vec::new());
}

#[test]
fn operations_leave_the_same_counts_on_one_cpu_and_on_several() {
    let run = |cpus: u32| {
        let cpus = Cpus::boot(32, cpus, Tunables::default());
        let before = cpus.sim.free_pages();
        let mut blocks = Vec::new();
        let mut seen = Vec::new();
        for round in 0..300_u64 {
            cpus.switch(usize::try_from(round).expect("it is small") % cpus.cpus.len());
            if round % 3 == 2 {
                let (addr, size) = blocks.swap_remove(
                    usize::try_from(round * 7 % 5).expect("it is small") % blocks.len(),
                );
                cpus.sim.free(MapId::KMEM, addr, size);
            } else {
                let size = (1 + round % 17) * PAGE_SIZE;
                blocks.push((cpus.sim.malloc(size, NOWAIT).expect("there is memory"), size));
            }
            seen.push((before - cpus.sim.free_pages(), blocks.last().copied()));
        }
        cpus.finish(Vec::new());
        seen
    };
    let alone = run(1);
    assert_eq!(run(2), alone);
    assert_eq!(run(4), alone);
}

#[test]
fn there_are_no_caches_with_one_cpu_or_with_pagezero_or_when_they_may_have_no_page() {
    let tunables = |idlezero, max| Tunables {
        vm_idlezero_enable: idlezero,
        vm_pgcache_zone_max_pcpu: max,
        ..Tunables::default()
    };
    for (cpus, tunables) in
        [(1, tunables(None, None)), (2, tunables(Some(1), None)), (2, tunables(None, Some(0)))]
    {
        let cpus = Cpus::boot(16, cpus, tunables);
        cpus.take(100).into_iter().for_each(|m| cpus.free(m));
        let cache = &cpus.cpu(0).page_cache;
        assert_eq!((cpus.floor(), cache.allocs.get(), cache.frees.get()), (0, 0, 0));
        cpus.finish(Vec::new());
    }
}

#[test]
#[should_panic(expected = "lock order reversal: vm page free queue mutex after pcpu page cache")]
fn the_free_queues_lock_is_not_taken_under_a_caches() {
    let cpus = Cpus::boot(16, 2, Tunables::default());
    let vm = cpus.sim.vm();
    vm.mtx_lock(LockClass::PageCache, &cpus.cpu(0).page_cache.lock.owner);
    vm.mtx_lock(LockClass::FreeQueue, &vm.state().vm_page_queue_free_mtx.owner);
}

#[test]
#[should_panic(expected = "lock order reversal: pcpu page cache after pcpu page cache")]
fn two_caches_are_not_locked_at_a_time() {
    let cpus = Cpus::boot(16, 2, Tunables::default());
    for cpu in [0, 1] {
        cpus.sim.vm().mtx_lock(LockClass::PageCache, &cpus.cpu(cpu).page_cache.lock.owner);
    }
}
