//! Faults that meet others: on one page at the same time, and with changes of the map while they
//! sleep or clear a page.

use std::sync::{Arc, Mutex};

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{KernReturn, MapId, Op, Outcome, WaitMessage};
use vmkern_abi::layout::{PQ_ACTIVE, Protection, VmMap, VmPage};
use vmkern_abi::pte::PteFlags;

use super::super::check::check;
use super::super::threads::sleepers;
use super::super::{Sim, SimAccess, SimMachine};
use super::MIB;
use crate::vm::fault::FaultType;
use crate::vm::{Vm, Zeroed};

const R: Protection = Protection::READ;

/// The result of a fault.
type Faulted = Arc<Mutex<Option<Result<(), KernReturn>>>>;

/// A machine whose memory holds garbage, so that each new page is cleared, with a range of exec_map
/// that was never touched.
struct Scene {
    sim: Sim,
    addr: GuestVirt,
    hoard: Vec<KPtr<VmPage>>,
}

/// Pages of the range.
const PAGES: u64 = 8;

impl Scene {
    fn new() -> Self {
        let sim = Sim::boot_with(16 * MIB, Tunables::default(), Zeroed::No);
        let addr = sim.exec(PAGES);
        // The threads first, because they need stacks.
        for tid in [1, 2] {
            assert_eq!(sim.execute_on(tid, Op::Nop), Outcome::Ok);
        }
        Self { sim, addr, hoard: Vec::new() }
    }

    fn vm(&self) -> &Vm<SimMachine> {
        self.sim.vm()
    }

    fn map(&self) -> KPtr<VmMap> {
        self.vm().map_by_id(MapId::EXEC).expect("it exists")
    }

    fn at(&self, page: u64) -> GuestVirt {
        self.addr.add(page * PAGE_SIZE)
    }

    fn page(&self, page: u64) -> &VmPage {
        let pa = self.vm().pmap_extract(self.at(page)).expect("it is mapped");
        self.vm().get(self.vm().phys_to_vm_page(pa).expect("it is managed"))
    }

    fn zfod(&self) -> u64 {
        self.vm().cnt().v_zfod.get()
    }

    /// Makes thread `tid`, a new one, fault on page `page`.
    fn faults(&self, tid: u32, page: u64, fault: FaultType) -> Faulted {
        let (result, va) = (Faulted::default(), self.at(page));
        let mine = result.clone();
        self.sim.spawn(tid, move |vm| {
            *mine.lock().expect("nobody panics here") = Some(vm.trap_pfault(va, fault));
        });
        result
    }

    /// Makes thread 4 run `f` when it is its turn, which is while the next page is cleared. Returns
    /// what it then sleeps in, if it sleeps.
    fn meanwhile(
        &self,
        f: impl FnOnce(&Vm<SimMachine>) + Send + 'static,
    ) -> Arc<Mutex<Option<WaitMessage>>> {
        let slept = Arc::new(Mutex::new(None));
        let mine = slept.clone();
        self.sim.machine().during_next_clear(Box::new(move |vm| {
            vm.sched_yield();
            let waiting = sleepers(vm).into_iter().find(|waiting| waiting.tid == 4);
            *mine.lock().expect("nobody panics here") = waiting.map(|waiting| waiting.wmesg);
        }));
        self.sim.spawn(4, f);
        slept
    }

    /// Leaves 20 pages, which are too few for faults.
    fn shortage(&mut self) {
        self.sim.hoard(20, &mut self.hoard);
    }

    /// Frees all pages, and lets all threads finish.
    fn relief(&mut self) {
        self.sim.relieve(&mut self.hoard);
    }

    /// Makes thread 3 fault on page 2, and sleep for want of pages.
    fn asleep(&mut self, fault: FaultType) -> Faulted {
        self.shortage();
        let result = self.faults(3, 2, fault);
        self.sim.run();
        assert_eq!(self.sim.waits_for(3), Some(WaitMessage::new("pfault")));
        result
    }
}

fn taken<T: Copy>(cell: &Mutex<Option<T>>) -> Option<T> {
    *cell.lock().expect("nobody panics here")
}

