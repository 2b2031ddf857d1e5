//! Pauses: a guest is held from outside, in the middle of its work.

use std::time::Duration;

use vmkern::guest::PAUSE_LIMIT;
use vmkern::inspect::Standing;
use vmkern::{
    Guest, GuestError, GuestVirt, MallocFlags, MapId, Op, Outcome, Response, ThreadId, TimeMode,
};

/// Longer than any guest holds a lock.
const PATIENT: Duration = Duration::from_secs(60);
const BLOCK: u64 = 8 << 12;

fn launch(builder: vmkern::GuestBuilder) -> Guest {
    builder.timeout(Duration::from_secs(300)).launch().unwrap_or_else(|error| panic!("{error}"))
}

fn outcome(response: Result<Response, GuestError>) -> Outcome {
    response.unwrap_or_else(|error| panic!("{error}")).outcome
}

fn free_pages(guest: &Guest) -> u64 {
    guest.meter().expect("the counters can be read").v_free_count.get()
}

/// Operations that keep a guest busy for a while on a block of memory, each with its expected
/// result.
fn work(addr: GuestVirt, seed: u64) -> [(Op, Outcome); 4] {
    [
        (Op::Fill { addr, size: BLOCK, seed }, Outcome::Ok),
        (Op::Verify { addr, size: BLOCK, seed }, Outcome::Ok),
        (Op::KmemFree { map: MapId::KMEM, addr, size: BLOCK }, Outcome::Ok),
        (malloc(BLOCK), Outcome::Value(addr.get())),
    ]
}

fn malloc(size: u64) -> Op {
    Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT | MallocFlags::ZERO }
}

/// Pauses `guest` a thousand times while it works; returns how often it was busy.
fn pause_a_thousand_times(mut guest: Guest) {
    let Outcome::Value(addr) = outcome(guest.call(ThreadId::MAIN, malloc(BLOCK))) else {
        panic!("no memory")
    };
    let addr = GuestVirt::new(addr);
    let free = free_pages(&guest);
    let (mut pauses, mut seed) = (0, 0);
    while pauses < 1000 {
        let mut owed = Vec::new();
        for _ in 0..16 {
            seed += 1;
            for (op, expected) in work(addr, seed) {
                owed.push((
                    guest.submit(ThreadId::MAIN, op).unwrap_or_else(|error| panic!("{error}")),
                    expected,
                ));
            }
        }
        for (tag, expected) in owed {
            let pause = guest.pause_within(PATIENT).expect("the guest can be held");
            assert_eq!(pause.standing(), Standing::Quiescent, "pause {pauses}");
            let translation = || guest.vtop(addr).expect("the page tables can be read");
            assert_eq!(translation(), translation(), "a guest that stands still does not change");
            drop(pause);
            pauses += 1;
            let response = guest.next_response();
            assert_eq!(response.as_ref().map(|response| response.tag).ok(), Some(tag));
            assert_eq!(outcome(response), expected);
        }
    }
    assert_eq!(free_pages(&guest), free);
}

#[test]
fn a_busy_guest_answers_a_thousand_pauses_and_its_work_is_as_without_them() {
    pause_a_thousand_times(launch(Guest::builder().memory(64 << 20)));
}

#[test]
fn a_guest_whose_clock_ticks_answers_a_thousand_pauses_too() {
    pause_a_thousand_times(launch(Guest::builder().memory(64 << 20).time(TimeMode::Real)));
}

#[test]
fn an_idle_guest_and_a_dead_one_can_be_held_and_holds_nest() {
    let mut guest = launch(Guest::builder().memory(16 << 20));
    assert_eq!(
        guest.pause_within(PATIENT).expect("it can be held").standing(),
        Standing::Quiescent
    );
    assert_eq!(outcome(guest.call(ThreadId::MAIN, Op::Nop)), Outcome::Ok);
    let first = guest.pause_within(PATIENT).expect("it can be held");
    let second = guest.pause_within(PATIENT).expect("it is held");
    assert_eq!(first.standing(), second.standing());
    drop(first);
    assert_eq!(guest.pause_within(PATIENT).expect("it is held").standing(), second.standing());
    drop(second);
    assert_eq!(outcome(guest.call(ThreadId::MAIN, Op::Nop)), Outcome::Ok);
    let died = guest.call(ThreadId::MAIN, Op::Read { addr: GuestVirt::new(8) });
    assert!(matches!(died, Err(GuestError::Crashed(_))), "{died:?}");
    assert_eq!(guest.pause().expect("an ended guest can be held").standing(), Standing::Anywhere);
}

#[test]
fn a_guest_that_owns_a_lock_for_long_is_held_at_the_limit_and_answers_later() {
    let mut guest = launch(Guest::builder().memory(1 << 30));
    // All of it is cleared and mapped while the map's lock is held, which takes many times the
    // limit.
    let big = 300 << 20;
    let mut is_held_anywhere = false;
    for _ in 0..20 {
        guest.submit(ThreadId::MAIN, malloc(big)).unwrap_or_else(|error| panic!("{error}"));
        // The first pauses may come before the guest has seen the request.
        is_held_anywhere = (0..1000).any(|_| {
            let pause = guest.pause_within(PAUSE_LIMIT).expect("it can be held");
            pause.standing() == Standing::Anywhere
        });
        let Outcome::Value(addr) = outcome(guest.next_response()) else { panic!("no memory") };
        let free = Op::KmemFree { map: MapId::KMEM, addr: GuestVirt::new(addr), size: big };
        assert_eq!(outcome(guest.call(ThreadId::MAIN, free)), Outcome::Ok);
        if is_held_anywhere {
            break;
        }
    }
    assert!(is_held_anywhere, "the lock is never owned for long");
    // The requests for earlier pauses have no effect any more, and the next one is answered.
    assert_eq!(
        guest.pause_within(PATIENT).expect("it can be held").standing(),
        Standing::Quiescent
    );
}
