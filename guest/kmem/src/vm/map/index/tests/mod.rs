//! The index against a model that is obviously right: a `BTreeMap` of ranges with a linear first
//! fit.

mod model;

use proptest::prelude::*;
use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::layout::MapIndex;

use self::model::{Arena, Pair};
use super::{Index, NodeStore, max_nodes};

/// A small generator (Marsaglia's xorshift), for long runs that need no shrinking.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// One step of a random history. Numbers choose among the existing ranges.
#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate { pages: u64 },
    AllocateFrom { start: u64, pages: u64 },
    Free { which: u64 },
    FreeHalf { which: u64 },
    Split { which: u64, page: u64 },
    Join { which: u64, keep_low: bool },
    SetEnd { which: u64, pages: u64 },
    Lookup { page: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..6).prop_map(|pages| Step::Allocate { pages }),
        2 => (any::<u64>(), 1u64..40)
            .prop_map(|(start, pages)| Step::AllocateFrom { start, pages }),
        4 => any::<u64>().prop_map(|which| Step::Free { which }),
        1 => any::<u64>().prop_map(|which| Step::FreeHalf { which }),
        2 => (any::<u64>(), any::<u64>()).prop_map(|(which, page)| Step::Split { which, page }),
        2 => (any::<u64>(), any::<bool>())
            .prop_map(|(which, keep_low)| Step::Join { which, keep_low }),
        2 => (any::<u64>(), 1u64..9).prop_map(|(which, pages)| Step::SetEnd { which, pages }),
        2 => any::<u64>().prop_map(|page| Step::Lookup { page }),
    ]
}

