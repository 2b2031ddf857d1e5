//! Changes of an index that take an item away.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::VmMapEntry;

use super::node::MIN_FILL;
use super::path::{Path, Step};
use super::{Index, NodeStore, above};

/// What becomes of the range of an item that is taken away.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// It becomes free.
    Gap,
    /// It goes to the item below, which ends where it starts and is from now on this entry.
    ToBelow(KPtr<VmMapEntry>),
}

impl<S: NodeStore> Index<'_, S> {
    /// Takes the item that starts at `start` away. Its range becomes free.
    pub fn unlink(&self, start: GuestVirt) {
        self.take_out(start, Leaves::Gap);
    }

    /// Makes one item, the entry `survivor`, of the item that starts at `boundary` and the one that ends there.
    pub fn join(&self, boundary: GuestVirt, survivor: KPtr<VmMapEntry>) {
        self.take_out(boundary, Leaves::ToBelow(survivor));
    }

    fn take_out(&self, start: GuestVirt, leaves: Leaves) {
        // The header is an item, so that there is always one below.
        let below = self.path(start);
        let Step { node, at, .. } = below.leaf();
        let victim_at = at + 1;
        if victim_at < node.count() {
            let victim = Step { at: victim_at, ..below.leaf() };
            self.widen(&below, victim, start, leaves);
            node.remove(victim_at);
            self.rebalance(&below);
        } else {
            let path = self.path(above(start));
            self.widen(&below, path.leaf(), start, leaves);
            path.leaf().node.remove(0);
            path.refresh_keys();
            path.refresh_gaps(0);
            self.rebalance(&path);
        }
    }

    /// Gives the item of `below` what `victim`, the next item, leaves.
    fn widen(&self, below: &Path<'_>, victim: Step<'_>, start: GuestVirt, leaves: Leaves) {
        let key = victim.node.key(victim.at);
        assert!(key == start, "vm_map index: no entry starts at {start}");
        let gap = victim.node.gap(victim.at);
        match leaves {
            Leaves::Gap => {
                let (free_from, _) = below.gap();
                below.set_gap(victim.limit_below().since(free_from));
            }
            Leaves::ToBelow(survivor) => {
                let Step { node, at, .. } = below.leaf();
                assert!(node.gap(at) == 0, "vm_map index: entries at {start} do not touch");
                node.set_target(at, survivor.addr());
                below.set_gap(gap);
            }
        }
    }

    /// Fills up the nodes of `path` that have become too small, from the leaf upward, and drops a root that has one
    /// child. Keys and maxima are right before and after.
    fn rebalance(&self, path: &Path<'_>) {
        for level in 0..path.height() - 1 {
            if path.step(level).node.count() >= MIN_FILL {
                return;
            }
            let Step { node: parent, at, .. } = path.step(level + 1);
            let left_at = at.saturating_sub(1);
            let (left, right) = (self.child(parent, left_at), self.child(parent, left_at + 1));
            // A union that leaves no room would soon be cut again.
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
            self.state.height.update(|height| height - 1);
        }
    }
}
