//! `vm_map_simplify_entry`, `vm_map_clip_start` and `vm_map_clip_end`.

use vmkern_abi::layout::{EntryFlags, Protection, VmMapEntry};

use super::super::EntrySpec;
use super::Fixture;

/// Three touching ranges of kmem_object, pages 0 to 2, 2 to 4 and 4 to 6.
fn three() -> Fixture {
    let f = Fixture::new();
    for page in [0, 2, 4] {
        f.insert(&f.kmem_spec(page), page, page + 2).expect("free");
    }
    f
}

#[test]
fn equal_neighbours_merge_on_both_sides_and_drop_their_references() {
    let f = three();
    let refs = f.kmem_refs();
    let survivor = f.simplify(2);
    assert_eq!(f.ranges(), [(0, 6)]);
    assert_eq!(f.entry_ptr(0), survivor);
    assert_eq!(f.kmem_refs(), refs - 2);
    assert_eq!(f.entry(0).offset.get(), f.kmem_spec(0).offset);
}

#[test]
fn one_difference_in_anything_keeps_neighbours_apart() {
    type Change = fn(&VmMapEntry);
    let changes: [(&str, Change); 8] = [
        ("object", |e| e.object.set(vmkern_abi::addr::KPtr::NULL)),
        ("offset", |e| e.offset.update_locked(|offset| offset + 4096)),
        ("flags", |e| e.eflags.set(EntryFlags::NOFAULT)),
        ("waiting", |e| e.eflags.set(EntryFlags::NEEDS_WAKEUP)),
        ("protection", |e| e.protection.set(Protection::READ)),
        ("maximum", |e| e.max_protection.set(Protection::READ)),
        ("inheritance", |e| e.inheritance.set(2)),
        ("wiring", |e| e.wired_count.set(1)),
    ];
    for (what, change) in changes {
        let f = three();
        change(f.entry(2));
        f.simplify(2);
        assert_eq!(f.map().nentries.get(), 3, "{what}");
    }
}

#[test]
fn neighbours_without_an_object_merge_whatever_their_offsets() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 2, 4).expect("free");
    f.insert(&EntrySpec { offset: 4096, ..EntrySpec::EMPTY }, 0, 2).expect("free");
    f.simplify(0);
    assert_eq!(f.ranges(), [(0, 4)]);
}

#[test]
fn an_entry_in_transition_and_a_submap_are_left_alone() {
    for flag in [EntryFlags::IN_TRANSITION, EntryFlags::IS_SUB_MAP] {
        let f = three();
        for page in [0, 2, 4] {
            f.entry(page).eflags.set(flag);
        }
        f.simplify(2);
        assert_eq!(f.map().nentries.get(), 3);
    }
}

#[test]
fn a_cut_copies_everything_and_counts_a_reference() {
    let f = Fixture::new();
    f.insert(&f.kmem_spec(0), 0, 10).expect("free");
    f.entry(0).wired_count.set(3);
    f.entry(0).protection.set(Protection::READ);
    let refs = f.kmem_refs();
    let middle = f.entry_ptr(0);
    f.cutting(0, |middle| {
        let middle = f.vm().vm_map_clip_start(f.map, middle, f.at(4));
        f.vm().vm_map_clip_end(f.map, middle, f.at(7));
    });
    assert_eq!(f.ranges(), [(0, 4), (4, 7), (7, 10)]);
    assert_eq!(f.entry_ptr(4), middle, "the entry passed stays the one inside");
    assert_eq!(f.kmem_refs(), refs + 2);
    for page in [0, 4, 7] {
        let e = f.entry(page);
        assert_eq!((e.wired_count.get(), e.protection.get()), (3, Protection::READ));
        assert_eq!(e.offset.get(), f.kmem_spec(page).offset);
    }
}

#[test]
fn a_cut_at_or_outside_the_ends_does_nothing() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 4, 8).expect("free");
    f.cutting(4, |entry| {
        let entry = f.vm().vm_map_clip_start(f.map, entry, f.at(4));
        let entry = f.vm().vm_map_clip_start(f.map, entry, f.at(2));
        f.vm().vm_map_clip_end(f.map, entry, f.at(8));
        f.vm().vm_map_clip_end(f.map, entry, f.at(9));
    });
    assert_eq!(f.ranges(), [(4, 8)]);
}

#[test]
fn a_cut_of_the_start_merges_the_neighbours_first_and_a_cut_of_the_end_does_not() {
    let f = three();
    f.cutting(2, |entry| f.vm().vm_map_clip_end(f.map, entry, f.at(3)));
    assert_eq!(f.ranges(), [(0, 2), (2, 3), (3, 4), (4, 6)]);
    f.cutting(4, |entry| {
        let high = f.vm().vm_map_clip_start(f.map, entry, f.at(5));
        assert_eq!(f.vm().get(high).start.get(), f.at(5));
    });
    // Pages 3 and 4 to 5 became one entry before the cut: simplify checks only the neighbours.
    assert_eq!(f.ranges(), [(0, 2), (2, 3), (3, 5), (5, 6)]);
}
