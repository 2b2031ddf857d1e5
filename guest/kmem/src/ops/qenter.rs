//! `pmap_qenter` and `pmap_qremove` with pages of their own, as drivers and kernel stacks use them.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, Outcome};
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::VmPage;

use crate::vm::page::{AllocClass, AllocFlags};
use crate::vm::pmap::Kentered;
use crate::vm::{Vm, VmMachine};

/// Pages linked by [`VmPage::next`] while nothing else uses that word.
struct Chain<'a, M: VmMachine> {
    vm: &'a Vm<M>,
    head: KPtr<VmPage>,
}

impl<M: VmMachine> Chain<'_, M> {
    fn push(&mut self, m: KPtr<VmPage>) {
        self.vm.vm_page_chain(m, self.head);
        self.head = m;
    }
}

impl<M: VmMachine> Iterator for Chain<'_, M> {
    type Item = KPtr<VmPage>;

    fn next(&mut self) -> Option<KPtr<VmPage>> {
        let m = self.head.non_null()?;
        self.head = self.vm.vm_page_unchain(m);
        Some(m)
    }
}

/// The pages of `[addr, addr + count pages)`, which lie in the kernel's map.
fn range(
    addr: GuestVirt,
    count: u64,
) -> Result<impl Iterator<Item = GuestVirt> + Clone, KernReturn> {
    if !addr.is_page_aligned() {
        return Err(KernReturn::InvalidArgument);
    }
    // No map of the kernel reaches the end of the address space, or past it.
    let bytes = count.checked_mul(PAGE_SIZE).ok_or(KernReturn::InvalidAddress)?;
    let end = addr.checked_add(bytes).ok_or(KernReturn::InvalidAddress)?;
    if addr < VM_MIN_KERNEL_ADDRESS || end > VM_MAX_KERNEL_ADDRESS {
        return Err(KernReturn::InvalidAddress);
    }
    Ok((0..count).map(move |i| addr.add(i * PAGE_SIZE)))
}

/// Maps `count` fresh wired pages at `addr`, in place of the pages that an earlier call mapped
/// there. Fails, and changes nothing, if there is no page table, if something else is mapped, or if
/// there are too few pages (SYSTEM class).
pub fn enter<M: VmMachine>(vm: &Vm<M>, addr: GuestVirt, count: u64) -> Outcome {
    // 1. Everything that can be refused, before anything changes.
    let error = |code| Outcome::Error(code);
    let pages = match range(addr, count) {
        Ok(pages) => pages,
        Err(code) => return error(code),
    };
    if count > vm.vm_page_available() {
        return error(KernReturn::ResourceShortage);
    }
    for va in pages.clone() {
        match vm.pmap_kentered(va) {
            Kentered::Empty | Kentered::Page(_) => {}
            Kentered::NoTable => return error(KernReturn::InvalidAddress),
            Kentered::Occupied => return error(KernReturn::InvalidArgument),
        }
    }
    // 2. The new pages, all or none.
    let mut fresh = Chain { vm, head: KPtr::NULL };
    for _ in 0..count {
        match vm.vm_page_alloc_noobj(AllocClass::System, AllocFlags::WIRED) {
            Some(m) => fresh.push(m),
            None => {
                fresh.for_each(|m| vm.vm_page_unwire_free(m));
                return error(KernReturn::ResourceShortage);
            }
        }
    }
    // 3. The old pages are freed only after no CPU can reach them any more.
    let mut old = Chain { vm, head: KPtr::NULL };
    for va in pages {
        if let Kentered::Page(m) = vm.pmap_kentered(va) {
            old.push(m);
        }
    }
    vm.pmap_qenter(addr, fresh);
    old.for_each(|m| vm.vm_page_unwire_free(m));
    Outcome::Ok
}

/// Undoes [`enter`]: removes the mappings and frees their pages. Other mappings in the range are
/// refused; unmapped addresses are allowed.
pub fn remove<M: VmMachine>(vm: &Vm<M>, addr: GuestVirt, count: u64) -> Outcome {
    let pages = match range(addr, count) {
        Ok(pages) => pages,
        Err(code) => return Outcome::Error(code),
    };
    if pages.clone().any(|va| vm.pmap_kentered(va) == Kentered::Occupied) {
        return Outcome::Error(KernReturn::InvalidArgument);
    }
    let mut old = Chain { vm, head: KPtr::NULL };
    for va in pages {
        if let Kentered::Page(m) = vm.pmap_kentered(va) {
            old.push(m);
        }
    }
    vm.pmap_qremove(addr, count);
    old.for_each(|m| vm.vm_page_unwire_free(m));
    Outcome::Ok
}
