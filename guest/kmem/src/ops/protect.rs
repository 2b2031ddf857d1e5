//! `vm_map_protect` with the arguments that a script gives: FreeBSD's callers have checked theirs.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, Outcome};
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::layout::{Protection, VmMap};

use crate::vm::{Vm, VmMachine};

/// Makes `[addr, addr + size)` of `map` allow `protection`. Refuses ends that are not page aligned,
/// and a range that is not inside the map, where `vm_map_protect` would confine it. Refuses EXECUTE
/// too, though entries have it at most, as in FreeBSD: no memory is ever writable and executable.
/// The kernel's image keeps the protection with which it was loaded.
pub fn protect<M: VmMachine>(
    vm: &Vm<M>,
    map: KPtr<VmMap>,
    addr: GuestVirt,
    size: u64,
    protection: Protection,
) -> Outcome {
    if !addr.is_page_aligned() || !size.is_multiple_of(PAGE_SIZE) {
        return Outcome::Error(KernReturn::InvalidArgument);
    }
    if protection.contains(Protection::EXECUTE) {
        return Outcome::Error(KernReturn::ProtectionFailure);
    }
    let m = vm.get(map);
    let end = addr.checked_add(size).filter(|&end| end <= m.max_offset());
    let Some(end) = end.filter(|_| addr >= m.min_offset()) else {
        return Outcome::Error(KernReturn::InvalidAddress);
    };
    if addr < vm.state().virtual_avail.get() && end > KERNBASE {
        return Outcome::Error(KernReturn::ProtectionFailure);
    }
    vm.vm_map_protect(map, addr, end, protection).map_or_else(Outcome::Error, |()| Outcome::Ok)
}
