//! The index of a map: a B+-tree over its entries that knows the largest gap of every subtree.
//!
//! It replaces FreeBSD's splay tree and returns the same answers: the entry at or before an
//! address, and the lowest gap of some length at or above an address. Unlike the splay tree, it is
//! always balanced, look-ups change nothing, and the free range below the first entry is a gap like
//! any other: the map's header is the first item, of no length, at the map's first address.
//!
//! A gap belongs to the item below it. An item's end is not stored: it is the start of the next
//! item (or the end of the map) less the gap. So the index answers both questions from its nodes
//! alone, and never touches an entry.
//!
//! **Protocol.** The map's lock is held, except that look-ups may run concurrently. Changes take
//! their nodes by [`NodeStore::take`] from a reserve that the caller has filled before: it holds
//! enough when tree and reserve together have [`max_nodes`] nodes for all items that the tree may
//! come to hold.

mod check;
mod insert;
mod node;
mod path;
mod remove;
#[cfg(test)]
mod tests;

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT};
use vmkern_abi::layout::{MapIndex, MapNode, VmMapEntry};

pub use self::check::Damage;
use self::node::{Node, Slot};
use self::path::Path;
use crate::num::to_u32;

/// Where an index has its nodes.
pub trait NodeStore {
    /// The node at `node`, a node of the tree.
    fn node(&self, node: KPtr<MapNode>) -> &MapNode;

    /// A node from the reserve, with arbitrary contents. The reserve is never empty here: see the
    /// module's protocol.
    fn take(&self) -> KPtr<MapNode>;

    /// Puts a node that has left the tree into the reserve. It stays as it is until
    /// [`NodeStore::compact`].
    fn give(&self, node: KPtr<MapNode>);

    /// Called after a change until it returns `None`: closes a gap among the store's nodes in use,
    /// by moving a node with its contents to the place of a node that was returned.
    fn compact(&self) -> Option<Relocation>;
}

/// A node of the tree that has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Its old place.
    pub from: KPtr<MapNode>,
    /// Its new place.
    pub to: KPtr<MapNode>,
}

/// Most nodes that a tree of `items` items (the header is one) can have, whatever its history.
#[must_use]
pub const fn max_nodes(items: u64) -> u64 {
    let mut nodes = 1;
    let mut level = items / MapNode::MIN_FILL as u64;
    while level >= 2 {
        nodes += level;
        level /= MapNode::MIN_FILL as u64;
    }
    nodes
}

/// The index's record of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it starts.
    pub start: GuestVirt,
    /// The entry, or the map's header.
    pub entry: KPtr<VmMapEntry>,
}

/// The index of one map, for the time that its lock is held.
#[derive(Debug)]
pub struct Index<'a, S> {
    state: &'a MapIndex,
    store: &'a S,
    /// First address of the map, from which pages are counted.
    min: GuestVirt,
    /// Pages of the map.
    limit: u32,
}

impl<'a, S: NodeStore> Index<'a, S> {
    /// The index with the state `state` and its nodes in `store`, of a map of `[min, max)`, page
    /// aligned and of at most [`MapNode::MAX_PAGES`].
    #[must_use]
    pub fn new(state: &'a MapIndex, store: &'a S, min: GuestVirt, max: GuestVirt) -> Self {
        Self { state, store, min, limit: page_number(max.since(min)) }
    }

    /// Makes the tree of an empty map, whose only item is `header`. Takes one node.
    pub fn create(&self, header: KPtr<VmMapEntry>) {
        assert!(u64::from(self.limit) <= MapNode::MAX_PAGES, "vm_map index: the map is too large");
        let (ptr, root) = self.new_node(0);
        root.push(Slot { key: 0, gap: self.limit, target: header.addr() });
        self.state.root.set(ptr);
        self.state.height.set(1);
    }

    /// Returns all nodes to the store. The tree holds only the header.
    pub fn destroy(&self) {
        assert!(
            self.height() == 1 && self.root().count() == 1,
            "vm_map index: destroyed with entries"
        );
        self.free_node(self.state.root.get());
        self.state.root.set(KPtr::NULL);
        self.state.height.set(0);
        self.compact();
    }

    /// The item with the greatest start that is not above `va`; the header when there is none.
    #[must_use]
    pub fn lookup(&self, va: GuestVirt) -> Item {
        let bound = if va < self.min { 0 } else { self.page(va).saturating_add(1) };
        let mut node = self.root();
        for _ in 1..self.height() {
            node = self.child(node, node.rank(bound) as usize);
        }
        let at = node.rank(bound) as usize;
        Item { start: self.address(node.key(at)), entry: KPtr::new(node.target(at)) }
    }

