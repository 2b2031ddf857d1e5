//! The model, and the index beside it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::layout::{MapIndex, MapNode};

use super::super::{Index, NodeStore, Relocation, max_nodes};

/// Nodes in ordinary memory. Their "address" is their number plus one, times 64.
pub struct Arena {
    nodes: Vec<MapNode>,
    free: RefCell<Vec<u64>>,
}

impl Arena {
    pub fn new(nodes: u64) -> Self {
        Self {
            nodes: (0..nodes).map(|_| MapNode::default()).collect(),
            free: RefCell::new((0..nodes).rev().collect()),
        }
    }

    pub fn in_use(&self) -> usize {
        self.nodes.len() - self.free.borrow().len()
    }

    fn number(node: KPtr<MapNode>) -> u64 {
        node.addr().get() / 64 - 1
    }
}

impl NodeStore for Arena {
    fn node(&self, node: KPtr<MapNode>) -> &MapNode {
        &self.nodes[usize::try_from(Self::number(node)).expect("a 64-bit host")]
    }

    fn take(&self) -> KPtr<MapNode> {
        let number = self.free.borrow_mut().pop().expect("the reserve was made large enough");
        KPtr::new(GuestVirt::new((number + 1) * 64))
    }

    fn give(&self, node: KPtr<MapNode>) {
        self.free.borrow_mut().push(Self::number(node));
    }

    fn compact(&self) -> Option<Relocation> {
        None
    }
}

/// An index and its model: start to (end, entry). Every operation is applied to both, and the
/// results are compared.
pub struct Pair {
    arena: Arena,
    state: MapIndex,
    pub min: u64,
    max: u64,
    most: usize,
    ranges: BTreeMap<u64, (u64, u64)>,
    next_entry: u64,
}

impl Pair {
    /// A map of `pages` pages from `min`, of at most `most` entries.
    pub fn new(min: u64, pages: u64, most: usize) -> Self {
        let pair = Self {
            arena: Arena::new(max_nodes(most as u64 + 1)),
            state: MapIndex::default(),
            min,
            max: min + pages * PAGE_SIZE,
            most,
            ranges: BTreeMap::new(),
            next_entry: 2,
        };
        pair.index().create(KPtr::new(GuestVirt::new(1)));
        pair
    }

