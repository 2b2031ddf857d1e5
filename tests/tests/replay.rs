//! Random histories that the model has judged on the simulated machine run as scripts in a guest:
//! the script that the model prints when a history fails does the same in a guest.

use std::time::Duration;

use kmem::sim::histories::{Replay, replay};
use vmkern::script::{
    Setup, Source, Standstill, Status, Step, Stop, explain, explain_errors, parse, run_script_then,
};
use vmkern::{Guest, TimeMode};

/// The number of histories.
const HISTORIES: u64 = 200;
/// Multiplies that number for long runs, as in the model's own tests.
const FACTOR: &str = "VMKERN_MODEL_FACTOR";
/// Far more than any script takes, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);
/// Memory of a guest, in bytes.
const MEMORY: u64 = 8 << 20;

/// Pages that a guest manages.
fn managed() -> u64 {
    let guest = vmkern_tests::launch(Guest::builder().memory(MEMORY));
    guest.meter().expect("the counters can be read").v_page_count.get()
}

/// Runs the script in its own guest. Panics with the failure and the script.
fn run(number: u64, history: &Replay) {
    let source = Source::new(&format!("history {number}"), &history.script);
    let script = parse(&source).unwrap_or_else(|errors| {
        panic!("{}\n{}", explain_errors(&errors, &source), history.script)
    });
    let builder =
        history.settings.iter().fold(Guest::builder().memory(MEMORY), |builder, &(name, value)| {
            builder.tunable(name, value)
        });
    let builder = builder.time(TimeMode::Virtual);
    let setup = Setup { builder, seed: 0, console: None, pressure: None };
    let check = |guest: &Guest, _: Standstill<'_>| {
        guest.death().is_none().then(|| guest.check().expect("it can be checked"))
    };
    let (session, found) =
        run_script_then(&script, setup, &Stop::after(LIMIT), &mut |_: &Step| (), check)
            .expect("a guest can be launched");
    let told =
        || format!("{}\n{}", explain(&session.ending, &source, &session.log), history.script);
    assert_eq!(session.ending.status(), Status::Ok, "{}", told());
    if let Some(report) = found {
        assert!(report.is_clean(), "the check found:\n{report}\n{}", told());
    }
}

#[test]
fn two_hundred_random_histories_of_the_model_run_in_a_guest_with_the_same_results_addresses_and_counters()
 {
    let pages = managed();
    let (mut slept, mut panicked, mut failed) = (0, 0, 0);
    let factor: u64 =
        std::env::var(FACTOR).ok().map_or(1, |text| text.parse().expect("a whole number"));
    for number in 0..HISTORIES * factor {
        let history = replay(number, pages);
        slept += history.slept;
        panicked += u64::from(history.panicked);
        failed += u64::from(history.failed);
        run(number, &history);
    }
    println!(
        "{} histories, {slept} operations that slept, {panicked} panics, {failed} failures",
        HISTORIES * factor
    );
    assert!(
        slept > 20 && panicked > 3 && failed > 10,
        "{slept} slept, {panicked} panicked, {failed} failed"
    );
}
