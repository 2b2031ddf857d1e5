//! The path from the root of an index to one of its items.

use vmkern_abi::layout::MapNode;

use super::node::Node;

/// One node of the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    pub node: Node<'a>,
    /// The slot through which the path continues.
    slot: u32,
    /// First page past the range of the node.
    pub limit: u32,
}

impl Step<'_> {
    /// The slot through which the path continues.
    #[inline]
    pub fn at(self) -> usize {
        self.slot as usize
    }

    /// First page past the range of the slot, gap included.
    #[inline]
    pub fn limit_below(self) -> u32 {
        self.node.limit(self.at(), self.limit)
    }
}

/// The steps by level, the leaf's at 0.
#[derive(Debug)]
pub(super) struct Path<'a> {
    steps: [Step<'a>; MapNode::MAX_HEIGHT],
    height: usize,
}

impl<'a> Path<'a> {
    /// A path that begins at `root`, in a tree of `height` levels that covers pages below `limit`.
    #[inline]
    pub fn new(root: Node<'a>, height: usize, limit: u32) -> Self {
        Self { steps: [Step { node: root, slot: 0, limit }; MapNode::MAX_HEIGHT], height }
    }

    #[inline]
    pub fn height(&self) -> usize {
        self.height
    }

    #[inline]
    pub fn step(&self, level: usize) -> Step<'a> {
        self.steps[level]
    }

    /// The node of `level`, and the slot through which the path continues.
    #[inline]
    pub fn at(&self, level: usize) -> (Node<'a>, usize) {
        (self.steps[level].node, self.steps[level].at())
    }

    #[inline]
    pub fn leaf(&self) -> Step<'a> {
        self.steps[0]
    }

    #[inline]
    pub fn set(&mut self, level: usize, node: Node<'a>, limit: u32) {
        self.steps[level] = Step { node, slot: 0, limit };
    }

    /// Chooses the last slot below `bound` at `level`.
    #[inline]
    pub fn enter(&mut self, level: usize, bound: u32) -> Step<'a> {
        let step = &mut self.steps[level];
        step.slot = step.node.rank(bound);
        *step
    }

    /// The gap after the item: where it begins, which is the item's end, and where it ends.
    #[inline]
    pub fn gap(&self) -> (u32, u32) {
        let step = self.leaf();
        let free_to = step.limit_below();
        (free_to - step.node.gap(step.at()), free_to)
    }

    /// Sets the gap after the item, and the maxima above it.
    pub fn set_gap(&self, gap: u32) {
        let leaf = self.leaf();
        let old = leaf.node.gap(leaf.at());
        leaf.node.set_gap(leaf.at(), gap);
        self.propagate(old, gap);
    }

    /// Corrects the maxima above the leaf after its slots changed: the largest gap removed was
    /// `old`, the largest added is `new`.
    pub fn propagate(&self, mut old: u32, mut new: u32) {
        for level in 1..self.height {
            let (node, at) = self.at(level);
            let max = node.gap(at);
            let now = if new >= max {
                new
            } else if old == max {
                self.steps[level - 1].node.max_gap()
            } else {
                return;
            };
            if now == max {
                return;
            }
            node.set_gap(at, now);
            (old, new) = (max, now);
        }
    }

    /// Recomputes the maxima above `level` until one is already right.
    pub fn refresh_gaps(&self, level: usize) {
        for above in level + 1..self.height {
            let (node, at) = self.at(above);
            let now = self.steps[above - 1].node.max_gap();
            if node.gap(at) == now {
                return;
            }
            node.set_gap(at, now);
        }
    }

    /// Corrects the keys above the leaf after its first slot was removed.
    pub fn refresh_keys(&self) {
        let key = self.leaf().node.key(0);
        for level in 1..self.height {
            let (node, at) = self.at(level);
            node.set_key(at, key);
            if at != 0 {
                return;
            }
        }
    }
}
