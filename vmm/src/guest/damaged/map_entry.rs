//! Rules of `map_entry`.

use vmkern_abi::addr::KPtr;
use vmkern_abi::control::{MapId, Op};
use vmkern_abi::layout::{EntryFlags, Protection};

use super::lab::Lab;
use crate::inspect::ObjectView;

#[test]
fn wrong_fields_of_an_entry_are_found() {
    let lab = Lab::new();
    lab.each(
        lab.entry(1, 4),
        "vm_map_entry",
        &[
            ("entry-flags", |e| e.eflags.set(EntryFlags::from_bits_retain(1 << 20))),
            ("entry-flags", |e| e.eflags.set(EntryFlags::COW)),
            ("entry-nofault", |e| e.eflags.set(EntryFlags::NOFAULT)),
            ("entry-transition", |e| e.eflags.set(EntryFlags::IN_TRANSITION)),
            ("entry-transition", |e| e.eflags.set(EntryFlags::DELETING)),
            ("entry-transition", |e| e.deleter.set(1)),
            ("entry-wakeup", |e| e.eflags.set(EntryFlags::NEEDS_WAKEUP)),
            ("entry-wakeup", |e| {
                e.eflags.set(EntryFlags::NEEDS_WAKEUP | EntryFlags::IN_TRANSITION)
            }),
            ("entry-protection", |e| e.protection.set(Protection::EXECUTE)),
            ("entry-protection", |e| e.max_protection.set(Protection::empty())),
            ("entry-protection", |e| e.max_protection.set(Protection::empty())),
            ("entry-inheritance", |e| e.inheritance.set(0)),
            ("entry-wired", |e| e.wired_count.set(0)),
            ("entry-wired", |e| e.wired_count.set(2)),
            ("entry-offset", |e| e.offset.update_locked(|offset| offset + 8)),
            ("entry-offset", |e| e.offset.update_locked(|offset| offset + 4096)),
            ("entry-wired", |e| e.object.set(KPtr::NULL)),
        ],
    );
    assert!(lab.check().is_clean());
}

#[test]
fn a_range_without_faults_has_an_empty_object_where_it_was_cut_in_a_pageable_map() {
    let mut lab = Lab::new();
    let window = lab.address(Op::KmemAllocNofault { map: MapId::EXEC, size: 32 << 10 });
    lab.ok(Op::KmemFree { map: MapId::EXEC, addr: window.add(16 << 10), size: 0 });
    let entries = lab.guest.map_entries(MapId::EXEC).expect("the map can be read");
    let cut = entries.iter().find(|entry| entry.start == window).expect("the range has an entry");
    assert!(cut.end == window.add(16 << 10) && cut.object != ObjectView::None, "{cut:?}");
    assert!(lab.check().is_clean());
    // This entry's object holds the page that was touched.
    lab.each(
        lab.entry(2, 0),
        "vm_map_entry",
        &[("entry-nofault", |e| e.eflags.set(EntryFlags::NOFAULT))],
    );
}