#[test]
fn the_second_of_two_faults_on_one_page_waits_in_vmpfw_and_gets_the_page_of_the_first() {
    for second in [FaultType::Read, FaultType::Write] {
        let s = Scene::new();
        let (va, zfod, faults) = (s.at(1), s.zfod(), s.vm().cnt().v_faults.get());
        let first = s.faults(3, 1, FaultType::Write);
        let slept = s.meanwhile(move |vm| {
            assert_eq!(vm.trap_pfault(va, second), Ok(()));
        });
        s.sim.run();
        assert_eq!(taken(&first), Some(Ok(())));
        assert_eq!(taken(&slept), Some(WaitMessage::new("vmpfw")));
        assert_eq!((s.zfod() - zfod, s.vm().cnt().v_faults.get() - faults), (1, 2));
        assert_eq!(s.vm().cnt().v_active_count.get(), 1);
        check(&s.sim);
    }
}

#[test]
fn a_read_that_collides_with_a_write_forgets_no_write_and_flushes_nothing() {
    for [first, second] in
        [[FaultType::Write, FaultType::Read], [FaultType::Read, FaultType::Write]]
    {
        let s = Scene::new();
        let va = s.at(1);
        let _first = s.faults(3, 1, first);
        let slept = s.meanwhile(move |vm| {
            let flushes = vm.machine().flushes();
            assert_eq!(vm.trap_pfault(va, second), Ok(()));
            assert_eq!(vm.machine().flushes(), flushes);
        });
        s.sim.run();
        assert_eq!(taken(&slept), Some(WaitMessage::new("vmpfw")));
        let pte = SimAccess::new(s.vm()).walk(va).expect("it is mapped");
        assert!(pte.flags().contains(PteFlags::M), "{pte:?}");
    }
}

#[test]
fn a_range_that_is_freed_while_its_page_is_cleared_waits_in_vmopar_and_the_fault_is_invalid() {
    let s = Scene::new();
    let (addr, map) = (s.addr, s.map());
    let result = s.faults(3, 1, FaultType::Write);
    let slept = s.meanwhile(move |vm| vm.kmem_free_wakeup(map, addr, PAGES * PAGE_SIZE));
    s.sim.run();
    assert_eq!(taken(&slept), Some(WaitMessage::new("vmopar")));
    assert_eq!(taken(&result), Some(Err(KernReturn::InvalidAddress)));
    assert_eq!((s.vm().cnt().v_active_count.get(), s.sim.anonymous_objects()), (0, 0));
    check(&s.sim);
}

#[test]
fn a_range_that_is_closed_while_its_page_is_cleared_fails_the_fault_and_keeps_the_page() {
    let s = Scene::new();
    let (addr, map) = (s.addr, s.map());
    let result = s.faults(3, 1, FaultType::Write);
    let slept = s.meanwhile(move |vm| {
        assert_eq!(vm.vm_map_protect(map, addr, addr.add(PAGES * PAGE_SIZE), R), Ok(()));
    });
    s.sim.run();
    assert_eq!((taken(&slept), taken(&result)), (None, Some(Err(KernReturn::ProtectionFailure))));
    let zfod = s.zfod();
    assert_eq!(s.sim.read(s.at(1)), 0);
    assert_eq!(s.zfod(), zfod, "the page is there");
    check(&s.sim);
}

#[test]
fn a_read_fault_gives_no_permission_that_was_taken_away_while_its_page_was_cleared() {
    let s = Scene::new();
    let (addr, map) = (s.addr, s.map());
    let result = s.faults(3, 1, FaultType::Read);
    let _slept = s.meanwhile(move |vm| {
        assert_eq!(vm.vm_map_protect(map, addr, addr.add(PAGES * PAGE_SIZE), R), Ok(()));
    });
    s.sim.run();
    assert_eq!(taken(&result), Some(Ok(())));
    let pte = SimAccess::new(s.vm()).walk(s.at(1)).expect("it is mapped");
    assert!(!pte.flags().contains(PteFlags::RW), "{pte:?}");
    check(&s.sim);
}

