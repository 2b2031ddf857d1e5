//! One node of the index: searches and moves of slots inside its arrays.
//!
//! The searches read all slots without an early exit: an unused slot has the highest key and no
//! gap, so it never counts, and the loops compile to straight lines of comparisons.

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::MapNode;

pub(super) const FANOUT: usize = MapNode::FANOUT;
pub(super) const MIN_FILL: usize = MapNode::MIN_FILL;

/// One slot of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Page where the entry starts, or lowest key of the child.
    pub key: u32,
    /// Pages free after the entry, or largest gap of the child.
    pub gap: u32,
    /// Address of the entry or child.
    pub target: GuestVirt,
}

/// A node, with its operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a>(&'a MapNode);

impl<'a> Node<'a> {
    pub fn new(node: &'a MapNode) -> Self {
        Self(node)
    }

    #[inline]
    pub fn count(self) -> usize {
        usize::from(self.0.count.get())
    }

    #[inline]
    fn set_count(self, count: usize) {
        self.0.count.set(u16::try_from(count).expect("a node has few slots"));
    }

    pub fn level(self) -> usize {
        usize::from(self.0.level.get())
    }

    #[inline]
    pub fn key(self, at: usize) -> u32 {
        self.0.keys[at].get()
    }

    pub fn set_key(self, at: usize, key: u32) {
        self.0.keys[at].set(key);
    }

    #[inline]
    pub fn gap(self, at: usize) -> u32 {
        self.0.gaps[at].get()
    }

    #[inline]
    pub fn set_gap(self, at: usize, gap: u32) {
        self.0.gaps[at].set(gap);
    }

    #[inline]
    pub fn target(self, at: usize) -> GuestVirt {
        self.0.targets[at].get()
    }

    pub fn set_target(self, at: usize, target: GuestVirt) {
        self.0.targets[at].set(target);
    }

    pub fn slot(self, at: usize) -> Slot {
        Slot { key: self.key(at), gap: self.gap(at), target: self.target(at) }
    }

    fn set_slot(self, at: usize, slot: Slot) {
        self.set_key(at, slot.key);
        self.set_gap(at, slot.gap);
        self.set_target(at, slot.target);
    }

    /// Makes this a node of level `level` without slots.
    pub fn clear(self, level: usize) {
        self.set_count(0);
        self.0.level.set(u16::try_from(level).expect("a tree has few levels"));
        for at in 0..FANOUT {
            self.vacate(at);
        }
    }

    fn vacate(self, at: usize) {
        self.set_slot(at, Slot { key: MapNode::NO_KEY, gap: 0, target: GuestVirt::new(0) });
    }

    /// The last slot whose key is below `bound`, or slot 0.
    #[inline]
    pub fn rank(self, bound: u32) -> u32 {
        self.0.keys[1..].iter().map(|key| u32::from(key.get() < bound)).sum()
    }

    /// The first slot from `from` (at most [`FANOUT`]) on whose gap is at least `length` pages,
    /// which is not 0.
    #[inline]
    pub fn first_gap(self, from: usize, length: u32) -> Option<usize> {
        let fits = self
            .0
            .gaps
            .iter()
            .rev()
            .fold(0u32, |fits, gap| (fits << 1) | u32::from(gap.get() >= length));
        let fits = fits & (u32::MAX << from);
        (fits != 0).then(|| fits.trailing_zeros() as usize)
    }

    #[inline]
    pub fn max_gap(self) -> u32 {
        self.0.max_gap_pages()
    }

    /// The first page past the range of slot `at`, gap included, in a node that covers pages below
    /// `limit`.
    #[inline]
    pub fn limit(self, at: usize, limit: u32) -> u32 {
        if at + 1 < self.count() { self.key(at + 1) } else { limit }
    }

    /// Puts `slot` before slot `at`. The node is not full.
    pub fn insert(self, at: usize, slot: Slot) {
        let count = self.count();
        for to in (at + 1..=count).rev() {
            self.set_slot(to, self.slot(to - 1));
        }
        self.set_slot(at, slot);
        self.set_count(count + 1);
    }

    /// Puts `slot` after the last one. The node is not full.
    pub fn push(self, slot: Slot) {
        self.insert(self.count(), slot);
    }

    /// Removes slot `at`.
    pub fn remove(self, at: usize) {
        let count = self.count();
        for to in at..count - 1 {
            self.set_slot(to, self.slot(to + 1));
        }
        self.vacate(count - 1);
        self.set_count(count - 1);
    }

    /// Moves the slots from `at` on to the end of `right`, which is empty.
    pub fn split_off(self, at: usize, right: Self) {
        let count = self.count();
        for (to, from) in (at..count).enumerate() {
            right.set_slot(to, self.slot(from));
            self.vacate(from);
        }
        right.set_count(count - at);
        self.set_count(at);
    }

    /// Moves all slots of `right`, the next node, to the end of this one. They fit.
    pub fn append(self, right: Self) {
        let count = self.count();
        for from in 0..right.count() {
            self.set_slot(count + from, right.slot(from));
        }
        self.set_count(count + right.count());
    }

    /// Evens out the slots of this node and the next one, `right`.
    pub fn balance(self, right: Self) {
        let left_goal = (self.count() + right.count()) / 2;
        while self.count() < left_goal {
            self.push(right.slot(0));
            right.remove(0);
        }
        while self.count() > left_goal {
            let last = self.count() - 1;
            right.insert(0, self.slot(last));
            self.remove(last);
        }
    }
}
