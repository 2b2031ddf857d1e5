//! Pages that the host takes and gives back, by the code that the host itself uses.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome, WaitMessage};
use vmkern_abi::seize::{Contents, Frames, OwnedLock, Refused, Seize};

use super::super::Sim;
use super::super::check::{check, check_holding, check_zeros};
use super::pagecache::{Cpus, MAX};
use super::{MIB, NOWAIT, boot};
use crate::machine::{AllocClass, Mark, PhysMem};
use crate::vm::Zeroed;
use crate::vm::page::AllocFlags;
use crate::vm::phys::Phys;

/// The host.
impl Sim {
    fn host(&self) -> Result<Seize<'_, Phys<super::super::SimMachine>>, Refused> {
        Seize::new(self.phys(), self.vm().roots())
    }

    fn phys(&self) -> &Phys<super::super::SimMachine> {
        self.vm()
    }

    fn seize(&self, pages: u64) -> Vec<Frames> {
        let mut taken = Vec::new();
        let host = self.host().expect("no lock is owned");
        host.take(pages, |frames| taken.push(frames)).expect("nothing is damaged");
        taken
    }

    fn release(&self, pages: u64, contents: Contents) -> Vec<Frames> {
        let mut given = Vec::new();
        let host = self.host().expect("no lock is owned");
        host.give_back(pages, contents, |frames| given.push(frames)).expect("nothing is damaged");
        given
    }

    fn seized(&self) -> u64 {
        self.host().and_then(|host| host.seized()).expect("nothing is damaged")
    }

    /// The memory behind `frames` goes back to the host.
    fn discard(&self, frames: &[Frames]) {
        for pa in frames.iter().cloned().flatten().map(GuestPhys::from_pfn) {
            self.machine().mark(pa, PAGE_SIZE, Mark::Used);
            self.machine().zero_page(pa);
            self.machine().mark(pa, PAGE_SIZE, Mark::Free);
        }
    }
}

fn len(frames: &[Frames]) -> u64 {
    frames.iter().map(|frames| frames.end - frames.start).sum()
}

#[test]
fn fresh_memory_goes_first_and_a_segments_end_is_all_that_changes() {
    let sim = boot();
    let (free, zero) = (sim.free_pages(), sim.vm().state().vm_page_zero_count.get());
    let taken = sim.seize(1000);
    let seg = sim.vm().vm_phys_segments().last().expect("a segment");
    let (end, limit) = (u64::from(seg.end.get()), u64::from(seg.limit.get()));
    assert_eq!((taken.len(), &taken[0], limit - end), (1, &(end..limit), 1000));
    assert_eq!((sim.free_pages(), sim.seized()), (free - 1000, 1000));
    assert_eq!(sim.vm().state().vm_page_zero_count.get(), zero - 1000);
    check(&sim);
    assert_eq!(len(&sim.release(u64::MAX, Contents::Discarded)), 1000);
    assert_eq!((sim.free_pages(), sim.seized()), (free, 0));
    check(&sim);
}

#[test]
fn blocks_go_largest_first_and_the_last_one_is_split() {
    let sim = boot();
    // All memory has been used, and is free again: there is no fresh part.
    let mut hoard = Vec::new();
    sim.hoard(0, &mut hoard);
    sim.relieve(&mut hoard);
    let lists = || {
        let queues = &sim.vm().state().vm_phys_free_queues;
        queues.iter().flat_map(|orders| orders.iter().map(|list| list.count.get())).sum::<u64>()
    };
    let (before, largest) = (lists(), 1 << 12);
    let taken = sim.seize(largest + 5);
    let sizes: Vec<_> = taken.iter().map(|frames| frames.end - frames.start).collect();
    assert_eq!(sizes, [largest, 4, 1], "{taken:x?}");
    assert!(taken.iter().all(|frames| frames.start.is_multiple_of(frames.end - frames.start)));
    check(&sim);
    sim.release(u64::MAX, Contents::Kept);
    assert_eq!(lists(), before, "blocks merge with their buddies");
    check(&sim);
}

#[test]
fn pages_in_caches_go_last_and_every_free_page_can_be_taken() {
    let cpus = Cpus::boot(16, 3, Tunables::default());
    for cpu in 0..3 {
        cpus.switch(cpu);
        cpus.take(MAX).into_iter().for_each(|m| cpus.free(m));
    }
    cpus.switch(0);
    let cached: u64 = (0..3).map(|cpu| cpus.cached(cpu)).sum();
    let free = cpus.sim.free_pages();
    assert_eq!(len(&cpus.sim.seize(free - cached)), free - cached);
    assert_eq!((0..3).map(|cpu| cpus.cached(cpu)).sum::<u64>(), cached);
    assert_eq!(len(&cpus.sim.seize(free)), cached);
    assert_eq!((cpus.sim.free_pages(), cpus.sim.seized()), (0, free));
    assert_eq!(cpus.alloc(AllocClass::Interrupt), None);
    check(&cpus.sim);
    cpus.sim.release(u64::MAX, Contents::Kept);
    assert_eq!(cpus.sim.free_pages(), free);
    cpus.finish(Vec::new());
}