#[test]
fn another_change_of_the_map_while_a_page_is_cleared_costs_a_look_up_and_no_second_page() {
    let s = Scene::new();
    let (middle, map, zfod) = (s.at(4), s.map(), s.zfod());
    let result = s.faults(3, 6, FaultType::Write);
    let slept = s.meanwhile(move |vm| {
        // A free of nothing cuts the entry, and a new range comes behind it.
        vm.kmem_free_wakeup(map, middle, 0);
        assert!(vm.kmem_alloc_wait(map, PAGE_SIZE).is_some());
    });
    s.sim.run();
    assert_eq!((taken(&slept), taken(&result)), (None, Some(Ok(()))));
    assert_eq!(s.zfod() - zfod, 1);
    assert!(s.vm().pmap_extract(s.at(6)).is_some());
    check(&s.sim);
}

#[test]
fn a_wiring_that_collides_with_a_fault_waits_in_vmpfw_and_wires_the_page_of_the_fault() {
    let s = Scene::new();
    let (addr, map, zfod) = (s.addr, s.map(), s.zfod());
    let result = s.faults(3, 0, FaultType::Read);
    let slept = s.meanwhile(move |vm| {
        assert_eq!(vm.vm_map_wire(map, addr, addr.add(PAGES * PAGE_SIZE)), Ok(()));
    });
    s.sim.run();
    assert_eq!(taken(&slept), Some(WaitMessage::new("vmpfw")));
    assert_eq!((taken(&result), s.zfod() - zfod), (Some(Ok(())), PAGES));
    for page in 0..PAGES {
        let page = s.page(page);
        assert_eq!((page.wire_count.get(), page.queue.get()), (1, 0));
    }
    check(&s.sim);
}

#[test]
fn a_fault_that_collides_with_a_wiring_waits_in_vmpfw_and_leaves_the_page_wired() {
    let s = Scene::new();
    let (va, start, end, map) = (s.at(0), s.addr, s.at(PAGES), s.map());
    s.sim.spawn(3, move |vm| assert_eq!(vm.vm_map_wire(map, start, end), Ok(())));
    let slept = s.meanwhile(move |vm| {
        assert_eq!(vm.trap_pfault(va, FaultType::Write), Ok(()));
    });
    s.sim.run();
    assert_eq!(taken(&slept), Some(WaitMessage::new("vmpfw")));
    assert_eq!((s.page(0).wire_count.get(), s.page(0).queue.get()), (1, 0));
    check(&s.sim);
    s.vm().vm_map_unwire(map, start, end).expect("it is wired");
    assert_eq!((s.page(0).wire_count.get(), s.page(0).queue.get()), (0, PQ_ACTIVE));
    check(&s.sim);
}

#[test]
fn a_range_that_is_freed_while_a_fault_sleeps_is_an_invalid_address() {
    let mut s = Scene::new();
    let result = s.asleep(FaultType::Write);
    s.sim.exec_free(s.addr, PAGES);
    s.relief();
    assert_eq!(taken(&result), Some(Err(KernReturn::InvalidAddress)));
    check(&s.sim);
}

#[test]
fn a_range_that_is_freed_and_allocated_again_while_a_fault_sleeps_gets_a_page_of_its_new_object() {
    let mut s = Scene::new();
    s.sim.write(s.at(7), 1);
    let old = s.page(7).object.get();
    // An object that stays in use does not come again.
    assert_eq!(s.sim.exec(1), s.at(8));
    s.sim.write(s.at(8), 1);
    let result = s.asleep(FaultType::Write);
    s.sim.exec_free(s.addr, PAGES);
    assert_eq!(s.sim.exec(PAGES), s.addr);
    s.relief();
    assert_eq!(taken(&result), Some(Ok(())));
    assert_ne!(s.page(2).object.get(), old);
    assert_eq!(s.page(8).object.get(), old);
    check(&s.sim);
}

#[test]
fn a_range_that_is_closed_while_a_fault_sleeps_refuses_the_write() {
    let mut s = Scene::new();
    let result = s.asleep(FaultType::Write);
    s.vm().vm_map_protect(s.map(), s.addr, s.at(PAGES), R).expect("it is allowed");
    s.relief();
    assert_eq!(taken(&result), Some(Err(KernReturn::ProtectionFailure)));
    assert_eq!(s.vm().pmap_extract(s.at(2)), None);
    check(&s.sim);
}
