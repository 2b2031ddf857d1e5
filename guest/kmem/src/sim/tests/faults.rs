//! The effect of a kernel access to an address.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MapId, Op};
use vmkern_abi::kva::{DMAP_MIN, KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::pte::PteFlags;

use super::super::check::check;
use super::{NOWAIT, boot};
use crate::sim::{Sim, SimAccess};
use crate::vm::fault::FaultType;

#[test]
#[should_panic(expected = "page fault at 0xffffff8000000010: KERN_INVALID_ADDRESS")]
fn freed_memory_faults() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    sim.write(addr.add(16), 1);
    sim.free(MapId::KMEM, addr, PAGE_SIZE);
    let _ = sim.read(addr.add(16));
}

#[test]
#[should_panic(expected = "vm_fault: fault on nofault entry, addr: ffffff8010001000")]
fn a_touch_of_a_nofault_range_is_freebsds_panic() {
    let sim = boot();
    let below = VM_MIN_KERNEL_ADDRESS.add(0x1000_0000);
    let first = sim.nofault(PAGE_SIZE).expect("there is room");
    assert!(sim.nofault(below.since(first) - PAGE_SIZE).is_some());
    let addr = sim.nofault(2 * PAGE_SIZE).expect("there is room");
    assert_eq!(addr, below);
    sim.ok(&Op::Touch { addr: addr.add(PAGE_SIZE + 5), size: 1 });
}

#[test]
#[should_panic(expected = "vm_fault: fault on nofault entry, addr: ffffffff80000000")]
fn the_unmapped_part_of_the_boot_range_is_a_nofault_entry() {
    let _ = boot().read(KERNBASE);
}

#[test]
fn a_missing_translation_is_entered_again_with_the_same_page() {
    let sim = boot();
    let addr = sim.malloc(2 * PAGE_SIZE, NOWAIT).expect("there is memory");
    sim.fill(addr, 2 * PAGE_SIZE, 5);
    let page = sim.vm().pmap_extract(addr);
    sim.vm().tlb_flush(sim.vm().pmap_remove(addr, addr.add(PAGE_SIZE)));
    assert_eq!(sim.vm().pmap_extract(addr), None);
    sim.verify(addr, 2 * PAGE_SIZE, 5);
    assert_eq!(sim.vm().pmap_extract(addr), page);
    check(&sim);
}

/// Removes the page that is mapped at `addr`, wired memory of kmem_object.
fn lose_page(sim: &Sim, addr: GuestVirt) {
    let vm = sim.vm();
    let m = vm.pmap_extract(addr).and_then(|pa| vm.phys_to_vm_page(pa)).expect("it is mapped");
    vm.tlb_flush(vm.pmap_remove(addr, addr.add(PAGE_SIZE)));
    let object = vm.vm_object_lock(vm.kmem_object());
    let queues = vm.page_queues();
    vm.vm_page_unwire(&queues, m);
    vm.vm_page_free(&queues, m);
    drop(queues);
    drop(object);
}

#[test]
fn a_missing_page_of_a_kernel_object_comes_alone_zeroed_and_is_not_counted_in_v_zfod() {
    for lost in [&[3][..], &[2, 3, 4], &[0, 1, 2, 3, 4, 5, 6, 7]] {
        let sim = boot();
        let addr = sim.malloc(8 * PAGE_SIZE, NOWAIT).expect("there is memory");
        sim.fill(addr, 8 * PAGE_SIZE, 5);
        lost.iter().for_each(|&page| lose_page(&sim, addr.add(page * PAGE_SIZE)));
        let resident = || sim.vm().state().kmem_object.resident_page_count.get();
        let (before, zfod) = (resident(), sim.vm().cnt().v_zfod.get());
        assert_eq!(sim.read(addr.add(3 * PAGE_SIZE)), 0);
        assert_eq!(resident(), before + 1, "pages {lost:?} were missing");
        assert_eq!(sim.vm().cnt().v_zfod.get(), zfod);
    }
}

#[test]
fn a_missing_page_of_wired_memory_is_mapped_wired_and_has_wire_count_0() {
    let sim = boot();
    let addr = sim.malloc(2 * PAGE_SIZE, NOWAIT).expect("there is memory");
    sim.fill(addr, 2 * PAGE_SIZE, 5);
    lose_page(&sim, addr);
    assert_eq!(sim.read(addr), 0);
    let pte = SimAccess::new(sim.vm()).walk(addr).expect("it is mapped");
    let m = sim.vm().phys_to_vm_page(pte.frame()).expect("it is managed");
    assert!(pte.flags().contains(PteFlags::W));
    assert_eq!(sim.vm().get(m).wire_count.get(), 0);
}

#[test]
#[should_panic(expected = "vm_page_unwire: invalid wire count: 0")]
fn freeing_a_missing_page_that_a_fault_has_replaced_is_freebsds_panic() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    lose_page(&sim, addr);
    let _ = sim.read(addr);
    sim.free(MapId::KMEM, addr, PAGE_SIZE);
}

#[test]
fn a_hole_of_kernel_map_is_an_invalid_address_for_every_access() {
    let sim = boot();
    let addr = sim.nofault(PAGE_SIZE).expect("there is room").add(1 << 30);
    for fault in [FaultType::Read, FaultType::Write, FaultType::Execute] {
        assert_eq!(sim.vm().trap_pfault(addr, fault), Err(KernReturn::InvalidAddress));
    }
}

/// An untouched page of exec_map, whose fault could be resolved.
fn untouched(sim: &Sim) -> GuestVirt {
    sim.exec(1)
}

#[test]
#[should_panic(expected = " in an interrupt handler")]
fn a_fault_in_an_interrupt_handler_is_fatal() {
    let sim = boot();
    let addr = untouched(&sim);
    let _ = sim.execute_in_interrupt(&Op::Read { addr });
}

#[test]
#[should_panic(expected = " in an interrupt handler")]
fn a_missing_translation_of_wired_memory_is_fatal_in_an_interrupt_handler() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    sim.vm().tlb_flush(sim.vm().pmap_remove(addr, addr.add(PAGE_SIZE)));
    let _ = sim.execute_in_interrupt(&Op::Read { addr });
}

#[test]
#[should_panic(expected = " while holding system map")]
fn a_fault_with_a_mutex_held_is_fatal_and_names_its_class() {
    let sim = boot();
    let addr = untouched(&sim);
    sim.vm().vm_map_lock(sim.vm().kmem_map());
    let _ = sim.read(addr);
}

#[test]
#[should_panic(expected = " in a critical section")]
fn a_fault_in_a_critical_section_is_fatal() {
    let sim = boot();
    let addr = untouched(&sim);
    sim.vm().critical_enter();
    let _ = sim.read(addr);
}

#[test]
fn addresses_outside_the_kernels_maps_are_invalid_and_no_heap_is_executable() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    for va in [0, 0x7fff_ffff_f000, DMAP_MIN.get(), addr.get() + PAGE_SIZE, u64::MAX] {
        let fault = sim.vm().trap_pfault(vmkern_abi::addr::GuestVirt::new(va), FaultType::Read);
        assert_eq!(fault, Err(KernReturn::InvalidAddress), "{va:#x}");
    }
    assert_eq!(sim.vm().trap_pfault(addr, FaultType::Execute), Err(KernReturn::ProtectionFailure));
}

#[test]
#[should_panic(expected = "belongs to the kernel image")]
fn freeing_the_kernel_image_is_fatal() {
    let sim = boot();
    sim.free(MapId::KERNEL, KERNBASE.add(1 << 20), PAGE_SIZE);
}
