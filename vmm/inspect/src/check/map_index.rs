//! A map's index: every node of the B+ tree by itself, and the tree's items against the list of
//! entries.

use std::collections::HashSet;

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT};
use vmkern_abi::layout::MapNode;

use super::context::Context;
use super::maps::Map;
use super::rule::Rule;
use super::rule::rules;

rules! {
    None;
    Pools {
        INDEX_HEIGHT = "index-height":
            "the height is 1 to 12";
        INDEX_LEVEL = "index-level":
            "a node's level is its distance from the leaves";
        INDEX_FILL = "index-fill":
            "a node has 7 to 15 slots, the root 1 or, above leaves, 2";
        INDEX_UNUSED = "index-unused":
            "slots that are not used have no key and no gap";
        INDEX_KEY = "index-key":
            "an inner slot's key is the lowest of its child, and keys ascend";
        INDEX_GAP = "index-gap":
            "a leaf's gap is the free range after the entry, an inner gap (`max_free`) the \
             largest of the child";
        INDEX_ITEM = "index-item":
            "the items of the tree are the header and the entries of the list";
        INDEX_NODES = "index-nodes":
            "`nodes` is the number of nodes";
        INDEX_SHARED = "index-shared":
            "no node is reached twice";
        INDEX_SPARE = "index-spare":
            "no node of the tree is on the list of spare nodes, and no node is between tree and \
             pool";
    }
}

/// A slot of a leaf.
#[derive(Clone, Copy, Debug)]
struct Item {
    node: GuestVirt,
    key: u32,
    gap: u32,
    target: GuestVirt,
}

/// An item that the tree must hold, according to the list of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    key: u64,
    gap: u64,
    target: GuestVirt,
}

/// The nodes of a map's index, by address.
pub(super) type Nodes = HashSet<GuestVirt>;

/// Checks the index of `map` and returns its nodes.
pub(super) fn check(ctx: &Context<'_>, map: &Map) -> Nodes {
    let mut walk = Walk { ctx, map, seen: HashSet::new(), items: Vec::new() };
    let at = map.root.addr();
    if !(1..=MapNode::MAX_HEIGHT).contains(&(map.height as usize)) {
        ctx.finding(&INDEX_HEIGHT, map.name, map.at, || {
            format!("the height of its index is {}, not 1 to {}", map.height, MapNode::MAX_HEIGHT)
        });
    } else if let Some(root) = walk.node(at) {
        walk.visit(at, &root, u16::try_from(map.height - 1).unwrap_or(u16::MAX));
    }
    let count = walk.seen.len() as u64;
    if map.nodes != count {
        ctx.finding(&INDEX_NODES, map.name, map.at, || {
            format!("nodes says {}, but its index has {count}", map.nodes)
        });
    }
    let Walk { seen, items, .. } = walk;
    compare(ctx, map, &items);
    seen
}

struct Walk<'c, 'a> {
    ctx: &'c Context<'a>,
    map: &'c Map,
    seen: Nodes,
    items: Vec<Item>,
}

impl Walk<'_, '_> {
    fn finding(&self, rule: &'static Rule, node: GuestVirt, detail: impl FnOnce() -> String) {
        self.ctx.finding(rule, "map index node", node, || {
            format!("in the index of {} at {}: {}", self.map.name, self.map.at, detail())
        });
    }

    /// The node at `at`, if it can be read and was not visited before.
    fn node(&mut self, at: GuestVirt) -> Option<MapNode> {
        if !self.seen.insert(at) {
            self.finding(&INDEX_SHARED, at, || "two slots lead to it".to_owned());
            return None;
        }
        self.ctx
            .memory
            .get("map index node", KPtr::new(at))
            .map_err(|error| self.ctx.unreadable(&error))
            .ok()
    }

    fn visit(&mut self, at: GuestVirt, node: &MapNode, level: u16) {
        // 1. The node itself.
        let count = self.shape(at, node, level);
        // 2. Its slots: items in a leaf; otherwise a child with its lowest key and largest gap.
        for slot in 0..count {
            let (key, gap, target) =
                (node.keys[slot].get(), node.gaps[slot].get(), node.targets[slot].get());
            if level == 0 {
                self.items.push(Item { node: at, key, gap, target });
                continue;
            }
            if slot > 0 && node.keys[slot - 1].get() >= key {
                self.finding(&INDEX_KEY, at, || {
                    format!(
                        "slot {slot} has key {key:#x}, but the one before has {:#x}",
                        node.keys[slot - 1].get()
                    )
                });
            }
            // 3. The child agrees about its lowest key and its largest gap.
            let Some(child) = self.node(target) else { continue };
            let lowest = child.keys[0].get();
            if lowest != key {
                self.finding(&INDEX_KEY, at, || {
                    format!("slot {slot} has key {key:#x}, but its child begins at {lowest:#x}")
                });
            }
            let largest = child.gaps.iter().map(|gap| gap.get()).max().unwrap_or(0);
            if largest != gap {
                self.finding(&INDEX_GAP, at, || {
                    format!(
                        "slot {slot} says max_free {gap:#x} pages, but its child's largest gap is \
                         {largest:#x}"
                    )
                });
            }
            self.visit(target, &child, level - 1);
        }
    }

