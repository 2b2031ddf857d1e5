//! The check never cries wolf: nothing is found in guests that were stopped anywhere, or that died of what they were asked
//! to do.
//!
//! `scripts/soak.sh check` runs thousands of cases. `STOPPED_FIRST` and `STOPPED_CASES` say which: a case that failed is named
//! by its number.

use vmkern_tests::stopped::campaign;

/// Cases of an ordinary run.
const CASES: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn nothing_is_found_in_guests_that_were_stopped_anywhere_or_died_of_what_they_were_asked() {
    let (first, count) = (number("STOPPED_FIRST").unwrap_or(0), number("STOPPED_CASES").unwrap_or(CASES));
    let progress = if number("STOPPED_CASES").is_some() { 100 } else { 0 };
    let failures = campaign(first..first + count, progress);
    eprintln!("guests from {first} on: {} passed, {} failed", count - failures.len() as u64, failures.len());
    assert!(failures.is_empty(), "{} of {count} guests, the first: {}", failures.len(), failures[0]);
}
