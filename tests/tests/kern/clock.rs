//! The clock: ticks that are computed instead of counted, and a timer that fires only when
//! something is due.

use std::time::Duration;

use vmkern::inspect::What;
use vmkern::inspect::report::{Body, InterruptReport, LocksReport};
use vmkern::{Guest, MapId, Op, TimeMode};
use vmkern_tests::Run;
use vmkern_tests::harness::in_guest_of;
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};

use crate::{NOWAIT, WAITOK};

fn locks(guest: &Guest) -> LocksReport {
    match guest.inspect("guest", &What::Locks).unwrap_or_else(|error| panic!("{error}")).body {
        Body::Locks(report) => report,
        other => panic!("{other:?}"),
    }
}

fn interrupts(guest: &Guest) -> u64 {
    locks(guest).cpus.iter().map(|cpu| cpu.clock_interrupts).sum()
}

fn ticks(guest: &mut KernGuest) -> u64 {
    guest.counters().ticks.get()
}

fn real() -> vmkern::GuestBuilder {
    Guest::builder().time(TimeMode::Real).timeout(Duration::from_secs(300))
}

#[test]
fn a_second_has_1000_ticks_unless_kern_hz_says_otherwise() {
    in_guest_of(Guest::builder(), |guest| assert_eq!(guest.counters().hz.get(), 1000));
}

#[test]
fn real_ticks_go_on_whether_the_kernel_has_something_to_do_or_not() {
    in_guest_of(real(), |guest| {
        let before = ticks(guest);
        // No thread sleeps, and no request is made: the loop ends because time passes.
        while ticks(guest) < before + 50 {
            std::thread::yield_now();
        }
        let (micros, after) = (guest.now_micros().expect("there is a clock"), ticks(guest));
        assert!(micros / 1000 <= after, "{micros} microseconds, then {after} ticks");
        assert!(micros >= 1000 * (before + 50));
    });
}

#[test]
fn an_idle_guest_has_no_interrupt_a_tick() {
    in_guest_of(real(), |guest| {
        guest.kmem_malloc(MapId::KMEM, PAGE, NOWAIT).expect("there is room");
        let (before, start) = (interrupts(guest), ticks(guest));
        while ticks(guest) < start + 400 {
            std::thread::sleep(Duration::from_millis(20));
        }
        // The pagedaemon wakes every five seconds, and a timer covers at most four.
        let passed = ticks(guest) - start;
        let had = interrupts(guest) - before;
        assert!(had <= 2 + passed / 1000, "{had} interrupts in {passed} ticks");
    });
}

#[test]
fn no_sleep_ends_before_its_time_in_whatever_part_of_a_tick_it_begins() {
    in_guest_of(real(), |guest| {
        let micros = |guest: &Guest| guest.now_micros().expect("there is a clock");
        for length in (1..=40).map(|step| 97 * step) {
            let before = micros(guest);
            guest.ok(Op::Sleep { micros: length });
            let passed = micros(guest) - before;
            assert!(passed >= length, "{passed} of {length} us, from {before} us on");
        }
    });
}

#[test]
fn the_ticks_of_a_dead_guest_are_those_of_its_end() {
    for builder in [real(), Guest::builder()] {
        in_guest_of(builder, |guest| {
            guest.ok(Op::Sleep { micros: 30_000 });
            let alive = ticks(guest);
            assert!(alive >= 30);
            let crash =
                guest.dies_of(Op::KmemMalloc { map: MapId::KMEM, size: 1 << 63, flags: WAITOK });
            assert_eq!(
                crash.message,
                "kmem_malloc(-9223372036854775808): kmem_map too small: 0 total allocated"
            );
            let dead = ticks(guest);
            assert!(dead >= alive + 9000, "it slept for nine seconds: {alive}, then {dead}");
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(ticks(guest), dead);
        });
    }
}

#[test]
fn loops_over_pages_have_points_at_most_64_pages_apart() {
    in_guest_of(Guest::builder().memory(128 << 20).vcpus(2), |guest| {
        const SIZE: u64 = 48 << 20;
        let a = guest.kmem_alloc(MapId::KERNEL, SIZE).expect("there is room");
        guest.kmem_free(MapId::KERNEL, a, SIZE);
        let b = guest.kmem_malloc(MapId::KMEM, SIZE / 2, crate::ZEROED).expect("there is room");
        guest.kmem_free(MapId::KMEM, b, SIZE / 2);
        assert_eq!(guest.kmem_malloc(MapId::KMEM, 1 << 40, NOWAIT), None);
        let cpus: Vec<InterruptReport> = locks(guest).cpus;
        let longest = cpus.iter().map(|cpu| cpu.longest_pages).max();
        assert!(longest.is_some_and(|pages| (16..=64).contains(&pages)), "{longest:?}");
    });
}

#[test]
fn a_free_over_many_entries_flushes_once() {
    for vcpus in [1, 2] {
        in_guest_of(Guest::builder().vcpus(vcpus), |guest| {
            let a = guest.kmem_malloc(MapId::KMEM, 200 * PAGE, NOWAIT).expect("there is room");
            for page in 0..100 {
                guest.kmem_free(MapId::KMEM, a.add(2 * page * PAGE), PAGE);
            }
            let flushes =
                |guest: &Guest| locks(guest).tlb.iter().map(|cpu| cpu.flushes).sum::<u64>();
            let (before, entries) = (flushes(guest), guest.stats(MapId::KMEM).entries);
            guest.kmem_free(MapId::KMEM, a, 200 * PAGE);
            assert_eq!(
                (entries - guest.stats(MapId::KMEM).entries, flushes(guest) - before),
                (100, 1)
            );
        });
    }
}