    fn index(&self) -> Index<'_, Arena> {
        Index::new(&self.state, &self.arena, GuestVirt::new(self.min), GuestVirt::new(self.max))
    }

    pub fn pages(&self) -> u64 {
        (self.max - self.min) / PAGE_SIZE
    }

    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn starts(&self) -> Vec<u64> {
        self.ranges.keys().copied().collect()
    }

    fn entry(&mut self) -> u64 {
        self.next_entry += 1;
        self.next_entry
    }

    /// The lowest free address at or above `start`, one range after another.
    fn first_fit(&self, start: u64, length: u64) -> Option<u64> {
        let below = self.ranges.range(..=start).next_back();
        let mut from = below.map_or(start, |(_, &(end, _))| end.max(start));
        for (&taken, &(end, _)) in self.ranges.range(start..) {
            if taken >= from && taken - from >= length {
                return Some(from);
            }
            from = from.max(end);
        }
        (self.max - from >= length).then_some(from)
    }

    pub fn compare_gap(&self, start: u64, pages: u64) -> Option<u64> {
        let want = self.first_fit(start, pages * PAGE_SIZE);
        let got = self.index().find_gap(GuestVirt::new(start), pages * PAGE_SIZE);
        assert_eq!(got.map(GuestVirt::get), want, "{pages} pages from {start:#x}");
        want
    }

    pub fn allocate(&mut self, start: u64, pages: u64) {
        if let Some(start) = self.compare_gap(start, pages) {
            self.link(start, start + pages * PAGE_SIZE);
        }
    }

    /// Takes exactly this range, or nothing.
    pub fn allocate_exactly(&mut self, start: u64, pages: u64) {
        let end = start + pages * PAGE_SIZE;
        let below = self.ranges.range(..end).next_back();
        if end <= self.max && below.is_none_or(|(_, &(taken, _))| taken <= start) {
            self.link(start, end);
        }
    }

    fn link(&mut self, start: u64, end: u64) {
        if self.ranges.len() < self.most {
            let entry = self.entry();
            self.index().link(
                GuestVirt::new(start),
                GuestVirt::new(end),
                KPtr::new(GuestVirt::new(entry)),
            );
            self.ranges.insert(start, (end, entry));
        }
    }

    /// Any range, spread over the map by `which`.
    fn choose(&self, which: u64) -> Option<(u64, u64, u64)> {
        let pivot = self.min + which % self.pages() * PAGE_SIZE;
        let found = self.ranges.range(pivot..).next().or_else(|| self.ranges.iter().next());
        found.map(|(&start, &(end, entry))| (start, end, entry))
    }

    pub fn free(&mut self, which: u64) {
        if let Some((start, ..)) = self.choose(which) {
            self.index().unlink(GuestVirt::new(start));
            self.ranges.remove(&start);
        }
    }

    /// Frees every second range, from some range on.
    pub fn free_half(&mut self, which: u64) {
        let Some((from, ..)) = self.choose(which) else { return };
        for start in
            self.ranges.range(from..).map(|(&start, _)| start).step_by(2).collect::<Vec<_>>()
        {
            self.index().unlink(GuestVirt::new(start));
            self.ranges.remove(&start);
        }
    }

    pub fn free_everything(&mut self) {
        while !self.ranges.is_empty() {
            self.free(self.next_entry.wrapping_mul(0x9e37_79b9));
            self.next_entry += 1;
        }
    }

    pub fn split(&mut self, which: u64, page: u64) {
        let Some((start, end, low)) = self.choose(which) else { return };
        let pages = (end - start) / PAGE_SIZE;
        if pages < 2 || self.ranges.len() == self.most {
            return;
        }
        let at = start + (1 + page % (pages - 1)) * PAGE_SIZE;
        let high = self.entry();
        let [low_ptr, high_ptr] = [low, high].map(|entry| KPtr::new(GuestVirt::new(entry)));
        self.index().split(GuestVirt::new(at), low_ptr, high_ptr);
        self.ranges.insert(start, (at, low));
        self.ranges.insert(at, (end, high));
    }

    /// Joins a range with the next one if they touch.
    pub fn join(&mut self, which: u64, keep_low: bool) {
        let Some((start, end, low)) = self.choose(which) else { return };
        let Some(&(high_end, high)) = self.ranges.get(&end) else { return };
        let survivor = if keep_low { low } else { high };
        self.index().join(GuestVirt::new(end), KPtr::new(GuestVirt::new(survivor)));
        self.ranges.remove(&end);
        self.ranges.insert(start, (high_end, survivor));
    }

    /// Grows a range into the gap above it, or shrinks it.
    pub fn set_end(&mut self, which: u64, pages: u64) {
        let Some((start, end, entry)) = self.choose(which) else { return };
        let next = self.ranges.range(end..).next().map_or(self.max, |(&next, _)| next);
        let new = (start + pages * PAGE_SIZE).min(next);
        self.index().set_end(GuestVirt::new(start), GuestVirt::new(new));
        self.ranges.insert(start, (new, entry));
    }

    pub fn lookup(&self, va: u64) {
        let found = self.index().lookup(GuestVirt::new(va));
        let want = self
            .ranges
            .range(..=va)
            .next_back()
            .map_or((self.min, 1), |(&start, &(_, entry))| (start, entry));
        assert_eq!((found.start.get(), found.entry.addr().get()), want, "look-up of {va:#x}");
    }

    /// Compares everything.
    pub fn check(&self) {
        let header = (self.min, self.min, 1);
        let ranges = self.ranges.iter().map(|(&start, &(end, entry))| (start, end, entry));
        let items = core::iter::once(header).chain(ranges);
        let items = items.map(|(start, end, entry)| {
            (GuestVirt::new(start), GuestVirt::new(end), KPtr::new(GuestVirt::new(entry)))
        });
        assert_eq!(self.index().check(items), Ok(()));
        assert_eq!(self.arena.in_use() as u64, self.state.nodes.get());
        let largest =
            self.ranges.values().map(|&(end, _)| end).chain([self.min]).map(|end| {
                self.ranges.range(end..).next().map_or(self.max, |(&next, _)| next) - end
            });
        assert_eq!(self.index().max_gap(), largest.max().unwrap_or(0));
    }
}
