//! Busy pages, and the waits for them that the kernel's own operations never need on one CPU; and
//! the pagedaemon's own wait.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome, WaitMessage};
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::{VM_PAGE_BITS_ALL, VmObject, VmPage};

use super::super::check::check;
use super::super::{Sim, SimMachine};
use super::{MIB, NOWAIT, boot};
use crate::kern::eventhandler::EventPriority;
use crate::kern::thread::PAGEDAEMON_TID;
use crate::vm::Vm;
use crate::vm::eventhandler::VM_LOWMEM;
use crate::vm::page::{AllocClass, AllocFlags};

fn waits(sim: &Sim, tid: u32, wmesg: &str) {
    sim.run();
    assert_eq!(sim.waits_for(tid), Some(WaitMessage::new(wmesg)), "thread {tid}");
}

/// Runs `f` with the object of `m` locked.
fn locked(sim: &Sim, m: KPtr<VmPage>, f: impl FnOnce(&Vm<SimMachine>)) {
    let object = sim.vm().get(m).object.get();
    let _locked = sim.vm().vm_object_lock(object);
    f(sim.vm());
}

/// A page of exec_map that has been touched, and is busy now.
fn busy_page(sim: &Sim) -> (GuestVirt, KPtr<VmPage>) {
    let addr = sim
        .address(&Op::KmemAllocWait { map: MapId::EXEC, size: PAGE_SIZE })
        .expect("there is room");
    sim.write(addr, 77);
    let m = sim
        .vm()
        .pmap_extract(addr)
        .and_then(|pa| sim.vm().phys_to_vm_page(pa))
        .expect("it is mapped");
    locked(sim, m, |vm| vm.vm_page_busy(m));
    (addr, m)
}

#[test]
fn who_frees_a_range_waits_in_vmopar_for_whoever_works_on_its_page() {
    let sim = boot();
    // A second entry on the object, so the pages are freed before the object.
    let (addr, m) = busy_page(&sim);
    let more = sim
        .address(&Op::KmemAllocWait { map: MapId::EXEC, size: PAGE_SIZE })
        .expect("there is room");
    sim.write(more, 5);
    sim.submit(1, Op::KmemFreeWakeup { map: MapId::EXEC, addr, size: PAGE_SIZE });
    waits(&sim, 1, "vmopar");
    locked(&sim, m, |vm| vm.vm_page_wakeup(m));
    assert_eq!(sim.finish(1), Outcome::Ok);
    assert_eq!(sim.read(more), 5);
    check(&sim);
}

#[test]
fn a_fault_waits_in_vmpfw_for_whoever_works_on_the_page() {
    let sim = boot();
    let (addr, m) = busy_page(&sim);
    sim.vm().tlb_flush(sim.vm().pmap_remove(addr, addr.add(PAGE_SIZE)));
    sim.submit(1, Op::Read { addr });
    waits(&sim, 1, "vmpfw");
    locked(&sim, m, |vm| vm.vm_page_wakeup(m));
    assert_eq!(sim.finish(1), Outcome::Value(77));
    check(&sim);
}

#[test]
fn a_fault_that_slept_in_vmpfw_looks_again_when_the_range_is_gone() {
    let sim = boot();
    let (addr, m) = busy_page(&sim);
    sim.vm().tlb_flush(sim.vm().pmap_remove(addr, addr.add(PAGE_SIZE)));
    let faulted = std::sync::Arc::new(std::sync::Mutex::new(None));
    let result = faulted.clone();
    sim.spawn(1, move |vm| {
        let outcome = vm.trap_pfault(addr, crate::vm::fault::FaultType::Read);
        *result.lock().expect("nobody panics here") = Some(outcome);
    });
    waits(&sim, 1, "vmpfw");
    sim.submit(2, Op::KmemFreeWakeup { map: MapId::EXEC, addr, size: PAGE_SIZE });
    waits(&sim, 2, "vmopar");
    locked(&sim, m, |vm| vm.vm_page_wakeup(m));
    assert_eq!(sim.finish(2), Outcome::Ok);
    let outcome = *faulted.lock().expect("nobody panics here");
    assert_eq!(outcome, Some(Err(vmkern_abi::control::KernReturn::InvalidAddress)));
    check(&sim);
}

