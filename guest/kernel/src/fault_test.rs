//! Page faults that end the kernel, on demand: each proves what the report of such a fault says.
//! There is a function for each row of the table in `docs/faults.md` that is fatal.

use core::hint::black_box;

use kmem::vm::map::{EntrySpec, FindSpace};
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MallocFlags, MapId};
use vmkern_abi::crash::FatalFault;
use vmkern_abi::kva::DMAP_MAX;
use vmkern_abi::layout::Protection;

use crate::memory::KernelVm;

/// Dies of the fault `row`.
pub fn fault(vm: &KernelVm, row: FatalFault) -> ! {
    match row {
        FatalFault::Hole => hole(vm),
        FatalFault::SubmapHole => submap_hole(vm),
        FatalFault::NoFault => nofault(vm),
        FatalFault::NoObject => no_object(vm),
        FatalFault::DirectMapHole => dmap_hole(),
        FatalFault::Execute => execute(vm),
        FatalFault::ReadOnly => read_only(vm),
        FatalFault::LostPage => lost_page(vm),
        FatalFault::Interrupt => interrupt(vm),
        FatalFault::Mutex => mutex(vm),
        FatalFault::CriticalSection => critical_section(vm),
    }
    panic!("fault={} was survived", row.name())
}

/// Reads the word at `va`.
fn read(va: GuestVirt) {
    // SAFETY: the access faults, as intended, or finds memory that nothing else uses.
    black_box(unsafe { (va.get() as *const u64).read_volatile() });
}

/// `address`, which the memory of a fresh guest is enough for.
fn there(address: Option<GuestVirt>) -> GuestVirt {
    address.unwrap_or_else(|| panic!("a fresh guest has no room"))
}

/// A page of kmem_map, wired.
fn wired_page(vm: &KernelVm) -> GuestVirt {
    there(vm.kmem_malloc(vm.kmem_map(), PAGE_SIZE, MallocFlags::NOWAIT))
}

/// A page of exec_map, which would get memory at its first touch.
fn untouched_page(vm: &KernelVm) -> GuestVirt {
    there(vm.map_by_id(MapId::EXEC).and_then(|map| vm.kmem_alloc_wait(map, PAGE_SIZE)))
}

fn hole(vm: &KernelVm) {
    read(there(vm.kmem_alloc_nofault(vm.kernel_map(), PAGE_SIZE)).add(1 << 30));
}

fn submap_hole(vm: &KernelVm) {
    let addr = wired_page(vm);
    vm.kmem_free(vm.kmem_map(), addr, PAGE_SIZE);
    read(addr);
}

fn nofault(vm: &KernelVm) {
    read(there(vm.kmem_alloc_nofault(vm.kernel_map(), PAGE_SIZE)));
}

fn no_object(vm: &KernelVm) {
    let Some(map) = vm.map_by_id(MapId::BUFFER) else { return };
    let min = vm.get(map).min_offset();
    if let Ok(addr) = vm.vm_map_find(map, &EntrySpec::EMPTY, min, PAGE_SIZE, FindSpace::Any) {
        read(addr);
    }
}

fn dmap_hole() {
    read(GuestVirt::new(DMAP_MAX.get() - PAGE_SIZE));
}

fn execute(vm: &KernelVm) {
    let addr = wired_page(vm);
    // SAFETY: no kernel memory is executable; the call faults at its target, as intended.
    unsafe { core::arch::asm!("call {}", in(reg) addr.get(), clobber_abi("C")) };
}

fn read_only(vm: &KernelVm) {
    let addr = wired_page(vm);
    let end = addr.add(PAGE_SIZE);
    if vm.vm_map_protect(vm.kmem_map(), addr, end, Protection::READ).is_ok() {
        // SAFETY: the access faults, as intended.
        unsafe { (addr.get() as *mut u64).write_volatile(1) };
    }
}

fn lost_page(vm: &KernelVm) {
    let addr = wired_page(vm);
    lose_page(vm, addr);
    read(addr);
    vm.kmem_free(vm.kmem_map(), addr, PAGE_SIZE);
}

fn interrupt(vm: &KernelVm) {
    let addr = untouched_page(vm);
    vm.intr_enter();
    read(addr);
    vm.intr_exit();
}

fn mutex(vm: &KernelVm) {
    let addr = untouched_page(vm);
    vm.vm_map_lock(vm.kmem_map());
    read(addr);
    vm.vm_map_unlock(vm.kmem_map());
}

fn critical_section(vm: &KernelVm) {
    let addr = untouched_page(vm);
    vm.critical_enter();
    read(addr);
    vm.critical_exit();
}

/// Frees the page at `addr`, wired memory of kmem_object, as only a bug would: its range stays.
pub fn lose_page(vm: &KernelVm, addr: GuestVirt) {
    let m = vm.pmap_extract(addr).and_then(|pa| vm.phys_to_vm_page(pa));
    let m = m.unwrap_or_else(|| panic!("no page at {addr:#x}"));
    vm.tlb_flush(vm.pmap_remove(addr, addr.add(PAGE_SIZE)));
    let _object = vm.vm_object_lock(vm.kmem_object());
    let queues = vm.page_queues();
    vm.vm_page_unwire(&queues, m);
    vm.vm_page_free(&queues, m);
}
