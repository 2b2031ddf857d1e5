//! The reserve: what must not fail does not.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::MallocFlags;

use super::super::EntrySpec;
use super::super::reserve::FLOOR;
use super::Fixture;

#[test]
fn every_range_without_an_object_can_be_given_back_alone_when_no_page_is_left() {
    let f = Fixture::new();
    let vm = f.vm();
    let map = vm.kmem_suballoc(vm.kernel_map(), 8000 * PAGE_SIZE);
    vm.get(map).system_map.set(1);
    let ranges: Vec<_> = (0..4000).map(|_| vm.kmem_alloc_nofault(map, 2 * PAGE_SIZE).expect("room")).collect();
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
    assert!(f.map().reserve.entry_count.get() >= FLOOR);
    assert_eq!(f.ranges().len() as u64, page / 2);
    f.remove(0, 256);
    assert_eq!(f.ranges(), []);
}

#[test]
fn an_empty_map_keeps_little_in_reserve() {
    let f = Fixture::new();
    for page in (0..256).step_by(2) {
        f.insert(&EntrySpec::EMPTY, page, page + 1).expect("free");
    }
    f.remove(0, 256);
    assert_eq!(f.ranges(), []);
    let reserve = &f.map().reserve;
    assert!(reserve.entry_count.get() <= FLOOR + 32, "{} entries", reserve.entry_count.get());
    assert!(reserve.node_count.get() <= 16, "{} nodes", reserve.node_count.get());
    assert_eq!(reserve.credits.get(), 0);
}
