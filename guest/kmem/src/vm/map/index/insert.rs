//! Changes of an index that add an item or move an end.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::VmMapEntry;

use super::node::{FANOUT, Slot};
use super::path::Path;
use super::{Index, NodeStore};

impl<S: NodeStore> Index<'_, S> {
    /// Adds `entry` for `[start, end)`, which lies in a gap.
    pub fn link(&self, start: GuestVirt, end: GuestVirt, entry: KPtr<VmMapEntry>) {
        let (from, to) = (self.page(start), self.page(end));
        let path = self.path(from + 1);
        let (free_from, free_to) = path.gap();
        assert!(
            free_from <= from && from < to && to <= free_to,
            "vm_map index: {start}..{end} is not free"
        );
        let (node, slot) = path.at(0);
        node.set_gap(slot, from - free_from);
        self.insert_after(
            &path,
            free_to - free_from,
            Slot { key: from, gap: free_to - to, target: entry.addr() },
        );
    }

    /// Cuts the item that holds `at` in two: `low` is the entry below, `high` the one from `at` on.
    /// Neither is empty.
    pub fn split(&self, at: GuestVirt, low: KPtr<VmMapEntry>, high: KPtr<VmMapEntry>) {
        let key = self.page(at);
        let path = self.path(key + 1);
        let (end, free_to) = path.gap();
        let (node, slot) = path.at(0);
        assert!(node.key(slot) < key && key < end, "vm_map index: no entry to cut at {at}");
        node.set_target(slot, low.addr());
        node.set_gap(slot, 0);
        self.insert_after(
            &path,
            free_to - end,
            Slot { key, gap: free_to - end, target: high.addr() },
        );
    }

    /// Moves the end of the item that starts at `start` to `end`, into the gap above it or back.
    pub fn set_end(&self, start: GuestVirt, end: GuestVirt) {
        let (from, to) = (self.page(start), self.page(end));
        let path = self.path(from + 1);
        let (_, free_to) = path.gap();
        let (node, slot) = path.at(0);
        assert!(
            node.key(slot) == from && from < to && to <= free_to,
            "vm_map index: no entry to end at {end}"
        );
        path.set_gap(free_to - to);
    }

    /// Makes `entry` the entry of the item that starts at `start`.
    pub fn set_entry(&self, start: GuestVirt, entry: KPtr<VmMapEntry>) {
        let key = self.page(start);
        let path = self.path(key + 1);
        let (node, slot) = path.at(0);
        assert!(node.key(slot) == key, "vm_map index: no entry starts at {start}");
        node.set_target(slot, entry.addr());
    }

    /// Adds `slot` behind the item of `path`, whose gap was `old_gap` before, and corrects the
    /// maxima above.
    ///
    /// A full node gives its upper half to a new node, whose slot goes into the parent by the same
    /// rule: at most one new node per level, and a new root.
    fn insert_after(&self, path: &Path<'_>, old_gap: u32, slot: Slot) {
        // 1. Nearly always the leaf has room.
        let (leaf, at) = path.at(0);
        if leaf.count() < FANOUT {
            leaf.insert(at + 1, slot);
            path.propagate(old_gap, slot.gap.max(leaf.gap(at)));
            return;
        }
        // 2. Full nodes are split from the leaf upward, until one has room for what is carried.
        let mut carry = slot;
        for level in 0..path.height() {
            let (node, at) = path.at(level);
            if level != 0 {
                node.set_gap(at, path.at(level - 1).0.max_gap());
            }
            let at = at + 1;
            if node.count() < FANOUT {
                node.insert(at, carry);
                path.refresh_gaps(level);
                return;
            }
            let (ptr, right) = self.new_node(level);
            // One more on the left when the tree grows at its end: ascending insertion fills nodes
            // better.
            let left_goal = if at == FANOUT { FANOUT.div_ceil(2) + 1 } else { FANOUT.div_ceil(2) };
            if at < left_goal {
                node.split_off(left_goal - 1, right);
                node.insert(at, carry);
            } else {
                node.split_off(left_goal, right);
                right.insert(at - left_goal, carry);
            }
            carry = Slot { key: right.key(0), gap: right.max_gap(), target: ptr.addr() };
        }
        // 3. The root was full, too: a new one is above its halves.
        let left = self.root();
        let left_slot =
            Slot { key: left.key(0), gap: left.max_gap(), target: self.state.root.get().addr() };
        let (ptr, root) = self.new_node(path.height());
        root.push(left_slot);
        root.push(carry);
        self.state.root.set(ptr);
        self.state.height.inc();
    }
}
