//! The reserve: operations that must not fail do not fail.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::MallocFlags;
use vmkern_abi::layout::MapHome;

use super::super::EntrySpec;
use super::super::reserve::FLOOR;
use super::Fixture;

#[test]
fn every_range_without_an_object_can_be_given_back_alone_when_no_page_is_left() {
    let f = Fixture::new();
    let vm = f.vm();
    let map = vm.kmem_suballoc(vm.kernel_map(), 8000 * PAGE_SIZE);
    vm.get(map).system_map.raise();
    let ranges: Vec<_> =
        (0..4000).map(|_| vm.kmem_alloc_nofault(map, 2 * PAGE_SIZE).expect("room")).collect();
    assert_eq!(vm.get(map).nentries.get(), 1);
    f.drain(0);
    for &addr in ranges.iter().step_by(2) {
        vm.kmem_free(map, addr, 2 * PAGE_SIZE);
    }
    assert_eq!(vm.get(map).nentries.get(), 2000);
    for &addr in ranges.iter().skip(1).step_by(2) {
        vm.kmem_free(map, addr, 2 * PAGE_SIZE);
    }
    assert_eq!((vm.get(map).nentries.get(), vm.get(map).size.get()), (0, 0));
    vm.vm_map_check(map).expect("the map is sound");
}

#[test]
fn wired_memory_can_be_given_back_page_by_page_when_no_page_is_left() {
    let f = Fixture::new();
    let vm = f.vm();
    let addr = vm.kmem_malloc(f.map, 256 * PAGE_SIZE, MallocFlags::NOWAIT).expect("room");
    f.drain(0);
    for page in (0..256).step_by(2) {
        vm.kmem_free(f.map, addr.add(page * PAGE_SIZE), PAGE_SIZE);
        f.ranges();
    }
    assert_eq!(f.map().nentries.get(), 128);
}

#[test]
fn an_insert_without_pages_fails_cleanly_once_the_reserve_is_at_its_floor() {
    let f = Fixture::new();
    f.drain(0);
    let mut page = 0;
    let failed = loop {
        match f.insert(&EntrySpec::EMPTY, page, page + 1) {
            Ok(()) => page += 2,
            Err(code) => break code,
        }
        assert!(page < 256, "entries out of nothing");
    };
    assert_eq!(failed, vmkern_abi::control::KernReturn::ResourceShortage);
    let entries = &f.map().reserve.entries;
    assert!(entries.capacity.get() - entries.used.get() >= FLOOR);
    assert_eq!(f.ranges().len() as u64, page / 2);
    f.remove(0, 256);
    assert_eq!(f.ranges(), []);
}

#[test]
fn a_map_that_was_emptied_has_its_home_and_nothing_else() {
    let f = Fixture::new();
    let before = (f.vm().state().map_pages.get(), f.vm().cnt().v_free_count.get());
    for page in (0..256).step_by(2) {
        f.insert(&EntrySpec::EMPTY, page, page + 1).expect("free");
    }
    assert!(f.vm().state().map_pages.get() > before.0);
    f.remove(0, 256);
    assert_eq!(f.ranges(), []);
    assert_eq!((f.vm().state().map_pages.get(), f.vm().cnt().v_free_count.get()), before);
    let reserve = &f.map().reserve;
    assert_eq!(reserve.entries.capacity.get(), MapHome::ENTRIES as u64);
    assert_eq!(reserve.nodes.capacity.get(), MapHome::NODES as u64);
    assert_eq!(reserve.credits.get(), 0);
}

#[test]
fn a_map_of_few_entries_takes_no_page_for_them() {
    let f = Fixture::new();
    let pages = f.vm().state().map_pages.get();
    for entry in 0..MapHome::ENTRIES as u64 - FLOOR {
        assert_eq!(f.vm().state().map_pages.get(), pages, "{entry} entries");
        f.insert(&EntrySpec::EMPTY, 2 * entry, 2 * entry + 1).expect("free");
    }
    assert_eq!(f.vm().state().map_pages.get(), pages);
    f.insert(&EntrySpec::EMPTY, 200, 201).expect("free");
    assert_eq!(f.vm().state().map_pages.get(), pages + 2, "a page of entries and one of nodes");
    f.remove(200, 201);
    assert_eq!(f.vm().state().map_pages.get(), pages);
}

#[test]
fn ranges_of_one_page_can_be_given_back_alone_after_others_came_and_went() {
    let f = Fixture::new();
    let vm = f.vm();
    let map = vm.kmem_suballoc(vm.kernel_map(), 4000 * PAGE_SIZE);
    vm.get(map).system_map.raise();
    let ranges: Vec<_> =
        (0..4000).map(|_| vm.kmem_alloc_nofault(map, PAGE_SIZE).expect("room")).collect();
    for &addr in ranges[2000..].iter().rev() {
        vm.kmem_free(map, addr, PAGE_SIZE);
    }
    assert_eq!(vm.get(map).nentries.get(), 1);
    f.drain(0);
    for &addr in ranges[..2000].iter().skip(1).step_by(2) {
        vm.kmem_free(map, addr, PAGE_SIZE);
    }
    assert_eq!(vm.get(map).nentries.get(), 1000);
    vm.vm_map_check(map).expect("the map is sound");
}

#[test]
fn merged_ranges_that_are_given_back_together_leave_no_credit() {
    let f = Fixture::new();
    let vm = f.vm();
    // A separate map, because kernel_map contains the stacks of threads, which are also ranges
    // without an object.
    let map = vm.kmem_suballoc(vm.kernel_map(), 500 * PAGE_SIZE);
    vm.get(map).system_map.raise();
    let before = (vm.state().map_pages.get(), vm.cnt().v_free_count.get());
    let first = vm.kmem_alloc_nofault(map, PAGE_SIZE).expect("room");
    for _ in 1..500 {
        vm.kmem_alloc_nofault(map, PAGE_SIZE).expect("room");
    }
    assert_eq!(vm.get(map).reserve.credits.get(), 499);
    vm.kmem_free(map, first, 500 * PAGE_SIZE);
    assert_eq!(vm.get(map).reserve.credits.get(), 0);
    assert_eq!((vm.state().map_pages.get(), vm.cnt().v_free_count.get()), before);
}