#[test]
fn nothing_is_taken_while_the_free_queues_lock_or_a_caches_is_owned() {
    let cpus = Cpus::boot(16, 2, Tunables::default());
    let vm = cpus.sim.vm();
    let free = cpus.sim.free_pages();
    let owner = vm.get(vm.current_thread()).tid.get();
    let queue = vm.free_queue();
    let refused = cpus.sim.host().map(|_| ()).expect_err("it is owned");
    assert_eq!(refused, Refused::Locked { lock: OwnedLock::FreeQueue, owner });
    assert_eq!(
        refused.to_string(),
        format!("thread {owner} owns the free queue's lock, so the free lists may be half changed")
    );
    drop(queue);
    let lock = &cpus.cpu(1).page_cache.lock.owner;
    lock.set(owner + 1);
    let refused = cpus.sim.host().map(|_| ()).expect_err("it is owned");
    assert_eq!(refused, Refused::Locked { lock: OwnedLock::PageCache(1), owner });
    lock.set(0);
    assert_eq!(cpus.sim.free_pages(), free);
    cpus.finish(Vec::new());
}

#[test]
fn the_next_allocation_below_a_threshold_wakes_the_pagedaemon() {
    for cpus in [1, 2] {
        let cpus = Cpus::boot(16, cpus, Tunables::default());
        let (vm, cnt) = (cpus.sim.vm(), cpus.sim.vm().cnt());
        let cached = cpus.take(MAX);
        cached.into_iter().for_each(|m| cpus.free(m));
        cpus.sim.seize(cpus.sim.free_pages() - cnt.v_free_min.get());
        assert!(!vm.state().vm_pages_needed.is_set(), "a seizure wakes nobody");
        let page = cpus.alloc(AllocClass::Normal).expect("there is one");
        assert!(vm.state().vm_pages_needed.is_set());
        cpus.sim.release(u64::MAX, Contents::Kept);
        vm.vm_pages_returned();
        assert!(!vm.state().vm_pages_needed.is_set());
        cpus.finish(vec![page]);
    }
}

#[test]
fn threads_in_vmwait_go_on_when_pages_come_back() {
    let sim = boot();
    sim.take_boot_tables();
    let _ = sim.execute_on(3, Op::Nop);
    sim.seize(sim.free_pages() - 2);
    let flags = MallocFlags::WAITOK;
    sim.submit(3, Op::KmemMalloc { map: MapId::KMEM, size: 4 * PAGE_SIZE, flags });
    let waits = || sim.run().iter().any(|thread| thread.wmesg == WaitMessage::new("vmwait"));
    assert!(waits());
    sim.release(2, Contents::Discarded);
    sim.vm().vm_pages_returned();
    assert!(waits(), "two pages are below v_free_min");
    sim.release(u64::MAX, Contents::Discarded);
    assert!(sim.waiting().iter().any(|thread| thread.wmesg == WaitMessage::new("vmwait")));
    sim.vm().vm_pages_returned();
    assert!(matches!(sim.finish(3), Outcome::Value(_)));
    check(&sim);
    check_zeros(&sim);
}

#[test]
fn what_was_discarded_comes_back_as_zeros_and_what_was_kept_as_it_was() {
    for contents in [Contents::Discarded, Contents::Kept] {
        let sim = Sim::boot_with(16 * MIB, Tunables::default(), Zeroed::No);
        let dirty = sim.malloc(MIB, NOWAIT).expect("there is memory");
        sim.fill(dirty, MIB, 1);
        sim.free(MapId::KMEM, dirty, MIB);
        let taken = sim.seize(u64::MAX);
        if contents == Contents::Discarded {
            sim.discard(&taken);
        }
        sim.release(u64::MAX, contents);
        let zero = sim.vm().state().vm_page_zero_count.get();
        assert_eq!(zero >= MIB / PAGE_SIZE, contents == Contents::Discarded, "{zero}");
        check(&sim);
        check_zeros(&sim);
    }
}