    /// Checks a node's own fields; returns the number of slots to visit.
    fn shape(&self, at: GuestVirt, node: &MapNode, level: u16) -> usize {
        // 1. Its level fits its depth, and it is as full as a B+ tree requires.
        if node.level.get() != level {
            self.finding(&INDEX_LEVEL, at, || {
                format!("its level is {}, but its depth says {level}", node.level.get())
            });
        }
        let is_root = at == self.map.root.addr();
        let fewest = match (is_root, level) {
            (false, _) => MapNode::MIN_FILL,
            (true, 0) => 1,
            (true, _) => 2,
        };
        let count = usize::from(node.count.get());
        if !(fewest..=MapNode::FANOUT).contains(&count) {
            self.finding(&INDEX_FILL, at, || {
                format!("it counts {count} slots, not {fewest} to {}", MapNode::FANOUT)
            });
        }
        // 2. Slots past the count are empty.
        let count = count.min(MapNode::FANOUT);
        for slot in count..MapNode::FANOUT {
            let (key, gap, target) =
                (node.keys[slot].get(), node.gaps[slot].get(), node.targets[slot].get());
            if key != MapNode::NO_KEY || gap != 0 || target.get() != 0 {
                self.finding(&INDEX_UNUSED, at, || {
                    format!(
                        "slot {slot} is not in use, but has key {key:#x}, gap {gap:#x}, target \
                         {target}"
                    )
                });
            }
        }
        // 3. A node in the tree is not on the list of spare nodes.
        if !node.spare_next.get().is_null() {
            let next = node.spare_next.get().addr();
            self.finding(&INDEX_SPARE, at, || {
                format!("it is in the tree, but its spare_next is {next}")
            });
        }
        count
    }
}

/// Compares the items of the tree with the header and the entries of the list, both in order of
/// keys.
fn compare(ctx: &Context<'_>, map: &Map, items: &[Item]) {
    // 1. The expected items: a key and a gap for the header and for each entry.
    let page = |at: GuestVirt| at.get().wrapping_sub(map.min.get()) >> PAGE_SHIFT;
    let gap = |end: GuestVirt, next: GuestVirt| next.get().wrapping_sub(end.get()) >> PAGE_SHIFT;
    let starts = map.entries.iter().map(|entry| entry.start).chain([map.max]);
    let ends = [map.min].into_iter().chain(map.entries.iter().map(|entry| entry.end));
    let places = [(map.min, map.at)]
        .into_iter()
        .chain(map.entries.iter().map(|entry| (entry.start, entry.at)));
    let expected = places.zip(ends.zip(starts)).map(|((start, target), (end, next))| Expected {
        key: page(start),
        gap: gap(end, next),
        target,
    });
    // 2. The items of the leaves, in order, against the expected ones.
    let mut items = items.iter().peekable();
    for want in expected {
        while let Some(item) = items.next_if(|item| u64::from(item.key) < want.key) {
            too_many(ctx, map, item);
        }
        // The header and the first entry may both have key 0.
        match items.next_if(|item| u64::from(item.key) == want.key) {
            None => ctx.finding(&INDEX_ITEM, "vm_map_entry", want.target, || {
                format!("it is on the list of {} at {}, but not in its index", map.name, map.at)
            }),
            Some(item) if item.target != want.target => {
                ctx.finding(&INDEX_ITEM, "map index node", item.node, || {
                    format!(
                        "key {:#x} leads to {}, but the entry there is {}",
                        item.key, item.target, want.target
                    )
                });
            }
            Some(item) if u64::from(item.gap) != want.gap => {
                ctx.finding(&INDEX_GAP, "map index node", item.node, || {
                    let Expected { key, gap, target } = want;
                    format!(
                        "key {key:#x} says that {:#x} pages are free behind {target}, but {gap:#x} \
                         are",
                        item.gap
                    )
                });
            }
            Some(_) => {}
        }
    }
    // 3. Any items left belong to no entry.
    items.for_each(|item| too_many(ctx, map, item));
}

fn too_many(ctx: &Context<'_>, map: &Map, item: &Item) {
    ctx.finding(&INDEX_ITEM, "map index node", item.node, || {
        let Item { key, target, .. } = item;
        format!(
            "key {key:#x} leads to {target}, but no entry of {} at {} starts there",
            map.name, map.at
        )
    });
}