#[test]
fn kmem_alloc_waits_in_pgrbwt_for_a_page_left_behind_and_takes_it_as_it_is() {
    let sim = boot();
    // The thread first, because it needs a stack.
    assert_eq!(sim.execute_on(1, Op::Nop), Outcome::Ok);
    let addr = sim.alloc(PAGE_SIZE).expect("there is memory");
    sim.free(MapId::KERNEL, addr, PAGE_SIZE);
    // A page that an earlier owner of the address left in the object, as a leak would.
    let object: KPtr<VmObject> = sim.vm().kernel_object();
    let pindex = addr.since(VM_MIN_KERNEL_ADDRESS) / PAGE_SIZE;
    let guard = sim.vm().vm_object_lock(object);
    let m = sim
        .vm()
        .vm_page_alloc(&guard, pindex, AllocClass::Normal, AllocFlags::empty())
        .expect("a page");
    sim.vm().page(m).valid.set(VM_PAGE_BITS_ALL);
    drop(guard);
    sim.submit(1, Op::KmemAlloc { map: MapId::KERNEL, size: 2 * PAGE_SIZE });
    waits(&sim, 1, "pgrbwt");
    locked(&sim, m, |vm| vm.vm_page_wakeup(m));
    assert_eq!(sim.finish(1), Outcome::Value(addr.get()));
    assert_eq!(sim.vm().pmap_extract(addr), Some(sim.vm().vm_page_to_phys(m)), "the very page");
    check(&sim);
}

#[test]
#[should_panic(expected = "vm_page_insert: offset already allocated")]
fn a_page_that_is_wired_twice_stays_behind_when_freed_and_kmem_malloc_over_it_is_a_panic() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    let m = sim
        .vm()
        .pmap_extract(addr)
        .and_then(|pa| sim.vm().phys_to_vm_page(pa))
        .expect("it is mapped");
    sim.vm().vm_page_wire(&sim.vm().page_queues(), m);
    sim.free(MapId::KMEM, addr, PAGE_SIZE);
    assert_eq!(sim.vm().pmap_extract(addr), None);
    let page = sim.vm().page(m);
    assert_eq!(
        (page.object.get(), page.valid.get(), page.wire_count.get()),
        (sim.vm().kmem_object(), 0, 1)
    );
    let _ = sim.malloc(PAGE_SIZE, NOWAIT);
}

/// Allocates as a handler should not: it waits.
fn greedy(vm: &Vm<SimMachine>, _arg: u64, _flags: u64) {
    let size = PAGE_SIZE;
    if vm.cnt().v_swapout.get() == 0 && vm.current_thread() == vm.state().pageproc.get() {
        vm.cnt().v_swapout.set(1);
        assert!(vm.kmem_malloc(vm.kmem_map(), size, MallocFlags::WAITOK).is_some());
    }
}

#[test]
fn the_pagedaemon_itself_waits_in_vmwait_with_a_capital_until_v_pageout_free_min_are_free() {
    let sim = Sim::boot(16 * MIB, Tunables { vm_kmem_size: Some(24 * MIB), ..Tunables::default() });
    assert!(sim.vm().eventhandler_register(VM_LOWMEM, greedy, 0, EventPriority::ANY).is_ok());
    assert_eq!(sim.execute_on(1, Op::Nop), Outcome::Ok);
    let mut blocks = Vec::new();
    while sim.free_pages() > 2 {
        blocks.push(sim.malloc(PAGE_SIZE, NOWAIT).expect("a page is free"));
    }
    sim.submit(1, Op::KmemMalloc { map: MapId::KMEM, size: PAGE_SIZE, flags: MallocFlags::WAITOK });
    waits(&sim, 1, "vmwait");
    waits(&sim, PAGEDAEMON_TID, "VMWait");
    let enough = sim.vm().cnt().v_pageout_free_min.get();
    assert_eq!(enough, 34);
    while sim.free_pages() + 1 < enough {
        sim.free(MapId::KMEM, blocks.pop().expect("enough blocks"), PAGE_SIZE);
        waits(&sim, PAGEDAEMON_TID, "VMWait");
    }
    sim.free(MapId::KMEM, blocks.pop().expect("enough blocks"), PAGE_SIZE);
    sim.run();
    assert_ne!(sim.waits_for(PAGEDAEMON_TID), Some(WaitMessage::new("VMWait")));
    blocks.drain(..).for_each(|addr| sim.free(MapId::KMEM, addr, PAGE_SIZE));
    assert!(matches!(sim.finish(1), Outcome::Value(_)));
    check(&sim);
}
