//! Rules of `map_list`.

use vmkern_abi::addr::{GuestVirt, KPtr};

use super::lab::{Lab, expect_finding};

const KMEM: usize = 1;

#[test]
fn wrong_counts_of_a_map_are_found() {
    let lab = Lab::new();
    let map = lab.map(KMEM);
    let report = lab.damaged(map, |map| map.size.update_locked(|size| size + 4096));
    let finding = expect_finding(&report, "map-size", "kmem_map", map.addr());
    assert_eq!(
        finding.detail,
        format!("size says {}, but its entries sum to {}", 181 * 4096, 180 * 4096)
    );
    lab.each(
        map,
        "kmem_map",
        &[
            ("map-nentries", |map| map.nentries.set(3)),
            ("map-bounds", |map| map.header.end.set(GuestVirt::new(5))),
            ("map-list", |map| map.header.prev.set(map.header.next.get())),
        ],
    );
    assert!(lab.check().is_clean());
}

#[test]
fn wrong_links_and_ranges_of_entries_are_found() {
    let lab = Lab::new();
    let entry = lab.entry(KMEM, 1);
    lab.each(
        entry,
        "vm_map_entry",
        &[
            ("map-list", |e| e.prev.set(KPtr::NULL)),
            ("map-order", |e| e.start.update_locked(|at| GuestVirt::new(at.get() - (1 << 20)))),
            ("map-order", |e| e.end.update_locked(|at| at.add(1 << 32))),
            ("entry-range", |e| e.end.set(e.start.get())),
            ("entry-range", |e| e.start.update_locked(|at| at.add(8))),
            ("entry-range", |e| e.end.update_locked(|at| at.add(8))),
        ],
    );
    let report = lab.damaged(entry, |e| e.next.set(e.prev.get()));
    let previous = lab.get(entry).prev.get();
    expect_finding(&report, "map-list", "vm_map_entry", previous.addr());
    let nowhere = GuestVirt::new(0xdead_0000_0000_0000);
    let report =
        lab.damaged(entry, |e| e.next.set(KPtr::new(GuestVirt::new(0xdead_0000_0000_0000))));
    expect_finding(&report, "unreadable", "vm_map_entry", nowhere);
}

#[test]
fn a_map_whose_lock_is_held_is_left_out() {
    let lab = Lab::new();
    let map = lab.map(KMEM);
    let report = lab.damaged(map, |map| {
        map.size.set(1);
        map.lock.owner.set(3);
    });
    assert!(report.findings.iter().all(|finding| finding.rule != "map-size"), "{report}");
    assert_eq!((report.updating[0].at, report.updating[0].owner), (map.addr(), 2));
}
