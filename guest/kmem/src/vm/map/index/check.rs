//! Checks of every invariant of an index, one by one.

use core::fmt;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{MapNode, VmMapEntry};

use super::node::{FANOUT, MIN_FILL, Node};
use super::{Index, NodeStore, max_nodes};

/// A broken rule of an index, and the node or item that breaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The rule that is broken.
    pub rule: &'static str,
    /// First key of the node, or start of the item.
    pub at: GuestVirt,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vm_map index: {} at {}", self.rule, self.at)
    }
}

/// The totals found in a subtree.
struct Tally {
    items: u64,
    nodes: u64,
}

fn rule(holds: bool, rule: &'static str, at: GuestVirt) -> Result<(), Damage> {
    if holds { Ok(()) } else { Err(Damage { rule, at }) }
}

impl<S: NodeStore> Index<'_, S> {
    /// Checks the whole tree, and that its items are exactly `items`: start, end and entry in
    /// ascending order, the header (with its end at the map's first address) being the first.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check<I>(&self, items: I) -> Result<(), Damage>
    where
        I: IntoIterator<Item = (GuestVirt, GuestVirt, KPtr<VmMapEntry>)>,
    {
        let mut items = items.into_iter();
        let root = self.root();
        rule((1..=MapNode::MAX_HEIGHT).contains(&self.height()), "height out of range", self.min)?;
        let tally = self.check_node(root, self.height() - 1, self.limit, &mut items)?;
        rule(items.next().is_none(), "an item is missing in the tree", self.address(self.limit))?;
        rule(tally.nodes == self.state.nodes.get(), "the number of nodes is wrong", self.min)?;
        rule(
            tally.nodes <= max_nodes(tally.items),
            "more nodes than the reserve counts on",
            self.min,
        )
    }

    /// Checks that the item in slot `at` of the leaf `node`, which ends at `next`, is `item`.
    fn check_item(
        &self,
        node: Node<'_>,
        at: usize,
        next: u32,
        item: Option<(GuestVirt, GuestVirt, KPtr<VmMapEntry>)>,
    ) -> Result<(), Damage> {
        let key = self.address(node.key(at));
        let (start, end, entry) = item.ok_or(Damage { rule: "an item too many", at: key })?;
        rule(start == key, "key is not the start", key)?;
        rule(entry.addr() == node.target(at), "item of another entry", key)?;
        rule(self.page(end).checked_add(node.gap(at)) == Some(next), "wrong gap", key)
    }

    /// Checks what slot `at` of the inner node `node` says about its child, and returns the child's
    /// totals.
    fn check_slot(&self, node: Node<'_>, at: usize) -> Result<Node<'_>, Damage> {
        let page = node.key(at);
        let key = self.address(page);
        let child = self.store.node(KPtr::new(node.target(at)));
        rule(child.keys[0].get() == page, "key is not the lowest of the child", key)?;
        rule(child.max_gap_pages() == node.gap(at), "gap is not the largest of the child", key)?;
        rule(at == 0 || node.key(at - 1) < page, "children out of order", key)?;
        Ok(Node::new(child))
    }

    fn check_node<I>(
        &self,
        node: Node<'_>,
        level: usize,
        limit: u32,
        items: &mut I,
    ) -> Result<Tally, Damage>
    where
        I: Iterator<Item = (GuestVirt, GuestVirt, KPtr<VmMapEntry>)>,
    {
        // 1. The node itself: its level, its fill, and the slots that it does not use.
        let first = self.address(node.key(0));
        rule(node.level() == level, "wrong level", first)?;
        let is_root = level + 1 == self.height();
        let fewest = match (is_root, level) {
            (false, _) => MIN_FILL,
            (true, 0) => 1,
            (true, _) => 2,
        };
        rule((fewest..=FANOUT).contains(&node.count()), "fill out of bounds", first)?;
        for at in node.count()..FANOUT {
            rule(
                node.key(at) == MapNode::NO_KEY && node.gap(at) == 0,
                "an unused slot is not empty",
                first,
            )?;
        }
        // 2. Its slots, in order, so the leaves take `items` in order too.
        let mut tally = Tally { items: 0, nodes: 1 };
        for at in 0..node.count() {
            let next = node.limit(at, limit);
            if level == 0 {
                self.check_item(node, at, next, items.next())?;
                tally.items += 1;
            } else {
                let child = self.check_slot(node, at)?;
                let below = self.check_node(child, level - 1, next, items)?;
                tally.items += below.items;
                tally.nodes += below.nodes;
            }
        }
        Ok(tally)
    }
}
