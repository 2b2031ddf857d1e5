//! `vm_map_submap` and `kmem_suballoc`.

use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::control::KernReturn;
use vmkern_abi::layout::{EntryFlags, VmMap};

use super::super::EntrySpec;
use super::{Fixture, PAGES};

fn submap(f: &Fixture, start: u64, end: u64) -> Result<KPtr<VmMap>, KernReturn> {
    let map = f.vm().vm_map_create(f.at(start), f.at(end)).expect("pages");
    f.vm().vm_map_submap(f.map, f.at(start), f.at(end), map).map(|()| map)
}

#[test]
fn a_range_becomes_a_submap_and_is_cut_to_it() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 0, 20).expect("free");
    let map = submap(&f, 5, 10).expect("a plain range");
    assert_eq!(f.ranges(), [(0, 5), (5, 10), (10, 20)]);
    let e = f.entry(5);
    assert_eq!(e.eflags.get(), EntryFlags::IS_SUB_MAP);
    assert_eq!(e.object.get().addr(), map.addr());
}

#[test]
fn a_submap_never_merges_with_a_neighbour() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 0, 20).expect("free");
    submap(&f, 5, 10).expect("a plain range");
    f.simplify(0);
    f.simplify(5);
    f.simplify(10);
    f.remove(10, 20);
    f.insert(&EntrySpec::EMPTY, 10, 12).expect("free");
    assert_eq!(f.ranges(), [(0, 5), (5, 10), (10, 12)]);
}

#[test]
fn a_range_with_an_object_or_a_submap_or_a_hole_is_refused_and_stays_cut() {
    let f = Fixture::new();
    f.insert(&f.kmem_spec(0), 0, 8).expect("free");
    assert_eq!(submap(&f, 2, 4), Err(KernReturn::InvalidArgument));
    assert_eq!(f.ranges(), [(0, 2), (2, 4), (4, 8)]);
    f.insert(&EntrySpec::EMPTY, 10, 20).expect("free");
    submap(&f, 12, 14).expect("a plain range");
    assert_eq!(submap(&f, 12, 14), Err(KernReturn::InvalidArgument));
    assert_eq!(submap(&f, 18, 22), Err(KernReturn::InvalidArgument));
    assert_eq!(submap(&f, 8, 16), Err(KernReturn::InvalidArgument));
    assert_eq!(submap(&f, 8, 9), Err(KernReturn::InvalidArgument));
    assert_eq!(
        submap(&f, PAGES - 4, PAGES),
        Err(KernReturn::InvalidArgument),
        "nothing is there at all"
    );
    f.ranges();
}

#[test]
fn suballoc_gives_an_empty_map_over_its_own_entry() {
    let f = Fixture::new();
    let size = f.map().size.get();
    let inner = f.vm().kmem_suballoc(f.map, 3 * PAGE_SIZE - 5);
    let m = f.vm().get(inner);
    assert_eq!((m.min_offset(), m.max_offset()), (f.at(0), f.at(3)));
    assert_eq!((m.nentries.get(), m.size.get(), m.system_map.get().raw()), (0, 0, 0));
    assert_eq!(f.map().size.get(), size + 3 * PAGE_SIZE);
    assert_eq!(f.ranges(), [(0, 3)]);
    f.vm().vm_map_check(inner).expect("the map is sound");
}

#[test]
fn suballoc_after_a_plain_entry_is_cut_off_it_again() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 0, 4).expect("free");
    let _ = f.vm().kmem_suballoc(f.map, 2 * PAGE_SIZE);
    assert_eq!(f.ranges(), [(0, 4), (4, 6)]);
}

#[test]
#[should_panic(expected = "kmem_suballoc: bad status return of 3")]
fn suballoc_without_room_is_a_panic() {
    let f = Fixture::new();
    let _ = f.vm().kmem_suballoc(f.map, (PAGES + 1) * PAGE_SIZE);
}

#[test]
fn a_fault_is_looked_up_through_submaps() {
    let f = Fixture::new();
    let inner = f.vm().kmem_suballoc(f.map, 8 * PAGE_SIZE);
    f.vm().get(inner).system_map.raise();
    let addr = f.vm().kmem_alloc(inner, PAGE_SIZE).expect("room");
    let read = vmkern_abi::layout::Protection::READ;
    let place =
        f.vm().vm_map_lookup(f.vm().kernel_map(), addr.add(9), read).expect("an entry is there");
    assert_eq!((place.map, place.object), (inner, f.vm().kernel_object()));
    f.vm().vm_map_lookup_done(&place);
    assert_eq!(
        f.vm().vm_map_lookup(f.vm().kernel_map(), f.at(7), read),
        Err(KernReturn::InvalidAddress)
    );
    assert_eq!(f.vm().vm_map_lookup(f.map, f.at(9), read), Err(KernReturn::InvalidAddress));
}

#[test]
fn a_fault_against_the_protection_is_refused() {
    use vmkern_abi::layout::Protection;
    let f = Fixture::new();
    f.insert(&EntrySpec { protection: Protection::READ, ..EntrySpec::EMPTY }, 0, 1).expect("free");
    assert_eq!(
        f.vm().vm_map_lookup(f.map, f.at(0), Protection::WRITE),
        Err(KernReturn::ProtectionFailure)
    );
}

#[test]
#[should_panic(expected = "kmem_suballoc: cannot create submap")]
fn a_submap_that_cannot_have_its_page_while_nobody_could_wake_it_is_a_panic() {
    let f = Fixture::new();
    f.drain(0);
    // As before the pagedaemon has started.
    f.vm().cnt().v_free_min.set(0);
    let _ = f.vm().kmem_suballoc(f.map, PAGE_SIZE);
}
