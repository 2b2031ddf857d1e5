//! Entries in transition: wiring that sleeps while others change the map, and threads that wait for
//! it.

use std::sync::{Arc, Mutex};

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{KernReturn, Op, Outcome, WaitMessage};
use vmkern_abi::layout::{EntryFlags, Protection, VmMap, VmPage};

use super::super::EntrySpec;
use crate::sim::check::check;
use crate::sim::{Sim, SimMachine};
use crate::vm::Vm;

/// The final result of a thread, by its number.
type Results = Arc<Mutex<Vec<(u32, Result<(), KernReturn>)>>>;

/// A small machine with a pageable map of 64 pages, whose free pages can be used up.
struct Scene {
    sim: Sim,
    map: KPtr<VmMap>,
    hoard: Vec<KPtr<VmPage>>,
    results: Results,
}

impl Scene {
    fn new() -> Self {
        let sim = Sim::boot(16 << 20, Tunables::default());
        let map = sim.vm().kmem_suballoc(sim.vm().kernel_map(), 64 * PAGE_SIZE);
        Self { sim, map, hoard: Vec::new(), results: Results::default() }
    }

    fn vm(&self) -> &Vm<SimMachine> {
        self.sim.vm()
    }

    fn at(&self, page: u64) -> GuestVirt {
        self.vm().get(self.map).min_offset().add(page * PAGE_SIZE)
    }

    /// A pageable range behind the existing ones, whose object has been created by a touch of its
    /// last page.
    fn pageable(&self, pages: u64) {
        let addr = self.vm().kmem_alloc_wait(self.map, pages * PAGE_SIZE).expect("there is room");
        let last = Op::Touch { addr: addr.add((pages - 1) * PAGE_SIZE), size: 1 };
        assert_eq!(self.sim.execute(&last), Outcome::Ok);
    }

    /// A range of `pages` behind the existing ones, with an object that ends after `object_pages`.
    fn short_object(&self, start: u64, pages: u64, object_pages: u64) {
        let object = self
            .vm()
            .vm_object_allocate(object_pages)
            .unwrap_or_else(|_| panic!("there are pages"));
        self.vm().vm_map_lock(self.map);
        let inserted = self.vm().vm_map_insert(
            self.map,
            &EntrySpec::object(object, 0),
            self.at(start),
            self.at(start + pages),
        );
        self.vm().vm_map_unlock(self.map);
        assert_eq!(inserted, Ok(()));
    }

    /// Leaves 20 pages, which are too few for faults.
    fn shortage(&mut self) {
        self.sim.hoard(20, &mut self.hoard);
    }

    /// Frees all pages, and lets all threads finish.
    fn relief(&mut self) {
        self.sim.relieve(&mut self.hoard);
    }

    /// Makes thread `tid` run `f`.
    fn spawn(
        &self,
        tid: u32,
        f: impl FnOnce(&Vm<SimMachine>) -> Result<(), KernReturn> + Send + 'static,
    ) {
        let results = self.results.clone();
        self.sim.spawn(tid, move |vm| {
            let result = f(vm);
            results.lock().expect("nobody panics here").push((tid, result));
        });
    }

    fn wire(&self, tid: u32, start: u64, end: u64) {
        let (map, start, end) = (self.map, self.at(start), self.at(end));
        self.spawn(tid, move |vm| vm.vm_map_wire(map, start, end));
    }

    fn unwire(&self, tid: u32, start: u64, end: u64) {
        let (map, start, end) = (self.map, self.at(start), self.at(end));
        self.spawn(tid, move |vm| vm.vm_map_unwire(map, start, end));
    }

    fn free(&self, tid: u32, start: u64, pages: u64) {
        let (map, start) = (self.map, self.at(start));
        self.spawn(tid, move |vm| {
            vm.kmem_free(map, start, pages * PAGE_SIZE);
            Ok(())
        });
    }

    fn waits(&self, tid: u32, wmesg: &str) {
        self.sim.run();
        assert_eq!(self.sim.waits_for(tid), Some(WaitMessage::new(wmesg)), "thread {tid}");
    }

    /// Translations of wired pages.
    fn wired(&self) -> u64 {
        self.vm().state().kernel_pmap.wired_count.get()
    }

    /// Threads that are done, in the order in which they finished, with their results.
    fn results(&self) -> Vec<(u32, Result<(), KernReturn>)> {
        self.results.lock().expect("nobody panics here").clone()
    }

    /// First page, page past the end, and wirings of each entry. None is in transition.
    fn entries(&self) -> Vec<(u64, u64, u32)> {
        self.vm().vm_map_check(self.map).expect("the map is sound");
        let page = |va: GuestVirt| va.since(self.at(0)) / PAGE_SIZE;
        let entries = self.vm().vm_map_entries(self.map).map(|entry| self.vm().get(entry));
        entries
            .map(|e| {
                assert!(
                    !e.eflags
                        .get()
                        .intersects(EntryFlags::IN_TRANSITION | EntryFlags::NEEDS_WAKEUP)
                );
                (page(e.start.get()), page(e.end.get()), e.wired_count.get())
            })
            .collect()
    }
}

#[test]
fn wiring_finds_its_entry_again_after_it_was_cut_and_moved_during_a_sleep() {
    let mut s = Scene::new();
    let low = s.vm().kmem_alloc_nofault(s.map, PAGE_SIZE).expect("there is room");
    s.pageable(8);
    s.vm().kmem_alloc_nofault(s.map, PAGE_SIZE).expect("there is room");
    s.shortage();
    s.wire(3, 1, 9);
    s.waits(3, "pfault");
    // A free of nothing cuts the entry; when the lowest entry leaves, the last one moves to its
    // place.
    s.vm().kmem_free(s.map, s.at(4), 0);
    s.vm().kmem_free(s.map, low, PAGE_SIZE);
    s.vm().kmem_free(s.map, s.at(7), 0);
    assert_eq!(s.vm().vm_map_entries(s.map).count(), 4);
    s.relief();
    assert_eq!(s.results(), [(3, Ok(()))]);
    assert_eq!(s.entries(), [(1, 9, 1), (9, 10, 0)], "the pieces are one again");
    check(&s.sim);
}