#[test]
fn pagezero_passes_seized_pages_over() {
    let tunables = Tunables { vm_idlezero_enable: Some(1), ..Tunables::default() };
    let sim = Sim::boot(16 * MIB, tunables);
    let size = sim.free_pages() / 2 * PAGE_SIZE;
    let addr = sim.malloc(size, NOWAIT).expect("there is memory");
    sim.fill(addr, size, 7);
    sim.free(MapId::KMEM, addr, size);
    let fresh = sim.vm().vm_phys_segments().map(|seg| u64::from(seg.end.get() - seg.fresh.get()));
    sim.seize(fresh.sum::<u64>() + 1024);
    sim.run();
    check(&sim);
    check_zeros(&sim);
    sim.release(u64::MAX, Contents::Kept);
    check(&sim);
    check_zeros(&sim);
}

/// A step of a history.
#[derive(Clone, Debug)]
enum Step {
    Alloc(u64),
    Free(prop::sample::Index, u64),
    Seize(u64),
    Release(u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..400u64).prop_map(Step::Alloc),
        3 => (any::<prop::sample::Index>(), 1..400u64)
            .prop_map(|(which, pages)| Step::Free(which, pages)),
        2 => (1..2000u64).prop_map(Step::Seize),
        2 => (1..2000u64, any::<bool>())
            .prop_map(|(pages, discarded)| Step::Release(pages, discarded)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_host_takes_and_gives_back_every_page_is_in_one_place(
        max in prop::sample::select(vec![1, 7, MAX]),
        steps in prop::collection::vec((0usize..3, step()), 1..60),
    ) {
        let tunables = Tunables { vm_pgcache_zone_max_pcpu: Some(max), ..Tunables::default() };
        let cpus = Cpus::boot(12, 3, tunables);
        let sim = &cpus.sim;
        let all = sim.free_pages();
        let mut held = Vec::new();
        for (cpu, step) in steps {
            cpus.switch(cpu);
            let (free, seized) = (sim.free_pages(), sim.seized());
            match step {
                Step::Alloc(pages) => held.extend(cpus.take(pages.min(free))),
                Step::Free(which, pages) => {
                    for _ in 0..pages.min(held.len() as u64) {
                        cpus.free(held.swap_remove(which.index(held.len())));
                    }
                }
                Step::Seize(pages) => {
                    let taken = sim.seize(pages);
                    prop_assert_eq!(len(&taken), pages.min(free));
                    sim.discard(&taken);
                }
                Step::Release(pages, discarded) => {
                    let contents = if discarded { Contents::Discarded } else { Contents::Kept };
                    prop_assert_eq!(len(&sim.release(pages, contents)), pages.min(seized));
                    sim.vm().vm_pages_returned();
                }
            }
            prop_assert_eq!(sim.free_pages() + sim.seized() + held.len() as u64, all);
            cpus.switch(0);
            check_holding(sim, held.len() as u64);
        }
        held.drain(..).for_each(|m| cpus.free(m));
        sim.release(u64::MAX, Contents::Discarded);
        cpus.finish(held);
        prop_assert_eq!(sim.free_pages(), all);
    }

    #[test]
    fn a_damaged_word_of_the_free_lists_is_an_error_or_harmless_and_never_endless(
        list in 0usize..13, which in 0u8..7, value in prop_oneof![0..40_000u32, any::<u32>()],
        want in 1..5000u64,
    ) {
        let sim = boot();
        let mut hoard = Vec::new();
        sim.hoard(0, &mut hoard);
        sim.relieve(&mut hoard);
        let vm = sim.vm();
        let queue = &vm.state().vm_phys_free_queues[0][list];
        let head = queue.head.get();
        let page = vm.page_by_number(if head == 0 { 0x4000 } else { head });
        match which {
            0 => queue.head.set(value),
            1 => queue.tail.set(value),
            2 => queue.count.set(value.into()),
            3 => page.next.set(value),
            4 => page.prev.set(value),
            5 => page.segind.set((value & 0xffff).try_into().expect("16 bits")),
            _ => vm.vm_phys_seg(0).limit.set(value),
        }
        let mut taken = 0;
        let host = sim.host().expect("no lock is owned");
        let _ = host.take(want, |frames| taken += frames.end - frames.start);
        prop_assert!(taken <= want);
    }
}

#[test]
fn a_kernel_that_allocates_a_seized_page_would_be_found() {
    let sim = boot();
    let taken = sim.seize(10);
    let page = vmkern_abi::addr::KPtr::new(
        sim.vm().vm_page_pointer(u32::try_from(taken[0].start).expect("small")).addr(),
    );
    let free = |m| sim.vm().vm_page_unwire_free(m);
    assert!(catch_unwind(AssertUnwindSafe(|| free(page))).is_err());
    let m = sim.vm().vm_page_alloc_noobj(AllocClass::Normal, AllocFlags::WIRED).expect("a page");
    assert!(!taken.iter().any(|frames| frames.contains(&sim.vm().vm_page_to_phys(m).pfn())));
}
