//! `kmem_malloc` without address space, from a caller that may sleep: it fires the vm_lowmem
//! event eight times in nine seconds, and then panics.

use std::thread;

use vmkern::{GuestBuilder, GuestError, MapId, Op, Outcome, ThreadId, TimeMode};
use vmkern_tests::harness::{in_guest_of, with_kmem_map};
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};

use crate::WAITOK;

const MAP: MapId = MapId::KMEM;
/// A request for two pages, for which a checkerboard has no room.
const TWO: Op = Op::KmemMalloc { map: MAP, size: 2 * PAGE - 9, flags: WAITOK };

/// Clock ticks and vm_lowmem events so far.
fn clock(guest: &mut KernGuest) -> (u64, u64) {
    let meter = guest.counters();
    (meter.ticks.get(), meter.lowmem_events.get())
}

/// A guest with `hz` ticks a second and a kmem_map of 256 pages.
fn builder(hz: u64) -> GuestBuilder {
    with_kmem_map(1 << 20).tunable("kern.hz", hz)
}

/// Runs `test` in a guest with a hundred ticks a second.
fn in_guest(test: impl FnOnce(&mut KernGuest)) {
    in_guest_of(builder(100), test);
}

#[test]
fn eight_events_and_nine_seconds_of_sleep_come_before_the_panic_with_the_bytes_in_use() {
    // A quarter of a second is a whole number of ticks, at least one.
    for (hz, quarter) in [(100, 25), (1000, 250), (10, 2)] {
        in_guest_of(builder(hz), |guest| {
            guest.checkerboard();
            let used = guest.stats(MAP).size;
            let before = clock(guest);
            let crash = guest.dies_of(TWO);
            assert_eq!(
                crash.message,
                format!("kmem_malloc(8192): kmem_map too small: {used} total allocated")
            );
            let after = clock(guest);
            assert_eq!((after.0 - before.0, after.1 - before.1), (36 * quarter, 8), "kern.hz {hz}");
        });
    }
}

#[test]
fn below_4_ticks_a_second_each_sleep_is_one_tick() {
    in_guest_of(builder(3), |guest| {
        guest.checkerboard();
        let before = clock(guest);
        let crash = guest.dies_of(TWO);
        assert!(crash.message.contains("kmem_map too small"), "{}", crash.message);
        let after = clock(guest);
        assert_eq!((after.0 - before.0, after.1 - before.1), (8, 8));
    });
}

#[test]
fn a_request_larger_than_the_map_waits_as_long_and_panics_too() {
    in_guest(|guest| {
        let stats = guest.stats(MAP);
        let size = stats.max.since(stats.min) + PAGE;
        let before = clock(guest);
        let crash = guest.dies_of(Op::KmemMalloc { map: MAP, size, flags: WAITOK });
        assert_eq!(
            crash.message,
            format!("kmem_malloc({size}): kmem_map too small: 0 total allocated")
        );
        let after = clock(guest);
        assert_eq!((after.0 - before.0, after.1 - before.1), (900, 8));
    });
}

#[test]
fn the_panic_speaks_of_kmem_map_whichever_map_it_was() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 4 * PAGE, vmkern::MapKind::System);
        guest.kmem_alloc_nofault(map, 3 * PAGE).expect("there is room");
        let crash = guest.dies_of(Op::KmemMalloc { map, size: 2 * PAGE, flags: WAITOK });
        assert_eq!(crash.message, "kmem_malloc(8192): kmem_map too small: 12288 total allocated");
    });
}

#[test]
fn a_handler_of_the_first_event_that_frees_a_hole_ends_it_without_a_sleep() {
    in_guest(|guest| {
        let addr = guest.checkerboard();
        let before = clock(guest);
        // The handler takes the lock of the map that is full: it is not held at that time.
        guest.on_lowmem(Op::KmemFree { map: MAP, addr: addr.add(40 * PAGE), size: PAGE });
        let got =
            guest.kmem_malloc(MAP, 2 * PAGE, WAITOK).expect("it panics rather than return null");
        assert_eq!(got, addr.add(39 * PAGE), "the page between two holes is gone");
        let after = clock(guest);
        assert_eq!((after.0 - before.0, after.1 - before.1), (0, 1));
    });
}

#[test]
fn handlers_that_free_too_little_do_not_end_it() {
    in_guest(|guest| {
        let addr = guest.checkerboard();
        guest.on_lowmem(Op::KmemFree { map: MAP, addr: addr.add(41 * PAGE), size: PAGE });
        guest.on_lowmem(Op::UmaReclaim);
        let crash = guest.dies_of(TWO);
        assert!(crash.message.contains("kmem_map too small"), "{}", crash.message);
    });
}

/// Requests two pages on t0 and frees a hole for them on t1 as soon as the `k`-th event has fired.
/// Returns the number of events at the time of the free, and the total.
///
/// In real time, so the host can act in between. A sleep is a second at `kern.hz` 1.
fn rescued_after(k: u64) -> (u64, u64) {
    let mut events = (0, 0);
    in_guest_of(builder(1).time(TimeMode::Real), |guest| {
        let addr = guest.checkerboard();
        guest.make_thread(1);
        let waiting = guest.submit(ThreadId::MAIN, TWO).expect("the guest lives");
        while clock(guest).1 < k {
            thread::yield_now();
        }
        // The map is unlocked in the meantime.
        let small = guest
            .call(ThreadId::nth::<1>(), Op::KmemMalloc { map: MAP, size: PAGE, flags: WAITOK })
            .expect("the guest lives");
        assert_eq!(
            small.outcome,
            Outcome::Value(addr.add(PAGE).get()),
            "the lowest hole of one page"
        );
        guest
            .call(
                ThreadId::nth::<1>(),
                Op::KmemFree { map: MAP, addr: addr.add(40 * PAGE), size: PAGE },
            )
            .expect("the guest lives");
        let freed_by = clock(guest).1;
        let answer = loop {
            let response =
                guest.next_response().unwrap_or_else(|error: GuestError| panic!("{error}"));
            if response.tag == waiting {
                break response.outcome;
            }
        };
        assert_eq!(answer, Outcome::Value(addr.add(39 * PAGE).get()));
        events = (freed_by, clock(guest).1);
    });
    events
}

#[test]
fn others_use_the_map_meanwhile_and_room_that_they_make_is_found_after_the_next_event() {
    for k in [1, 2] {
        let (freed_by, events) = rescued_after(k);
        // Reading the counter and the free are not one step: an event may have fired in between.
        assert!(
            (k..=freed_by + 1).contains(&events) && events > k,
            "freed by event {freed_by}, found after {events}"
        );
    }
}
