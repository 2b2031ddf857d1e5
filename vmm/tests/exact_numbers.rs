//! A reader that takes all numbers of a report for doubles does not change any of them.

mod json;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use json::{changed_by_a_double, numbers};
use serde_json::Value;
use vmkern::script::suite::discover;

#[test]
fn a_number_beyond_what_a_double_holds_is_found_among_all_numbers_outside_of_strings() {
    let json = concat!(
        r#"{"a":[1,9007199254740993,-0.5,9007199254740992],"7":"8 \" 9 \\","#,
        r#""b":18446744073709551615}"#
    );
    let all = ["1", "9007199254740993", "-0.5", "9007199254740992", "18446744073709551615"];
    assert_eq!(numbers(json), all);
    let changed: Vec<_> = changed_by_a_double(json).into_iter().collect();
    assert_eq!(changed, ["18446744073709551615", "9007199254740993"]);
}

/// The report of `script`, with the largest possible seed, and with little memory if the script
/// allows any size: some scripts then do less.
fn report(script: &Path) -> Output {
    let needs_the_default = script.components().any(|part| part.as_os_str() == "64M");
    let memory = if needs_the_default { "64M" } else { "16M" };
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.args(["run", "--json", "--timeout", "600s", "--seed", "18446744073709551615"]);
    command.args(["--memory", memory]).arg(script);
    command.output().expect("the command can be started")
}

/// How many numbers the report of `script` has, or what is wrong with it.
fn fault(script: &Path) -> Result<usize, String> {
    let output = report(script);
    let text = String::from_utf8(output.stdout).map_err(|error| error.to_string())?;
    let json: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let changed = changed_by_a_double(&text);
    let is_address =
        |name: &str| json["stats"][name].as_str().is_some_and(|text| text.starts_with("0x"));
    if json["status"] != 0 {
        Err(format!("it fails: {}", String::from_utf8_lossy(&output.stderr)))
    } else if !changed.is_empty() {
        Err(format!("a double changes {changed:?}"))
    } else if json["environment"]["seed"] != "18446744073709551615" || !is_address("kernel_map.max")
    {
        Err(format!("a large number is not a string: {text}"))
    } else {
        Ok(numbers(&text).len())
    }
}

#[test]
fn every_number_of_the_json_of_each_script_of_the_corpus_survives_a_double() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts");
    let scripts = discover(&corpus).expect("the corpus is there").scripts;
    let (next, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut faults = Vec::new();
        while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
            match fault(script) {
                Ok(numbers) => drop(count.fetch_add(numbers, Ordering::Relaxed)),
                Err(fault) => faults.push(format!("{}: {fault}", script.display())),
            }
        }
        faults
    };
    let faults: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("it ends")).collect()
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let count = count.into_inner();
    println!("{} scripts, {count} numbers", scripts.len());
    assert!(
        scripts.len() > 50 && count > 50 * scripts.len(),
        "{} scripts, {count} numbers",
        scripts.len()
    );
}