fn take(pair: &mut Pair, step: Step) {
    match step {
        Step::Allocate { pages } => pair.allocate(pair.min, pages),
        Step::AllocateFrom { start, pages } => {
            pair.allocate(pair.min + start % pair.pages() * PAGE_SIZE, pages)
        }
        Step::Free { which } => pair.free(which),
        Step::FreeHalf { which } => pair.free_half(which),
        Step::Split { which, page } => pair.split(which, page),
        Step::Join { which, keep_low } => pair.join(which, keep_low),
        Step::SetEnd { which, pages } => pair.set_end(which, pages),
        Step::Lookup { page } => pair.lookup(pair.min + page % pair.pages() * PAGE_SIZE),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_history_gives_the_addresses_of_a_linear_first_fit(
        pages in 40u64..4000,
        steps in proptest::collection::vec(step(), 1..1200),
    ) {
        let mut pair = Pair::new(0xffff_ff80_0000_0000, pages, 4000);
        for chunk in steps.chunks(16) {
            for &step in chunk {
                take(&mut pair, step);
            }
            pair.check();
        }
    }
}

#[test]
fn a_long_history_over_a_hundred_thousand_entries_keeps_every_invariant() {
    const PAGES: u64 = 1 << 20;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut pair = Pair::new(0x1000, PAGES, 200_000);
    // A linear first fit would be too slow for the model here: ranges go to random free places
    // instead.
    while pair.len() < 100_000 {
        let (start, pages) = (random.below(PAGES), 1 + random.below(6));
        pair.allocate_exactly(pair.min + start * PAGE_SIZE, pages);
    }
    pair.check();
    for round in 0..120_000 {
        match random.below(8) {
            0..3 => pair.free(random.below(u64::MAX)),
            3..6 => {
                let (start, pages) = (random.below(PAGES), 1 + random.below(6));
                pair.allocate_exactly(pair.min + start * PAGE_SIZE, pages);
            }
            6 => pair.split(random.below(u64::MAX), random.below(8)),
            _ => pair.lookup(pair.min + random.below(PAGES) * PAGE_SIZE),
        }
        if round % 64 == 0 {
            // The model checks only a window: it proves that nothing lower in the window fits.
            let start = pair.min + random.below(PAGES) * PAGE_SIZE;
            pair.compare_gap(start, 1 + random.below(12));
        }
        if round % 4096 == 0 {
            pair.check();
        }
    }
    pair.check();
    pair.free_everything();
    pair.check();
}

#[test]
fn a_million_entries_come_and_go_in_any_order() {
    const ENTRIES: u64 = 1_000_000;
    let min = 0xffff_ff80_0000_0000;
    let arena = Arena::new(max_nodes(ENTRIES + 1));
    let state = MapIndex::default();
    let limit = GuestVirt::new(min + (2 * ENTRIES + 1) * PAGE_SIZE);
    let index = Index::new(&state, &arena, GuestVirt::new(min), limit);
    index.create(KPtr::new(limit));
    // Every second page, in a scattered order: 999,983 is prime.
    let at = |i: u64| GuestVirt::new(min + (2 * (i * 999_983 % ENTRIES) + 1) * PAGE_SIZE);
    for i in 0..ENTRIES {
        index.link(at(i), at(i).add(PAGE_SIZE), KPtr::new(at(i)));
    }
    let header = (GuestVirt::new(min), GuestVirt::new(min), KPtr::new(limit));
    let all = (0..ENTRIES).map(|i| GuestVirt::new(min + (2 * i + 1) * PAGE_SIZE));
    let items = all.map(|start| (start, start.add(PAGE_SIZE), KPtr::new(start)));
    assert_eq!(index.check(core::iter::once(header).chain(items)), Ok(()));
    assert!(state.height.get() <= 8, "{} levels", state.height.get());
    assert_eq!(index.max_gap(), PAGE_SIZE);
    assert_eq!(index.find_gap(GuestVirt::new(min), 2 * PAGE_SIZE), None);
    for i in 0..ENTRIES {
        let start = at(i);
        assert_eq!(index.lookup(start.add(PAGE_SIZE + 1)).start, start);
        index.unlink(start);
    }
    assert_eq!(index.check([header]), Ok(()));
    index.destroy();
    assert_eq!(arena.in_use(), 0);
}

#[test]
fn the_free_range_below_the_first_entry_is_found_like_any_other() {
    let mut pair = Pair::new(0x10_0000, 64, 64);
    pair.allocate_exactly(pair.min + 10 * PAGE_SIZE, 2);
    pair.allocate(pair.min, 10);
    pair.allocate(pair.min, 10);
    pair.check();
    assert_eq!(pair.starts(), [0, 10, 12].map(|page| pair.min + page * PAGE_SIZE));
}

#[test]
fn an_entry_at_the_first_address_is_found_and_not_the_header() {
    let mut pair = Pair::new(0x10_0000, 64, 64);
    pair.lookup(pair.min);
    pair.allocate(pair.min, 1);
    pair.lookup(pair.min);
    pair.lookup(pair.min + PAGE_SIZE);
    pair.free(0);
    pair.lookup(pair.min);
    pair.check();
}

#[test]
fn a_start_inside_a_gap_shortens_it() {
    let mut pair = Pair::new(0, 64, 64);
    pair.allocate_exactly(8 * PAGE_SIZE, 8);
    pair.allocate_exactly(40 * PAGE_SIZE, 8);
    for (start, pages) in
        [(0, 8), (1, 8), (4, 4), (4, 5), (8, 24), (9, 24), (20, 20), (20, 21), (48, 16), (49, 16)]
    {
        pair.compare_gap(start * PAGE_SIZE, pages);
    }
}

#[test]
fn look_ups_beyond_the_ends_of_the_map_are_harmless() {
    let mut pair = Pair::new(0x10_0000, 64, 64);
    pair.allocate(pair.min, 1);
    for va in [0, pair.min - 1, pair.min + 64 * PAGE_SIZE, u64::MAX] {
        pair.lookup(va);
    }
}

#[test]
fn a_tree_never_needs_more_nodes_than_its_reserve_was_made_for() {
    assert_eq!(max_nodes(1), 1);
    assert_eq!(max_nodes(13), 1);
    assert_eq!(max_nodes(14), 3);
    // Worst fill: thousands of items, thinned out evenly. `Damage` would name the broken bound.
    let mut pair = Pair::new(0, 40_000, 20_000);
    for page in 0..20_000 {
        pair.allocate_exactly(2 * page * PAGE_SIZE, 1);
    }
    for i in 0..10_000 {
        pair.free(i);
    }
    pair.check();
}

#[test]
#[should_panic(expected = "is not free")]
fn a_range_that_is_taken_cannot_be_linked() {
    let arena = Arena::new(4);
    let state = MapIndex::default();
    let index = Index::new(&state, &arena, GuestVirt::new(0x1000), GuestVirt::new(0x9000));
    index.create(KPtr::new(GuestVirt::new(8)));
    index.link(GuestVirt::new(0x2000), GuestVirt::new(0x4000), KPtr::new(GuestVirt::new(16)));
    index.link(GuestVirt::new(0x3000), GuestVirt::new(0x5000), KPtr::new(GuestVirt::new(24)));
}

#[test]
fn a_reserve_gives_back_what_it_was_given() {
    let arena = Arena::new(2);
    let (a, b) = (arena.take(), arena.take());
    assert!(a != b);
    arena.give(a);
    assert_eq!(arena.take(), a);
}
