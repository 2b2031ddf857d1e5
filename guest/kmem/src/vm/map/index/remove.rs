//! Changes of an index that remove an item.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::VmMapEntry;

use super::node::{MIN_FILL, Node};
use super::path::Path;
use super::{Index, NodeStore};

/// What happens to the range of an item that is removed.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// It becomes free.
    Gap,
    /// It is added to the item below, which ends where it starts; that item's entry is this from
    /// now on.
    ToBelow(KPtr<VmMapEntry>),
}

impl<S: NodeStore> Index<'_, S> {
    /// Removes the item that starts at `start`. Its range becomes free.
    pub fn unlink(&self, start: GuestVirt) {
        self.take_out(start, Leaves::Gap);
    }

    /// Merges the item that starts at `boundary` and the one that ends there into one item, the
    /// entry `survivor`.
    pub fn join(&self, boundary: GuestVirt, survivor: KPtr<VmMapEntry>) {
        self.take_out(boundary, Leaves::ToBelow(survivor));
    }

    fn take_out(&self, start: GuestVirt, leaves: Leaves) {
        let key = self.page(start);
        // The header is an item, so there is always one below.
        let below = self.path(key);
        let (node, at) = below.at(0);
        if at + 1 < node.count() {
            self.widen(&below, (node, at + 1), node.limit(at + 1, below.leaf().limit), key, leaves);
            node.remove(at + 1);
            self.rebalance(&below);
        } else {
            let path = self.path(key + 1);
            self.widen(&below, path.at(0), path.leaf().limit_below(), key, leaves);
            path.leaf().node.remove(0);
            path.refresh_keys();
            path.refresh_gaps(0);
            self.rebalance(&path);
        }
        self.compact();
    }

    /// Gives the item of `below` the range that the slot `victim`, its next item with the key
    /// `key`, leaves. The gap after that range ends at `limit`.
    fn widen(
        &self,
        below: &Path<'_>,
        victim: (Node<'_>, usize),
        limit: u32,
        key: u32,
        leaves: Leaves,
    ) {
        assert!(victim.0.key(victim.1) == key, "vm_map index: no entry starts at page {key}");
        match leaves {
            Leaves::Gap => below.set_gap(limit - below.gap().0),
            Leaves::ToBelow(survivor) => {
                let (node, at) = below.at(0);
                assert!(node.gap(at) == 0, "vm_map index: entries at page {key} do not touch");
                node.set_target(at, survivor.addr());
                below.set_gap(victim.0.gap(victim.1));
            }
        }
    }

    /// Refills the nodes of `path` that have become too small, from the leaf upward, and removes a
    /// root that has one child. Keys and maxima are right before and after.
    fn rebalance(&self, path: &Path<'_>) {
        for level in 0..path.height() - 1 {
            if path.at(level).0.count() >= MIN_FILL {
                return;
            }
            let (parent, at) = path.at(level + 1);
            let left_at = at.saturating_sub(1);
            let (left, right) = (self.child(parent, left_at), self.child(parent, left_at + 1));
            // A merged node without room would soon be split again.
            if left.count() + right.count() < 2 * MIN_FILL {
                left.append(right);
                self.free_node(KPtr::new(parent.target(left_at + 1)));
                parent.remove(left_at + 1);
                parent.set_gap(left_at, left.max_gap());
            } else {
                left.balance(right);
                parent.set_gap(left_at, left.max_gap());
                parent.set_gap(left_at + 1, right.max_gap());
                parent.set_key(left_at + 1, right.key(0));
                return;
            }
        }
        let root = self.root();
        if root.count() == 1 && root.level() != 0 {
            self.free_node(self.state.root.get());
            self.state.root.set(KPtr::new(root.target(0)));
            self.state.height.dec();
        }
    }
}
