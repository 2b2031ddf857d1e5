//! Rules of `map_index`.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::MapNode;

use super::lab::{Lab, expect_finding};

/// The root of kmem_map's index, and its second child.
fn nodes(lab: &Lab) -> (KPtr<MapNode>, KPtr<MapNode>) {
    let map = lab.get(lab.map(1));
    assert_eq!(map.index.height.get(), 2);
    let root = map.index.root.get();
    (root, lab.get(root).child(1))
}

#[test]
fn wrong_nodes_of_an_index_are_found() {
    let lab = Lab::new();
    let (root, leaf) = nodes(&lab);
    let what = "map index node";
    // 1. A leaf.
    lab.each(
        leaf,
        what,
        &[
            ("index-level", |n| n.level.set(1)),
            ("index-fill", |n| n.count.set(16)),
            ("index-fill", |n| n.count.set(6)),
            ("index-unused", |n| n.gaps[14].set(1)),
            ("index-unused", |n| n.keys[14].set(0)),
            ("index-spare", |n| n.spare_next.set(KPtr::new(GuestVirt::new(64)))),
            ("index-item", |n| n.targets[2].set(n.targets[1].get())),
            ("index-item", |n| n.keys[3].inc()),
            ("index-gap", |n| n.gaps[1].inc()),
        ],
    );
    lab.each(
        // 2. The root above it.
        root,
        what,
        &[
            ("index-gap", |n| n.gaps[1].inc()),
            ("index-key", |n| n.keys[1].inc()),
            ("index-key", |n| n.keys[2].set(n.keys[1].get())),
        ],
    );
    let report = lab.damaged(root, |n| n.targets[2].set(n.targets[1].get()));
    expect_finding(&report, "index-shared", what, leaf.addr());
    assert!(lab.check().is_clean());
}

#[test]
fn an_item_that_the_index_lost_is_found_by_its_entry() {
    let lab = Lab::new();
    let (root, leaf) = nodes(&lab);
    let lost = lab.get(leaf).entry(6).addr();
    let report = lab.damaged(leaf, |n| {
        n.count.set(6);
        (6..MapNode::FANOUT).for_each(|slot| {
            n.keys[slot].set(MapNode::NO_KEY);
            n.gaps[slot].set(0);
        });
    });
    expect_finding(&report, "index-item", "vm_map_entry", lost);
    let report = lab.damaged(root, |n| n.targets[1].set(GuestVirt::new(8)));
    expect_finding(&report, "unreadable", "map index node", GuestVirt::new(8));
}

#[test]
fn a_wrong_root_of_an_index_is_found() {
    let lab = Lab::new();
    lab.each(
        lab.map(1),
        "kmem_map",
        &[
            ("index-height", |map| map.index.height.set(0)),
            ("index-height", |map| map.index.height.set(13)),
            ("index-nodes", |map| map.index.nodes.inc()),
        ],
    );
    let (root, _) = nodes(&lab);
    let report = lab.damaged(lab.map(1), |map| map.index.height.set(3));
    expect_finding(&report, "index-level", "map index node", root.addr());
}
