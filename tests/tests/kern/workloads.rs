//! The functions combined, as a kernel uses them: pairs, checkerboards, random mixes, exhaustion,
//! storms.

use std::collections::{BTreeMap, VecDeque};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vmkern::{Context, Guest, GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome, ThreadId};
use vmkern_tests::harness::{
    in_guest, in_guest_of, in_small_guest, in_small_guest_of, with_kmem_map,
};
use vmkern_tests::kern::{ARGUMENTS, Account, Calls as _, PAGE};
use vmkern_tests::{MEMORY, Run};

use crate::{NOWAIT, WAITOK};

const MAP: MapId = MapId::KMEM;

/// W1.
#[test]
fn a_warm_pair_leaves_every_counter_as_it_was_and_merges_and_clips_with_its_neighbour() {
    in_guest(|guest| {
        let neighbour = guest.malloc(PAGE);
        let before = guest.account(MAP);
        for _ in 0..200 {
            let addr = guest.malloc(2 * PAGE);
            assert_eq!(addr, neighbour.add(PAGE));
            assert_eq!(
                guest.account(MAP),
                Account {
                    free: before.free - 2,
                    wired: before.wired + 2,
                    entries: 1,
                    size: 3 * PAGE
                }
            );
            guest.free(addr, 2 * PAGE);
            assert_eq!(guest.account(MAP), before);
        }
    });
}

/// W2.
#[test]
fn a_checkerboard_is_filled_from_its_lowest_hole_up_and_is_one_entry_again() {
    in_guest(|guest| {
        const PAIRS: u64 = 300;
        let addr = guest.malloc(2 * PAIRS * PAGE);
        for pair in 0..PAIRS {
            guest.free(addr.add((2 * pair + 1) * PAGE), PAGE);
        }
        assert_eq!(guest.stats(MAP).entries, PAIRS);
        guest.assert_whole();
        for pair in 0..PAIRS {
            assert_eq!(guest.malloc(PAGE), addr.add((2 * pair + 1) * PAGE));
            assert_eq!(
                guest.stats(MAP).entries,
                (PAIRS - pair - 1).max(1),
                "it joins both neighbours"
            );
        }
        assert_eq!(guest.pages(MAP), [(0, 2 * PAIRS)]);
    });
}

/// A block of the random mix.
struct Block {
    pages: u64,
    seed: u64,
}

/// W3.
#[test]
fn a_random_mix_keeps_contents_invariants_and_first_fit_and_gives_everything_back() {
    in_guest_of(with_kmem_map(8 << 20), |guest| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(8);
        let mut below = |bound: u64| rng.next_u64() % bound;
        let stats = guest.stats(MAP);
        let all = stats.max.since(stats.min) / PAGE;
        let before = guest.account(MAP);
        let mut live: BTreeMap<GuestVirt, Block> = BTreeMap::new();
        let mut used = 0;
        for step in 0..1000_u64 {
            // Sizes of 1 to 512 pages, each half as frequent as half the size; seven tenths of the
            // map are in use.
            let bits = below(10);
            let bits = bits.min(below(10));
            let pages = 1 + below(1 << bits);
            if used + pages <= all * 7 / 10 && below(5) > 0 {
                let mut flags = if below(2) == 0 { NOWAIT } else { WAITOK };
                flags.set(MallocFlags::ZERO, below(4) == 0);
                let Some(fit) = first_fit(&live, stats.min, all, pages) else { continue };
                let size = pages * PAGE;
                let addr = guest.kmem_malloc(MAP, size, flags).expect("there is room");
                assert_eq!(addr, fit, "the lowest hole of {pages} pages");
                if flags.contains(MallocFlags::ZERO) {
                    guest.ok(Op::VerifyZero { addr, size });
                }
                guest.ok(Op::Fill { addr, size, seed: step });
                used += pages;
                live.insert(addr, Block { pages, seed: step });
            } else if !live.is_empty() {
                let victim = usize::try_from(below(live.len() as u64)).expect("an index");
                let addr = *live.keys().nth(victim).expect("there are that many");
                let Block { pages, seed } = live.remove(&addr).expect("it is live");
                guest.ok(Op::Verify { addr, size: pages * PAGE, seed });
                guest.free(addr, pages * PAGE);
                used -= pages;
            }
            assert_eq!(guest.stats(MAP).size, used * PAGE);
            if step % 100 == 0 {
                guest.assert_whole();
            }
        }
        for (addr, block) in live {
            guest.ok(Op::Verify { addr, size: block.pages * PAGE, seed: block.seed });
            guest.free(addr, block.pages * PAGE);
        }
        assert_eq!(guest.account(MAP), before);
    });
}

/// The lowest hole of `pages`, found block by block.
fn first_fit(
    live: &BTreeMap<GuestVirt, Block>,
    min: GuestVirt,
    all: u64,
    pages: u64,
) -> Option<GuestVirt> {
    let mut at = min;
    for (addr, block) in live {
        if addr.since(at) >= pages * PAGE {
            return Some(at);
        }
        at = addr.add(block.pages * PAGE);
    }
    (min.add(all * PAGE).since(at) >= pages * PAGE).then_some(at)
}