#[test]
fn a_fault_that_fails_in_the_middle_takes_every_wiring_of_the_call_back() {
    let s = Scene::new();
    s.vm().kmem_alloc(s.map, 2 * PAGE_SIZE).expect("there is room");
    s.pageable(2);
    s.short_object(4, 6, 3);
    let wired = s.wired();
    assert_eq!(s.vm().vm_map_wire(s.map, s.at(0), s.at(10)), Err(KernReturn::ProtectionFailure));
    assert_eq!(s.entries(), [(0, 2, 1), (2, 4, 0), (4, 10, 0)]);
    assert_eq!(s.wired(), wired);
    // The pages that were faulted in for it stay, and can be paged out.
    assert_eq!(s.vm().cnt().v_active_count.get(), 5);
    check(&s.sim);
}

#[test]
fn every_piece_of_an_entry_whose_fault_fails_after_a_sleep_is_unwired() {
    let mut s = Scene::new();
    s.short_object(0, 6, 3);
    s.shortage();
    s.wire(3, 0, 6);
    s.waits(3, "pfault");
    s.vm().kmem_free(s.map, s.at(1), 0);
    s.vm().kmem_free(s.map, s.at(5), 0);
    let wired = s.wired();
    s.relief();
    assert_eq!(s.results(), [(3, Err(KernReturn::ProtectionFailure))]);
    assert_eq!(s.entries(), [(0, 6, 0)]);
    assert_eq!(s.wired(), wired);
    check(&s.sim);
}

#[test]
fn who_wires_a_range_in_transition_waits_for_its_end_and_wires_it_once_more() {
    let mut s = Scene::new();
    s.pageable(8);
    s.shortage();
    s.wire(3, 0, 8);
    s.waits(3, "pfault");
    s.wire(4, 2, 5);
    s.waits(4, "vmmaps");
    s.relief();
    assert_eq!(s.results(), [(3, Ok(())), (4, Ok(()))]);
    assert_eq!(s.entries(), [(0, 2, 1), (2, 5, 2), (5, 8, 1)]);
}

#[test]
fn who_waits_to_wire_a_range_that_is_gone_by_then_gives_up() {
    let mut s = Scene::new();
    s.vm().kmem_alloc(s.map, 2 * PAGE_SIZE).expect("there is room");
    s.pageable(8);
    s.shortage();
    s.wire(3, 2, 10);
    s.waits(3, "pfault");
    s.free(4, 2, 8);
    s.waits(4, "vmmaps");
    s.wire(5, 0, 8);
    s.waits(5, "vmmaps");
    s.relief();
    assert_eq!(s.results(), [(3, Ok(())), (4, Ok(())), (5, Err(KernReturn::InvalidAddress))]);
    assert_eq!(s.entries(), [(0, 2, 1)], "what it had wired below is as before");
    check(&s.sim);
}

#[test]
fn who_unwires_a_range_in_transition_waits_for_its_end() {
    let mut s = Scene::new();
    s.pageable(8);
    let wired = s.wired();
    s.shortage();
    s.wire(3, 0, 8);
    s.waits(3, "pfault");
    s.unwire(4, 0, 8);
    s.waits(4, "vmmaps");
    s.relief();
    assert_eq!(s.results(), [(3, Ok(())), (4, Ok(()))]);
    assert_eq!(s.entries(), [(0, 8, 0)]);
    assert_eq!(s.wired(), wired);
    check(&s.sim);
}

#[test]
fn who_protects_a_range_in_transition_waits_for_its_end_and_the_wiring_succeeds() {
    let mut s = Scene::new();
    s.pageable(8);
    s.shortage();
    s.wire(3, 0, 8);
    s.waits(3, "pfault");
    let (map, start, end) = (s.map, s.at(2), s.at(4));
    s.spawn(4, move |vm| vm.vm_map_protect(map, start, end, Protection::empty()));
    s.waits(4, "vmmaps");
    s.relief();
    assert_eq!(s.results(), [(3, Ok(())), (4, Ok(()))]);
    assert_eq!(s.entries(), [(0, 2, 1), (2, 4, 1), (4, 8, 1)]);
    assert_eq!(s.vm().pmap_extract(s.at(3)), None);
    s.vm().kmem_free(s.map, s.at(0), 8 * PAGE_SIZE);
    check(&s.sim);
}

#[test]
fn what_an_unwire_has_marked_before_it_waits_is_not_deleted_under_it() {
    let mut s = Scene::new();
    s.vm().kmem_alloc(s.map, 2 * PAGE_SIZE).expect("there is room");
    s.vm().vm_map_wire(s.map, s.at(0), s.at(2)).expect("no hole");
    s.pageable(6);
    s.shortage();
    s.wire(3, 2, 8);
    s.waits(3, "pfault");
    s.unwire(4, 0, 8);
    s.waits(4, "vmmaps");
    s.free(5, 0, 2);
    s.waits(5, "vmmaps");
    s.relief();
    assert_eq!(s.results(), [(3, Ok(())), (4, Ok(())), (5, Ok(()))]);
    assert_eq!(s.entries(), [(2, 8, 0)]);
    check(&s.sim);
}
