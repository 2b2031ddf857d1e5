//! The functions of `vm_kern.c` on a real guest: a file for each, in the order of the original;
//! workloads that combine them; and the results of accesses. Every guest is checked at the end of
//! its test: see [`vmkern_tests::invariants`].

mod clock;
mod fatal_faults;
mod faults;
mod kmem_alloc;
mod kmem_alloc_nofault;
mod kmem_alloc_wait;
mod kmem_free;
mod kmem_free_wakeup;
mod kmem_init;
mod kmem_malloc;
mod kmem_suballoc;
mod nokva;
mod page_classes;
mod sizes;
mod workloads;

use vmkern::abi::pte::PteFlags;
use vmkern::{Guest, GuestVirt, MallocFlags};
use vmkern_tests::kern::PAGE;

const NOWAIT: MallocFlags = MallocFlags::NOWAIT;
const WAITOK: MallocFlags = MallocFlags::WAITOK;
const ZEROED: MallocFlags = MallocFlags::NOWAIT.union(MallocFlags::ZERO);

/// Asserts that each page of the range has a translation of wired kernel memory and its own
/// physical page.
fn assert_wired_memory(guest: &Guest, addr: GuestVirt, size: u64) {
    let mut frames = std::collections::BTreeSet::new();
    let wanted = PteFlags::V
        | PteFlags::RW
        | PteFlags::G
        | PteFlags::W
        | PteFlags::A
        | PteFlags::M
        | PteFlags::NX;
    for page in 0..size.div_ceil(PAGE) {
        let at = addr.add(page * PAGE);
        let walk = guest.vtop(at).expect("the page tables can be read");
        let mapping = walk.mapping.unwrap_or_else(|| panic!("{at} is not mapped"));
        assert!(mapping.flags.contains(wanted), "flags at {at}: {:?}", mapping.flags);
        assert!(frames.insert(mapping.phys), "{at} and another address share {}", mapping.phys);
    }
}