    /// The lowest address at or above `start` from which `length` bytes are free, or `None`.
    ///
    /// `start` is inside the map and page aligned; `length` is whole pages, at least one.
    #[must_use]
    pub fn find_gap(&self, start: GuestVirt, length: u64) -> Option<GuestVirt> {
        let (start, length) = (self.page(start), page_number(length));
        debug_assert!(length != 0 && start <= self.limit);
        let top = self.height() - 1;
        let root = self.root();
        if start == 0 {
            let at = root.first_gap(0, length)?;
            return Some(self.lowest_gap(root, at, top, self.limit, length));
        }
        let path = self.path(start + 1);
        let (free_from, free_to) = path.gap();
        let from = free_from.max(start);
        if free_to >= from && free_to - from >= length {
            return Some(self.address(from));
        }
        (0..=top).find_map(|level| {
            let step = path.step(level);
            let at = step.node.first_gap(step.at() + 1, length)?;
            Some(self.lowest_gap(step.node, at, level, step.limit, length))
        })
    }

    /// The length of the largest gap of the map in bytes.
    #[must_use]
    pub fn max_gap(&self) -> u64 {
        u64::from(self.root().max_gap()) << PAGE_SHIFT
    }

    /// The start of the lowest gap of `length` bytes under slot `at` of `node` (of level `level`,
    /// below `limit`), whose recorded gap says that there is one.
    fn lowest_gap(
        &self,
        node: Node<'a>,
        at: usize,
        level: usize,
        limit: u32,
        length: u32,
    ) -> GuestVirt {
        let (mut node, mut at, mut limit) = (node, at, node.limit(at, limit));
        for _ in 0..level {
            node = self.child(node, at);
            at = node.first_gap(0, length).expect("vm_map_findspace: max_free corrupt");
            limit = node.limit(at, limit);
        }
        self.address(limit - node.gap(at))
    }

    /// The page of `va`, an address not below the map.
    fn page(&self, va: GuestVirt) -> u32 {
        page_number(va.since(self.min))
    }

    /// The address of `page`.
    fn address(&self, page: u32) -> GuestVirt {
        self.min.add(u64::from(page) << PAGE_SHIFT)
    }

    /// The path from the root to the item with the greatest start below page `bound`, or to the
    /// header.
    #[inline]
    fn path(&self, bound: u32) -> Path<'a> {
        let height = self.height();
        let mut path = Path::new(self.root(), height, self.limit);
        for level in (1..height).rev() {
            let step = path.enter(level, bound);
            path.set(level - 1, self.child(step.node, step.at()), step.limit_below());
        }
        path.enter(0, bound);
        path
    }

    #[inline]
    fn height(&self) -> usize {
        self.state.height.get() as usize
    }

    #[inline]
    fn root(&self) -> Node<'a> {
        Node::new(self.store.node(self.state.root.get()))
    }

    #[inline]
    fn child(&self, node: Node<'a>, at: usize) -> Node<'a> {
        Node::new(self.store.node(KPtr::new(node.target(at))))
    }

    /// A fresh node of level `level` without slots.
    fn new_node(&self, level: usize) -> (KPtr<MapNode>, Node<'a>) {
        let ptr = self.store.take();
        let node = Node::new(self.store.node(ptr));
        node.clear(level);
        self.state.nodes.inc();
        (ptr, node)
    }

    fn free_node(&self, ptr: KPtr<MapNode>) {
        self.state.nodes.dec();
        self.store.give(ptr);
    }

    /// Lets the store move nodes to the places of those that were freed. This ends a change: paths
    /// are invalid afterwards.
    fn compact(&self) {
        while let Some(Relocation { from, to }) = self.store.compact() {
            if self.state.root.get() == from {
                self.state.root.set(to);
                continue;
            }
            let node = Node::new(self.store.node(to));
            let bound = node.key(0) + 1;
            let mut parent = self.root();
            while parent.level() > node.level() + 1 {
                parent = self.child(parent, parent.rank(bound) as usize);
            }
            let at = parent.rank(bound) as usize;
            assert!(
                parent.target(at) == from.addr(),
                "vm_map index: a node moved that is not in the tree"
            );
            parent.set_target(at, to.addr());
        }
    }
}

/// The page at `bytes` from the map's start, or the largest number if that is beyond all pages with
/// keys.
fn page_number(bytes: u64) -> u32 {
    to_u32(bytes >> PAGE_SHIFT)
}