/// W4. The module about `nokva` covers requests that wait.
#[test]
fn address_space_full_of_single_holes_has_none_of_two_pages_for_nowait() {
    in_guest_of(with_kmem_map(1 << 20), |guest| {
        let addr = guest.checkerboard();
        let before = guest.account(MAP);
        for _ in 0..3 {
            assert_eq!(guest.kmem_malloc(MAP, 2 * PAGE, NOWAIT), None);
        }
        assert_eq!(guest.account(MAP), before);
        assert_eq!(guest.malloc(PAGE), addr.add(PAGE));
        assert_eq!(guest.counters().lowmem_events.get(), 0);
    });
}

/// W5, with handlers in the order of their registration; the module about `nokva` covers the k-th
/// retry.
#[test]
fn handlers_of_one_event_make_a_hole_together() {
    in_guest(|guest| {
        let stats = guest.stats(MAP);
        let addr = guest.malloc(stats.max.since(stats.min));
        for page in [70, 71, 72] {
            guest.on_lowmem(Op::KmemFree { map: MAP, addr: addr.add(page * PAGE), size: PAGE });
        }
        let ticks = guest.counters().ticks.get();
        assert_eq!(guest.kmem_malloc(MAP, 3 * PAGE, WAITOK), Some(addr.add(70 * PAGE)));
        assert_eq!(guest.counters().lowmem_events.get(), 1);
        assert_eq!(guest.counters().ticks.get(), ticks);
    });
}

/// W6: NOWAIT to the last page, a waiter at two pages, its wakeup at `v_free_min`, and kmem_alloc
/// above all of them.
#[test]
fn the_classes_stop_one_after_the_other_and_those_who_wait_are_all_served_in_the_end() {
    in_small_guest(|guest| {
        for thread in [1, 2] {
            guest.make_thread(thread);
        }
        let (addr, size) = guest.drain(300);
        guest.blocks(1, Op::KmemAlloc { map: MapId::KERNEL, size: 400 * PAGE }, "vmwait");
        assert_eq!(guest.free_pages(), guest.counters().v_free_reserved.get());
        guest.blocks(2, Op::KmemMalloc { map: MAP, size: 400 * PAGE, flags: WAITOK }, "vmwait");
        assert_eq!(guest.free_pages(), 2);
        let last = guest.kmem_malloc(MAP, 2 * PAGE, NOWAIT).expect("the last two");
        assert_eq!(guest.kmem_malloc(MAP, PAGE, NOWAIT), None);
        guest.free(last, 2 * PAGE);
        guest.free(addr, size);
        let (first, second) = (guest.joined(1), guest.joined(2));
        guest.kmem_free(MapId::KERNEL, first, 400 * PAGE);
        guest.free(second, 400 * PAGE);
    });
}

/// W7.
#[test]
fn a_nowait_of_n_pages_with_n_less_one_free_is_invisible() {
    in_small_guest(|guest| {
        let free = guest.free_pages();
        let before = guest.account(MAP);
        assert_eq!(guest.kmem_malloc(MAP, (free + 1) * PAGE, NOWAIT), None);
        assert_eq!(guest.account(MAP), before);
        guest.assert_whole();
        let addr = guest.kmem_malloc(MAP, free * PAGE, NOWAIT).expect("all of them, to the last");
        guest.free(addr, free * PAGE);
        assert_eq!(guest.account(MAP), before);
    });
}

/// Runs a workload on guests with several CPUs, too, with the same results.
fn on_one_two_and_four_cpus(workload: impl Fn(u32)) {
    [1, 2, 4].into_iter().for_each(workload);
}

/// W8.
#[test]
fn three_halves_of_allocations_wait_side_by_side_and_all_become_whole() {
    on_one_two_and_four_cpus(three_halves);
}

fn three_halves(vcpus: u32) {
    in_small_guest_of(vcpus, |guest| {
        for thread in 1..=3 {
            guest.make_thread(thread);
        }
        let (addr, size) = guest.drain(40);
        for thread in 1..=3 {
            guest.blocks(
                thread,
                Op::KmemMalloc { map: MAP, size: 50 * PAGE, flags: WAITOK },
                "vmwait",
            );
        }
        // Adjacent, not wired, and not merged.
        let entries = guest.entries(MAP);
        let halves: Vec<_> = entries.iter().filter(|entry| entry.wired == 0).collect();
        assert_eq!(halves.iter().map(|e| e.end.since(e.start) / PAGE).collect::<Vec<_>>(), [50; 3]);
        assert_eq!((halves[0].end, halves[1].end), (halves[1].start, halves[2].start));
        guest.free(addr, size);
        let mut all: Vec<_> = (1..=3).map(|thread| guest.joined(thread)).collect();
        all.sort();
        assert_eq!((all[1], all[2]), (all[0].add(50 * PAGE), all[0].add(100 * PAGE)));
        guest.use_memory(all[0], 150 * PAGE);
        assert_eq!(guest.stats(MAP).entries, 1);
    });
}

