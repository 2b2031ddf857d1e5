//! Allocating and freeing repeatedly: the cost of the functions without the ring.

use vmkern_abi::addr::KPtr;
use vmkern_abi::control::{Allocator, KernReturn, MallocFlags, Outcome};
use vmkern_abi::layout::VmMap;

use crate::vm::{Vm, VmMachine};

/// Allocates `size` bytes of `map` and frees them, `count` times. Ends with the first failure.
/// Locks: none may be held. `kmem_alloc` sleeps.
pub(super) fn pairs<M: VmMachine>(
    vm: &Vm<M>,
    map: KPtr<VmMap>,
    size: u64,
    count: u64,
    allocator: Allocator,
) -> Outcome {
    if allocator == Allocator::Malloc && !vm.get(map).system_map.is_set() {
        return Outcome::Error(KernReturn::InvalidArgument);
    }
    for _ in 0..count {
        let block = match allocator {
            Allocator::Malloc => vm.kmem_malloc(map, size, MallocFlags::NOWAIT),
            Allocator::Alloc => vm.kmem_alloc(map, size),
        };
        let Some(addr) = block else { return Outcome::Null };
        vm.kmem_free(map, addr, size);
    }
    Outcome::Ok
}
