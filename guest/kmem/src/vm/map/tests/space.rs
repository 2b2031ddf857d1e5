//! `vm_map_lookup_entry`, `vm_map_findspace` and `vm_map_find`.

use vmkern_abi::addr::{GuestVirt, NBPDR, PAGE_SIZE};
use vmkern_abi::control::KernReturn;

use super::super::{EntrySpec, FindSpace, Lookup, NoRange, header};
use super::{Fixture, PAGES};

/// Entries at pages 4 to 8 and 12 to 20.
fn two_entries() -> Fixture {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 4, 8).expect("free");
    f.insert(&EntrySpec::EMPTY, 12, 20).expect("free");
    f
}

#[test]
fn a_look_up_gives_the_entry_inside_or_the_one_before_or_the_header() {
    let f = two_entries();
    let look = |page| f.vm().vm_map_lookup_entry(f.map, f.at(page));
    let (low, high) = (f.entry_ptr(4), f.entry_ptr(12));
    assert_eq!(look(0), Lookup::After(header(f.map)));
    assert_eq!(look(4), Lookup::Inside(low));
    assert_eq!(look(7), Lookup::Inside(low));
    assert_eq!(look(8), Lookup::After(low));
    assert_eq!(look(19), Lookup::Inside(high));
    assert_eq!(look(20), Lookup::After(high));
    assert_eq!(f.vm().vm_map_lookup_entry(f.map, GuestVirt::new(0)), Lookup::After(header(f.map)));
    assert_eq!(f.vm().vm_map_lookup_entry(f.map, GuestVirt::new(u64::MAX)), Lookup::After(high));
}

#[test]
fn the_lowest_room_wins_the_range_below_the_first_entry_included() {
    let f = two_entries();
    assert_eq!(f.findspace(0, 1), Ok(0));
    assert_eq!(f.findspace(0, 4), Ok(0));
    assert_eq!(f.findspace(0, 5), Ok(20));
    assert_eq!(f.findspace(1, 4), Ok(8));
    assert_eq!(f.findspace(1, 3), Ok(1));
    assert_eq!(f.findspace(5, 2), Ok(8));
    assert_eq!(f.findspace(9, 3), Ok(9));
    assert_eq!(f.findspace(10, 3), Ok(20));
}

#[test]
fn an_exact_fit_of_the_whole_map_succeeds_and_one_page_more_fails() {
    let f = Fixture::new();
    assert_eq!(f.findspace(0, PAGES), Ok(0));
    assert_eq!(f.findspace(0, PAGES + 1), Err(KernReturn::NoSpace));
    assert_eq!(f.findspace(1, PAGES), Err(KernReturn::NoSpace));
    f.insert(&EntrySpec::EMPTY, 0, PAGES).expect("free");
    assert_eq!(f.findspace(0, 1), Err(KernReturn::NoSpace));
}

#[test]
fn lengths_that_wrap_find_no_room() {
    let f = Fixture::new();
    for length in [u64::MAX - 4095, 1 << 63, GuestVirt::new(0).get().wrapping_sub(f.min.get())] {
        let found = f.locked(|| f.vm().vm_map_findspace(f.map, f.min, length));
        assert_eq!(found, Err(NoRange::Refused(KernReturn::NoSpace)), "{length:#x}");
    }
}

#[test]
fn a_start_below_the_map_means_its_first_address() {
    let f = Fixture::new();
    let found = f.locked(|| f.vm().vm_map_findspace(f.map, GuestVirt::new(0), PAGE_SIZE));
    assert_eq!(found, Ok(f.min));
}

#[test]
fn no_bytes_fit_everywhere_but_inside_an_entry() {
    let f = two_entries();
    assert_eq!(f.findspace(0, 0), Ok(0));
    assert_eq!(f.findspace(4, 0), Ok(4));
    assert_eq!(f.findspace(5, 0), Ok(8));
    assert_eq!(f.findspace(20, 0), Ok(20));
}

#[test]
fn only_kernel_map_grows_the_page_tables_and_a_submap_has_its_own_from_the_start() {
    let f = Fixture::new();
    let vm = f.vm();
    let end = || vm.state().kernel_vm_end.get();
    let before = end();
    assert!(before >= f.map().max_offset());
    f.findspace(0, PAGES).expect("room");
    assert_eq!(end(), before);
    let map = vm.kernel_map();
    vm.vm_map_lock(map);
    vm.vm_map_findspace(map, vm.get(map).min_offset(), 3 * NBPDR).expect("room");
    assert_eq!(end(), before, "the boot has made these");
    let addr = vm.vm_map_findspace(map, before, 3 * NBPDR).expect("room");
    vm.vm_map_unlock(map);
    assert!(end() >= addr.add(3 * NBPDR) && end() > before);
}

#[test]
fn a_shortage_of_page_tables_leaves_kernel_map_as_it_was() {
    let f = Fixture::new();
    let vm = f.vm();
    let map = vm.kernel_map();
    f.sim.take_boot_tables();
    let (entries, free) = (vm.get(map).nentries.get(), vm.cnt().v_free_count.get());
    let end = vm.state().kernel_vm_end.get();
    let find = |length| {
        vm.vm_map_find(map, &EntrySpec::NOFAULT, vm.get(map).min_offset(), length, FindSpace::Any)
    };
    // 64 GiB need 32768 page-table pages; the machine has 16384 pages, and none is requested.
    assert_eq!(find(64 << 30), Err(NoRange::Never));
    assert_eq!(vm.state().vm_pageout_deficit.get(), 0);
    // A page table for each free page, plus the tables above, needs a few more pages than exist.
    let needs = |tables: &u64| vm.pmap_growkernel_pages(end.add(tables * NBPDR));
    let tables = (0..free).rev().find(|tables| needs(tables) <= free).expect("one can be had") + 1;
    let found = find(tables * NBPDR);
    let few = free + 1..free + 5;
    assert!(matches!(found, Err(NoRange::Pages(pages)) if few.contains(&pages)), "{found:?}");
    assert_eq!(vm.state().vm_pageout_deficit.get(), 1);
    assert_eq!((vm.get(map).nentries.get(), vm.cnt().v_free_count.get()), (entries, free));
    assert_eq!(vm.state().kernel_vm_end.get(), end);
    vm.vm_map_check(map).expect("the map is sound");
}

#[test]
fn find_takes_the_address_given_or_nothing_when_it_may_not_choose() {
    let f = two_entries();
    let find = |page, find_space| {
        f.vm().vm_map_find(f.map, &EntrySpec::EMPTY, f.at(page), PAGE_SIZE, find_space)
    };
    assert_eq!(find(30, FindSpace::Exact), Ok(f.at(30)));
    assert_eq!(find(30, FindSpace::Exact), Err(NoRange::Refused(KernReturn::NoSpace)));
    assert_eq!(find(30, FindSpace::Any), Ok(f.at(31)));
    assert_eq!(find(PAGES, FindSpace::Exact), Err(NoRange::Refused(KernReturn::InvalidAddress)));
}

#[test]
fn every_exclusive_acquisition_has_a_timestamp_of_its_own() {
    let f = Fixture::new();
    let stamp = || f.map().timestamp.get();
    let before = stamp();
    f.locked(|| ());
    assert_eq!(stamp(), before + 1);
    f.vm().vm_map_lock_read(f.map);
    f.vm().vm_map_unlock(f.map);
    assert_eq!(stamp(), before + 1);
}