/// W9: each thread takes a buffer, uses it, and returns it; at most 16 can hold one at a time.
#[test]
fn an_exec_storm_of_64_threads_holds_16_buffers_at_most_and_everybody_gets_one() {
    on_one_two_and_four_cpus(exec_storm);
}

fn exec_storm(vcpus: u32) {
    in_guest_of(Guest::builder().memory(MEMORY).vcpus(vcpus), |guest| {
        let op = Op::KmemAllocWait { map: MapId::EXEC, size: ARGUMENTS };
        let mut threads: BTreeMap<u32, u16> = BTreeMap::new();
        for thread in 0..64 {
            let tag = guest.submit_in(Context::Thread(thread), op).expect("the guest lives");
            threads.insert(tag, thread);
        }
        let (mut waiting, mut held, mut served, mut most) =
            (VecDeque::new(), VecDeque::new(), 0, 0);
        while served < 64 {
            while guest.in_flight() > 0 {
                let response = guest.next_response().unwrap_or_else(|error| panic!("{error}"));
                let thread = threads.remove(&response.tag).expect("one of ours");
                match response.outcome {
                    Outcome::Value(addr) => held.push_back((thread, GuestVirt::new(addr))),
                    Outcome::Blocked { waits_for } => {
                        assert_eq!(waits_for.to_string(), "vmmaps");
                        waiting.push_back(thread);
                    }
                    other => panic!("{other:?}"),
                }
            }
            most = most.max(held.len());
            assert!(held.len() <= 16);
            let (thread, addr) =
                held.pop_front().unwrap_or_else(|| panic!("no thread continued after {served}"));
            guest.ok(Op::Fill { addr, size: ARGUMENTS, seed: thread.into() });
            guest.ok(Op::Verify { addr, size: ARGUMENTS, seed: thread.into() });
            guest.kmem_free_wakeup(MapId::EXEC, addr, ARGUMENTS);
            served += 1;
            for thread in std::mem::take(&mut waiting) {
                let tag =
                    guest.submit(ThreadId::MAIN, Op::Join { thread }).expect("the guest lives");
                threads.insert(tag, thread);
            }
        }
        assert_eq!(most, 16);
        assert_eq!(guest.stats(MapId::EXEC).size, 0);
    });
}

/// W10.
#[test]
fn a_request_for_all_of_exec_map_waits_until_the_last_small_one_is_gone() {
    on_one_two_and_four_cpus(all_of_exec_map);
}

fn all_of_exec_map(vcpus: u32) {
    in_guest_of(Guest::builder().memory(MEMORY).vcpus(vcpus), |guest| {
        let stats = guest.stats(MapId::EXEC);
        let all = stats.max.since(stats.min);
        let mut held: VecDeque<_> = (0..8)
            .map(|_| guest.kmem_alloc_wait(MapId::EXEC, PAGE).expect("there is room"))
            .collect();
        guest.blocks(1, Op::KmemAllocWait { map: MapId::EXEC, size: all }, "vmmaps");
        for _ in 0..30 {
            let oldest = held.pop_front().expect("there are eight");
            guest.kmem_free_wakeup(MapId::EXEC, oldest, PAGE);
            held.push_back(guest.kmem_alloc_wait(MapId::EXEC, PAGE).expect("there is room"));
        }
        guest.still_blocked(1);
        while let Some(addr) = held.pop_front() {
            guest.still_blocked(1);
            guest.kmem_free_wakeup(MapId::EXEC, addr, PAGE);
        }
        assert_eq!(guest.joined(1), stats.min);
    });
}

/// Kernel stacks.
#[test]
fn stacks_with_guards_share_entries_come_apart_when_freed_and_their_guards_stay_traps() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 500 * PAGE, MapKind::System);
        let stacks: Vec<_> = (0..100)
            .map(|_| {
                let stack = guest.kmem_alloc_nofault(map, 5 * PAGE).expect("there is room");
                guest.ok(Op::PmapQenter { addr: stack.add(PAGE), count: 4 });
                stack
            })
            .collect();
        assert_eq!(guest.stats(map).entries, 1, "however many there are");
        guest.use_memory(stacks[50].add(PAGE), 4 * PAGE);
        for (index, stack) in stacks.iter().enumerate().filter(|(index, _)| index % 2 == 1) {
            guest.ok(Op::PmapQremove { addr: stack.add(PAGE), count: 4 });
            guest.kmem_free(map, *stack, 5 * PAGE);
            assert_eq!(guest.stats(map).entries, (index as u64 + 3) / 2 - u64::from(index == 99));
        }
        guest.assert_whole();
        let crash = guest.dies_of(Op::Write { addr: stacks[50].add(PAGE - 8), value: 1 });
        assert_eq!(
            crash.message,
            format!("vm_fault: fault on nofault entry, addr: {:x}", stacks[50].get())
        );
    });
}
