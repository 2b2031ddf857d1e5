//! Random histories of all functions against a naive model: many of them, and five times as many in
//! `scripts/soak.sh histories`. A history that fails is reduced as far as possible and printed as a
//! script.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestError, TestRunner};
use vmkern_abi::fail::FailSite;

use crate::sim::histories::{
    FORMS, STEPS, Telling, at_once, everything, history, in_turn, race, refused, sites, telling,
};

/// Multiplies all numbers of cases, for long runs.
const FACTOR: &str = "VMKERN_MODEL_FACTOR";

/// Tries `cases` histories. The smallest history that fails is shown with its script.
fn prove<S: Strategy>(name: &str, cases: u32, histories: S, run: impl Fn(&S::Value, &Telling))
where
    S::Value: Debug + Clone,
{
    let factor: u32 =
        std::env::var(FACTOR).ok().map_or(1, |text| text.parse().expect("a whole number"));
    // Under AddressSanitizer half of them takes longer.
    let cases = if cfg!(asan) { cases / 2 } else { cases };
    let persistence = FileFailurePersistence::SourceParallel("proptest-regressions");
    let config = ProptestConfig {
        cases: cases.saturating_mul(factor),
        max_shrink_iters: 4000,
        // Otherwise two thirds of the time would be spent on random numbers.
        rng_algorithm: RngAlgorithm::XorShift,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(persistence)),
        ..ProptestConfig::default()
    };
    let tried = Cell::new(0);
    let result = TestRunner::new(config).run(&histories, |history| {
        tried.set(tried.get() + 1);
        run(&history, &telling());
        Ok(())
    });
    match result {
        Ok(()) => println!("{name}: {} histories", tried.get()),
        Err(TestError::Abort(reason)) => panic!("{name}: {reason}"),
        Err(TestError::Fail(reason, history)) => {
            let telling = telling();
            let again = catch_unwind(AssertUnwindSafe(|| run(&history, &telling)));
            let again = if again.is_err() { "fails again" } else { "does not fail again" };
            let script = telling.borrow().text();
            panic!("{name}: {reason}\n{history:#?}\nThis {again}, as a script:\n\n{script}")
        }
    }
}

#[test]
fn eight_thousand_histories_on_one_thread_short_of_address_space_agree_with_the_model() {
    prove("one thread, short of address space", 8_000, history(0..1, &[24, 64], STEPS), in_turn);
}

#[test]
fn eight_thousand_histories_on_one_thread_short_of_pages_agree_with_the_model() {
    prove("one thread, short of pages", 8_000, history(0..1, &[256, 1000], STEPS), in_turn);
}

#[test]
fn two_thousand_histories_on_up_to_four_threads_in_turn_agree_with_the_model() {
    prove("threads in turn", 2_000, history(1..4, &[24, 64, 256, 1000], STEPS), in_turn);
}

#[test]
fn histories_protect_in_every_form_and_fault_in_every_way() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for _ in 0..1500 {
        let drawn = history(0..4, &[24, 64, 256, 1000], STEPS).new_tree(&mut runner);
        let telling = telling();
        in_turn(&drawn.expect("nothing is rejected").current(), &telling);
        seen.extend(telling.borrow().seen());
    }
    let missing: Vec<_> = FORMS.iter().filter(|form| !seen.contains(*form)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn races_protect_in_every_way() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for _ in 0..200 {
        let (drawn, telling) = (race().new_tree(&mut runner), telling());
        at_once(&drawn.expect("nothing is rejected").current(), &telling);
        seen.extend(telling.borrow().seen());
    }
    assert!(["rw", "r", "none"].iter().all(|form| seen.contains(form)), "{seen:?}");
}

#[test]
fn races_fail_at_every_site_and_give_way_in_windows() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for _ in 0..3000 {
        let (drawn, telling) = (race().new_tree(&mut runner), telling());
        at_once(&drawn.expect("nothing is rejected").current(), &telling);
        seen.extend(telling.borrow().seen());
    }
    let names = sites().chain([FailSite::IntrWindow]).map(FailSite::name);
    let missing: Vec<_> = names.filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn two_thousand_races_of_up_to_four_threads_are_explained_by_some_order() {
    prove("threads at once", 2_000, race(), at_once);
}

#[test]
fn after_two_hundred_histories_each_allocation_of_the_next_operation_can_fail_and_leaves_all_as_it_was()
 {
    prove("refusals", 200, refused(), everything);
}
