//! Rules of `object_rules`.

use std::mem::offset_of;

use vmkern_abi::addr::KPtr;
use vmkern_abi::field::Code;
use vmkern_abi::layout::{KernelRoots, ObjectFlags, ObjectType, VmObject, VmPage};

use super::lab::{Lab, expect_finding};

/// The zone of objects.
const OBJECT_ZONE: usize = 0;

fn kmem_object(lab: &Lab) -> KPtr<VmObject> {
    KPtr::new(lab.roots().0.addr().add(offset_of!(KernelRoots, kmem_object) as u64))
}

/// The page at the root of kmem_object's index, with its number.
fn root(lab: &Lab) -> (KPtr<VmPage>, u32) {
    let pfn = lab.get(kmem_object(lab)).root.get();
    (lab.vm_page(pfn.into()), pfn)
}

#[test]
fn wrong_fields_of_objects_are_found() {
    let lab = Lab::new();
    // 1. One of the kernel's own objects.
    lab.each(
        kmem_object(&lab),
        "kmem_object",
        &[
            ("object-kind", |o| o.kind.set(Code::from_raw(0))),
            ("object-kind", |o| o.kind.set(Code::from_raw(77))),
            ("object-flags", |o| o.flags.set(ObjectFlags::DEAD)),
            ("object-size", |o| o.size.dec()),
            ("object-resident", |o| o.resident_page_count.inc()),
            ("object-ref-count", |o| o.ref_count.inc()),
            ("object-ref-count", |o| o.ref_count.dec()),
            ("object-resident", |o| o.root.set(0)),
            ("object-search", |o| o.before.set(o.after.get())),
            ("object-search", |o| o.after.set(77)),
            ("object-search", |o| o.before.inc()),
        ],
    );
    // 2. An anonymous object.
    let anonymous = KPtr::<VmObject>::new(lab.get(lab.entry(2, 0)).object.get().addr());
    lab.each(
        anonymous,
        "vm_object",
        &[
            ("object-flags", |o| o.flags.set(ObjectFlags::empty())),
            ("object-kind", |o| o.kind.put(ObjectType::Dead)),
            ("object-size", |o| o.size.set(0)),
            ("object-ref-count", |o| o.ref_count.set(0)),
        ],
    );
    assert!(lab.check().is_clean());
}

#[test]
fn an_object_that_is_being_changed_is_left_out() {
    let lab = Lab::new();
    let report = lab.damaged(kmem_object(&lab), |o| {
        o.lock.owner.set(8);
        o.ref_count.set(0);
    });
    assert!(report.findings.iter().all(|finding| finding.rule == "mutex-owner"), "{report}");
    assert_eq!((&*report.updating[0].what, report.updating[0].owner), ("kmem_object", 7));
}

#[test]
fn pages_that_leave_an_index_or_enter_another_are_found() {
    let lab = Lab::new();
    let (root, _) = root(&lab);
    let below = lab.get(root).left.get();
    assert_ne!(below, 0, "kmem_object has pages before its root");
    let report = lab.damaged(root, |page| page.left.set(0));
    expect_finding(&report, "object-page", "vm_page", lab.vm_page(below.into()).addr());
    expect_finding(&report, "object-resident", "kmem_object", kmem_object(&lab).addr());
    let entry = lab.get(lab.entry(2, 0)).object.get();
    let theirs = lab.get(KPtr::<VmObject>::new(entry.addr())).root.get();
    let report = lab.damaged(root, |page| page.left.set(theirs));
    expect_finding(&report, "page-owner", "vm_page", lab.vm_page(theirs.into()).addr());
    expect_finding(&report, "object-page", "vm_page", lab.vm_page(theirs.into()).addr());
    lab.each(root, "vm_page", &[("object-page", |page| page.object.set(KPtr::NULL))]);
}

#[test]
fn links_of_an_index_that_are_out_of_order_or_lead_nowhere_are_found() {
    let lab = Lab::new();
    let (root, pfn) = root(&lab);
    let pindex = lab.get(root).pindex.get();
    lab.each(
        root,
        "vm_page",
        &[
            ("object-index", |page| page.parent.set(3)),
            ("object-index", |page| page.left.set(0x7fff_ffff)),
        ],
    );
    let report = lab.damaged(root, |page| page.pindex.inc());
    assert!(report.findings.iter().any(|f| f.rule == "object-index"), "{report}");
    let report = lab.damaged(root, |page| {
        page.left.set(pfn);
        page.right.set(pfn);
    });
    expect_finding(&report, "object-index", "vm_page", root.addr());
    // Without its lowest set bit, the index belongs below others, and the order is still right
    // unless one of those comes before it.
    let report = lab.damaged(root, |page| page.pindex.set(pindex & (pindex - 1)));
    assert!(report.findings.iter().any(|f| f.rule == "object-index"), "{report}");
    assert!(lab.check().is_clean());
}

#[test]
fn an_object_that_no_entry_names_is_found_by_the_count_of_its_zone() {
    let lab = Lab::new();
    let (roots_at, _) = lab.roots();
    let report = lab.damaged(roots_at, |roots| roots.zones[OBJECT_ZONE].used.inc());
    let at = roots_at.addr().add(offset_of!(KernelRoots, zones) as u64);
    expect_finding(&report, "object-unreachable", "zone of objects", at);
    let entry = lab.entry(2, 0);
    let report = lab.damaged(entry, |entry| entry.object.set(KPtr::NULL));
    expect_finding(&report, "object-unreachable", "zone of objects", at);
    let page = lab.vm_page(lab.pfn_at(lab.pageable));
    expect_finding(&report, "object-page", "vm_page", page.addr());
}
