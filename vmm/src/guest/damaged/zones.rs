//! Zones, and the event handlers in them.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{Context, MapId, Op};
use vmkern_abi::layout::{
    EventhandlerEntry, EventhandlerList, KernelRoots, SlabHeader, SlabItem, SlabZone, StoredOp,
    Zone,
};

use super::lab::{Damage, Lab, expect_finding};
use crate::guest::ThreadId;

/// Number of the zone of threads.
const THREADS: usize = 4;

fn zone(lab: &Lab) -> KPtr<SlabZone> {
    KPtr::new(lab.root_field(|roots| &roots.zones[THREADS]))
}

#[test]
fn counts_of_a_zone_are_those_of_its_slabs() {
    let lab = Lab::new();
    let zone_at = zone(&lab);
    let finds = |rule: &str, field: fn(&KernelRoots) -> &vmkern_abi::field::Field<u64>| {
        lab.root_word(rule, "zone", field, |n| n + 1);
    };
    finds("zone-count", |roots| &roots.zones[THREADS].slabs);
    finds("zone-count", |roots| &roots.zones[THREADS].free);
    finds("zone-count", |roots| &roots.zones[THREADS].used);
    lab.each::<SlabZone>(zone_at, "zone", &[("zone-item-size", |zone| zone.item_size.set(128))]);
}

#[test]
fn slabs_and_their_free_items_hang_together() {
    let lab = Lab::new();
    lab.wait_until_halted();
    let slab = lab.roots().1.zones[THREADS].partial.get();
    let damages: &[(&str, Damage<SlabHeader>)] = &[
        ("slab-list", |slab| slab.prev.set(KPtr::new(GuestVirt::new(64)))),
        ("slab-free-count", |slab| slab.free_count.inc()),
        ("slab-zone", |slab| slab.zone.put(Zone::EventList)),
        ("slab-free", |slab| slab.free.set(KPtr::new(slab.free.get().addr().add(8)))),
        ("slab-free-count", |slab| slab.free.set(KPtr::NULL)),
    ];
    lab.each(slab, "slab", damages);
    let item = lab.get(slab).free.get();
    let report = lab.damaged(item, |free: &SlabItem| free.next.set(item));
    expect_finding(&report, "slab-free", "slab", slab.addr());
    let second = lab.get(item).next.get();
    let report = lab.damaged(item, |free: &SlabItem| free.next.set(lab.get(second).next.get()));
    expect_finding(&report, "zone-lost", "thread", second.addr());
    let report = lab.damaged(zone(&lab), |zone| zone.partial.set(KPtr::NULL));
    expect_finding(&report, "slab-list", "slab", slab.addr());
}

#[test]
fn a_slab_without_free_items_keeps_no_links() {
    let mut lab = Lab::new();
    // More threads than a slab has room for.
    for thread in ThreadId::all().take(16) {
        lab.guest.call(thread, Op::Nop).expect("the guest lives");
    }
    lab.wait_until_halted();
    let oldest = lab.roots().1.sched.all.head.get().addr();
    let slab: KPtr<SlabHeader> = KPtr::new(oldest.page());
    assert!(lab.get(slab).free.get().is_null(), "threads fill the first slab first");
    let damages: &[(&str, Damage<SlabHeader>)] = &[
        ("slab-list", |slab| slab.next.set(KPtr::new(GuestVirt::new(64)))),
        ("slab-list", |slab| slab.prev.set(KPtr::new(GuestVirt::new(64)))),
        ("slab-list", |slab| slab.free_count.set(1)),
    ];
    lab.each(slab, "slab", damages);
    let report = lab.check();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn an_item_that_is_both_free_and_used_is_found() {
    let lab = Lab::new();
    let (_, roots) = lab.roots();
    let (slab, thread) = (roots.zones[THREADS].partial.get(), roots.sched.all.tail.get());
    let report = lab.damaged(slab, |slab| slab.free.set(KPtr::new(thread.addr())));
    expect_finding(&report, "zone-item", "thread", thread.addr());
}

#[test]
fn lists_of_event_handlers_are_in_order_and_their_operations_name_them() {
    let mut lab = Lab::new();
    // 1. Two handlers, each with a stored operation.
    for _ in 0..2 {
        let stored = Op::KmemFree { map: MapId::KMEM, addr: lab.block, size: 4096 };
        lab.guest.call_in(Context::Lowmem, stored).expect("the guest lives");
    }
    lab.wait_until_halted();
    let report = lab.check();
    assert!(report.is_clean(), "{report}");
    // 2. The list, and the second handler.
    let list = lab.roots().1.eventhandler_lists.get();
    let damages: &[(&str, Damage<EventhandlerList>)] = &[
        ("event-runcount", |list| list.runcount.set(1)),
        ("event-name", |list| list.name[0].set(0)),
    ];
    lab.each(list, "event", damages);
    let first = lab.get(list).first.get();
    let second = lab.get(first).next.get();
    let damages: &[(&str, Damage<EventhandlerEntry>)] = &[
        ("event-dead", |entry| entry.priority.set(EventhandlerEntry::DEAD)),
        ("event-order", |entry| entry.priority.set(1)),
        ("event-function", |entry| entry.func.set(0x1000)),
    ];
    lab.each(second, "event handler", damages);
    let report = lab.damaged(second, |entry| entry.next.set(first));
    expect_finding(&report, "list-cycle", "event handler", first.addr());
    // 3. Its operation.
    let stored: KPtr<StoredOp> = KPtr::new(GuestVirt::new(lab.get(second).arg.get()));
    let damages: &[(&str, Damage<StoredOp>)] = &[
        ("stored-op", |stored| stored.handler.set(KPtr::NULL)),
        ("stored-op", |stored| stored.list.set(KPtr::NULL)),
        ("stored-op", |stored| stored.slot[0].set(u64::MAX)),
    ];
    lab.each(stored, "stored operation", damages);
    // 4. An item to which nothing leads any more.
    let report = lab.damaged(second, |entry| entry.arg.set(0));
    expect_finding(&report, "zone-lost", "stored operation", stored.addr());
    let report = lab.damaged(first, |entry| entry.next.set(KPtr::NULL));
    expect_finding(&report, "zone-lost", "event handler", second.addr());
}
