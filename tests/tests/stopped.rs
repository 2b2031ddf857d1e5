//! The check has no false positives: it has no findings in guests that were stopped anywhere, or
//! that died because of a request.
//!
//! `scripts/soak.sh check` runs thousands of cases. `STOPPED_FIRST` and `STOPPED_CASES` select
//! them: a failed case is named by its number.

use vmkern::{Guest, GuestError, TimeMode};
use vmkern_tests::launch_unchecked;
use vmkern_tests::stopped::{Death, Load, campaign};

/// Cases of an ordinary run.
const CASES: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn nothing_is_found_in_guests_that_were_stopped_anywhere_or_died_of_what_they_were_asked() {
    let (first, count) =
        (number("STOPPED_FIRST").unwrap_or(0), number("STOPPED_CASES").unwrap_or(CASES));
    let progress = if number("STOPPED_CASES").is_some() { 100 } else { 0 };
    let failures = campaign(first..first + count, progress);
    eprintln!(
        "guests from {first} on: {} passed, {} failed",
        count - failures.len() as u64,
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "{} of {count} guests, the first: {}",
        failures.len(),
        failures[0]
    );
}

/// Makes guests with `vcpus` CPUs die right after their boot.
fn die_young(vcpus: u32, time: TimeMode, death: Death) {
    let mut guest = launch_unchecked(Guest::builder().memory(16 << 20).vcpus(vcpus).time(time));
    let ready = death.prepare(&mut guest);
    let error = match ready.strike(&mut guest) {
        Ok(()) => guest.next_response().expect_err("it dies"),
        Err(error) => error,
    };
    assert!(matches!(error, GuestError::Crashed(_)), "{death:?}: {error}");
    let report = guest.check().expect("the guest can be checked");
    assert!(report.is_clean(), "{vcpus} CPUs, {time:?}, {death:?}: {error}\n{report}");
}

#[test]
fn a_guest_that_dies_as_soon_as_it_serves_has_a_thread_on_every_cpu() {
    let _load = Load::new(3);
    for _ in 0..10 {
        for vcpus in [2, 4] {
            die_young(vcpus, TimeMode::Virtual, Death::InterruptSleep);
        }
    }
}

#[test]
fn a_guest_that_dies_before_its_boot_thread_has_the_cpu_again_is_sound() {
    let _load = Load::new(3);
    for round in 0..10 {
        for vcpus in [1, 2, 4] {
            let time = if round % 2 == 0 { TimeMode::Virtual } else { TimeMode::Real };
            die_young(vcpus, time, Death::SuballocNothing);
        }
    }
}

#[test]
fn a_guest_that_dies_in_an_interrupt_handler_is_sound() {
    let in_interrupts = [
        Death::InterruptAlloc,
        Death::InterruptSleep,
        Death::InterruptWait,
        Death::InterruptFault,
        Death::InterruptPageable,
        Death::InterruptFreeImage,
    ];
    for vcpus in [1, 2, 4] {
        in_interrupts.into_iter().for_each(|death| die_young(vcpus, TimeMode::Virtual, death));
    }
}

#[test]
fn a_guest_that_dies_in_nested_event_handlers_is_sound() {
    for vcpus in [1, 2, 4] {
        die_young(vcpus, TimeMode::Virtual, Death::LowmemFault);
        die_young(vcpus, TimeMode::Real, Death::LowmemNested);
    }
}
