//! `vm_map_unwire`.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::KernReturn;
use vmkern_abi::layout::{EntryFlags, PQ_ACTIVE};

use super::super::EntrySpec;
use super::Fixture;
use crate::sim::check::check;

/// A block from `kmem_alloc`, pages 0 to 8.
fn block() -> Fixture {
    let f = Fixture::new();
    assert_eq!(f.vm().kmem_alloc(f.map, 8 * PAGE_SIZE), Some(f.at(0)));
    f
}

impl Fixture {
    fn wire(&self, start: u64, end: u64) -> Result<(), KernReturn> {
        self.vm().vm_map_wire(self.map, self.at(start), self.at(end))
    }

    fn unwire(&self, start: u64, end: u64) -> Result<(), KernReturn> {
        self.vm().vm_map_unwire(self.map, self.at(start), self.at(end))
    }

    /// The wire counts of the entry at `page` and of the page behind it.
    fn wiring(&self, page: u64) -> (u32, u32) {
        let m = self.vm().pmap_extract(self.at(page)).and_then(|pa| self.vm().phys_to_vm_page(pa));
        let m = m.expect("the translation stays");
        (self.entry(page).wired_count.get(), self.vm().get(m).wire_count.get())
    }
}

#[test]
fn a_second_wiring_is_taken_back_and_the_entry_is_whole_again() {
    let f = block();
    let wired = f.vm().cnt().v_wire_count.get();
    f.wire(2, 5).expect("no hole");
    assert_eq!(f.ranges(), [(0, 2), (2, 5), (5, 8)]);
    f.unwire(2, 5).expect("it is wired");
    assert_eq!(f.ranges(), [(0, 8)]);
    assert_eq!(f.wiring(3), (1, 1));
    assert_eq!(f.vm().cnt().v_wire_count.get(), wired);
}

#[test]
fn the_last_wiring_of_a_part_is_taken_back_and_its_pages_stay() {
    let f = block();
    let wired = f.vm().cnt().v_wire_count.get();
    f.unwire(2, 5).expect("it is wired");
    assert_eq!(f.ranges(), [(0, 2), (2, 5), (5, 8)]);
    assert_eq!([1, 3, 6].map(|page| f.wiring(page)), [(1, 1), (0, 0), (1, 1)]);
    assert_eq!(f.vm().cnt().v_wire_count.get(), wired - 3);
    f.wire(2, 5).expect("no hole");
    assert_eq!(f.ranges(), [(0, 8)]);
    assert_eq!(f.vm().cnt().v_wire_count.get(), wired);
    f.remove(0, 8);
    check(&f.sim);
}

#[test]
fn pages_of_an_anonymous_object_go_on_the_active_queue() {
    let f = Fixture::new();
    let object = f.vm().vm_object_allocate(4).unwrap_or_else(|_| panic!("there are pages"));
    f.insert(&EntrySpec::object(object, 0), 0, 4).expect("free");
    let queued = f.vm().cnt().v_active_count.get();
    f.wire(0, 4).expect("no hole");
    assert_eq!(f.vm().cnt().v_active_count.get(), queued);
    f.unwire(0, 4).expect("it is wired");
    assert_eq!(f.vm().cnt().v_active_count.get(), queued + 4);
    let page = f
        .vm()
        .pmap_extract(f.at(1))
        .and_then(|pa| f.vm().phys_to_vm_page(pa))
        .expect("it is mapped");
    assert_eq!(f.vm().get(page).queue.get(), PQ_ACTIVE);
    check(&f.sim);
}

#[test]
fn a_part_that_is_not_wired_is_refused_and_the_rest_keeps_its_wiring() {
    let f = block();
    f.unwire(3, 5).expect("it is wired");
    let wired = f.vm().cnt().v_wire_count.get();
    assert_eq!(f.unwire(1, 8), Err(KernReturn::InvalidArgument));
    assert_eq!([0, 1, 3, 6].map(|page| f.wiring(page)), [(1, 1), (1, 1), (0, 0), (1, 1)]);
    assert_eq!(f.entry(1).eflags.get() | f.entry(3).eflags.get(), EntryFlags::empty());
    assert_eq!(f.vm().cnt().v_wire_count.get(), wired);
}

#[test]
fn a_hole_in_the_range_or_at_its_start_is_refused_and_nothing_is_unwired() {
    let f = block();
    f.remove(4, 5);
    for (start, end) in [(1, 7), (4, 7), (5, 12), (20, 22)] {
        assert_eq!(f.unwire(start, end), Err(KernReturn::InvalidAddress), "pages {start} to {end}");
    }
    assert_eq!([0, 1, 3, 6].map(|page| f.wiring(page)), [(1, 1); 4]);
    assert_eq!(f.entry(1).eflags.get() | f.entry(6).eflags.get(), EntryFlags::empty());
}

#[test]
fn a_range_past_the_maps_end_is_confined_to_it() {
    let f = Fixture::new();
    let all = super::PAGES;
    f.vm().kmem_alloc(f.map, all * PAGE_SIZE).expect("an exact fit");
    f.vm().vm_map_unwire(f.map, f.at(all - 2), f.at(all + 9)).expect("it is wired");
    assert_eq!(f.ranges(), [(0, all - 2), (all - 2, all)]);
}
