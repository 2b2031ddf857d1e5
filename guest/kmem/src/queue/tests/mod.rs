//! Each kind of list against a `VecDeque`, step by step: what it holds, forwards and backwards, and
//! that whatever is on no list is in nobody's way.

mod circular;
mod list;
mod slist;
mod tailq;

use std::collections::VecDeque;

use proptest::prelude::*;
use vmkern_abi::field::Field;

use super::{BackLinks, Link, Links};

/// Entries there are, numbered from 1.
const ENTRIES: u32 = 12;

/// The links of an entry.
#[derive(Debug, Default)]
struct Node {
    next: Field<u32>,
    prev: Field<u32>,
}

/// All entries, by number.
#[derive(Debug)]
struct Arena(Vec<Node>);

impl Arena {
    /// Entries whose links hold what others have left.
    fn new() -> Self {
        let nodes: Vec<Node> = (0..ENTRIES).map(|_| Node::default()).collect();
        for node in &nodes {
            node.next.set(u32::MAX);
            node.prev.set(u32::MAX);
        }
        Self(nodes)
    }

    fn node(&self, entry: u32) -> &Node {
        &self.0[entry as usize - 1]
    }
}

impl Links for &Arena {
    type Link = u32;

    fn next(&self, entry: u32) -> &Field<u32> {
        &self.node(entry).next
    }
}

impl BackLinks for &Arena {
    fn prev(&self, entry: u32) -> &Field<u32> {
        &self.node(entry).prev
    }
}

/// The entries along `way` from `first` on.
fn walk<'a>(first: &Field<u32>, way: impl Fn(u32) -> &'a Field<u32>) -> VecDeque<u32> {
    let mut found = VecDeque::new();
    let mut at = first.get();
    while let Some(entry) = at.entry() {
        assert!(found.len() < ENTRIES as usize, "the list goes round");
        found.push_back(entry);
        at = way(entry).get();
    }
    found
}

/// An entry that is on no list, chosen by `which`.
fn free_entry(model: &VecDeque<u32>, which: u32) -> Option<u32> {
    let free: Vec<u32> = (1..=ENTRIES).filter(|entry| !model.contains(entry)).collect();
    (!free.is_empty()).then(|| free[which as usize % free.len()])
}

/// The place in `model` that `which` chooses.
fn place(model: &VecDeque<u32>, which: u32) -> Option<usize> {
    (!model.is_empty()).then(|| which as usize % model.len())
}

/// A history of steps: what is done, and a number that chooses among the entries.
fn history(kinds: u8) -> impl Strategy<Value = Vec<(u8, u32)>> {
    proptest::collection::vec((0..kinds, any::<u32>()), 0..80)
}
