//! `vmkern run --pressure`: schedules of pressure on scripts.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Allocates, fills, verifies and frees, again and again.
const SCRIPT: &str = "\
repeat 40
  a = kmem_malloc kmem_map 64K WAITOK
  fill $a 64K $i
  verify $a 64K $i
  kmem_free kmem_map $a 64K
end
assert seized_pages > 0
";

struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("a file can be written");
    }

    fn run(&self, args: &[&str]) -> Output {
        run(self.0.path(), args)
    }
}

fn run(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.current_dir(directory).arg("run").args(args);
    command.output().expect("the command can be started")
}

fn json(output: &Output) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"))
}

#[test]
fn a_schedule_by_operations_gives_the_same_run_again_and_gives_everything_back() {
    let scratch = Scratch::new();
    scratch.file("a.kmem", SCRIPT);
    let schedule = "[[step]]\nafter = 10\ntarget = \"16M\"\nramp = 20\nhold = 20\nrepeat = 2\n\
                    pause = 5\n[[step]]\nafter = 120\nleave = 400\n";
    scratch.file("p.toml", schedule);
    let args = ["--json", "--check", "--pressure", "p.toml", "a.kmem"];
    let (first, second) = (json(&scratch.run(&args)), json(&scratch.run(&args)));
    assert_eq!((&first["ok"], &first["status"]), (&true.into(), &0.into()), "{first}");
    let (pressure, again) = (&first["pressure"], &second["pressure"]);
    assert_eq!(pressure, again);
    // 1. The ramp climbs evenly: 16 MiB are 4096 pages.
    let events = pressure["events"].as_array().expect("events");
    let taken = events.iter().filter(|event| event["event"] == "took");
    let first: Vec<_> = taken.take(3).map(|event| event["taken"].as_u64()).collect();
    assert_eq!(first, [Some(204), Some(205), Some(205)]);
    // 2. The samples know what is held, and all of it is back at the end.
    let samples = pressure["samples"].as_array().expect("samples");
    let mut seized = samples.iter().map(|sample| sample["seized"].as_u64().expect("a number"));
    assert_eq!(seized.clone().take(50).max(), Some(4096));
    assert_eq!(seized.next_back(), Some(0));
    let least = samples.iter().map(|sample| sample["free"].as_u64().expect("a number")).min();
    assert!(least.is_some_and(|free| free <= 400), "{least:?}");
    assert!(pressure["thresholds"]["v_free_min"].as_u64() > Some(0));
}

#[test]
fn a_schedule_that_squeezes_boots_a_guest_with_a_balloon_and_empties_it_at_the_end() {
    let scratch = Scratch::new();
    scratch.file("a.kmem", &SCRIPT.replace("seized_pages", "balloon_pages"));
    scratch.file("p.toml", "[[step]]\nkind = \"squeeze\"\nafter = 20\ntarget = \"8M\"\n");
    let report = json(&scratch.run(&["--json", "--check", "--pressure", "p.toml", "a.kmem"]));
    assert_eq!(report["status"], 0, "{report}");
    let samples = report["pressure"]["samples"].as_array().expect("samples");
    let balloon: Vec<_> = samples.iter().map(|sample| sample["balloon"].as_u64()).collect();
    assert_eq!((balloon[18], balloon[25], balloon.last()), (Some(0), Some(2048), Some(&Some(0))));
}

#[test]
fn an_impossible_loop_is_left_with_a_reason_and_the_script_goes_on() {
    let scratch = Scratch::new();
    scratch.file("a.kmem", &SCRIPT.replace("assert seized_pages > 0", "assert seized_pages == 0"));
    scratch.file("p.toml", "[keep]\nfree = [\"1G\", \"2G\"]\n");
    let output = scratch.run(&["--memory", "64M", "--pressure", "p.toml", "a.kmem"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let line = told.lines().find(|line| line.starts_with("pressure, after operation 16"));
    let line = line.unwrap_or_else(|| panic!("{told}"));
    assert!(line.contains("cannot keep 262144 to 524288 pages free"), "{line}");
    assert!(line.ends_with("the guest uses the rest"), "{line}");
}

#[test]
fn a_closed_loop_keeps_the_free_pages_between_its_bounds() {
    let scratch = Scratch::new();
    scratch.file("a.kmem", SCRIPT);
    scratch.file("p.toml", "[keep]\nfree = [\"4M\", \"6M\"]\n");
    let report = json(&scratch.run(&["--json", "--check", "--pressure", "p.toml", "a.kmem"]));
    assert_eq!(report["status"], 0, "{report}");
    let samples = report["pressure"]["samples"].as_array().expect("samples");
    // The last sample is from the end, when all is given back.
    for sample in &samples[..samples.len() - 1] {
        let free = sample["free"].as_u64().expect("a number");
        assert!((1024..=1536).contains(&free), "{sample}");
    }
}

#[test]
fn a_schedule_that_is_wrong_or_missing_is_refused_before_anything_boots() {
    let scratch = Scratch::new();
    scratch.file("a.kmem", SCRIPT);
    scratch.file("p.toml", "[[step]]\nafter = 1\ntraget = 5\n");
    for (file, expected) in [
        ("p.toml", "p.toml:3: unknown key `traget`; did you mean `target`?"),
        ("none.toml", "cannot read the schedule none.toml"),
    ] {
        let output = scratch.run(&["--pressure", file, "a.kmem"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(expected), "{told}");
    }
    assert_eq!(scratch.run(&["--pressure", "p.toml"]).status.code(), Some(2), "without a script");
}

#[test]
fn without_a_schedule_the_report_has_no_pressure() {
    let scratch = Scratch::new();
    scratch.file("a.kmem", "assert seized_pages == 0\n");
    let report = json(&scratch.run(&["--json", "a.kmem"]));
    assert_eq!((&report["status"], report.get("pressure")), (&0.into(), None));
}
