//! `vmkern test`: which scripts it runs, under which names, when it stops, and options that would
//! have no effect.

mod scratch;

use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use serde_json::Value;

/// A directory with scripts.
struct Scripts(Scratch);

impl Scripts {
    fn new(scripts: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        for (name, text) in scripts {
            scratch.file(name, text);
        }
        Self(scratch)
    }

    /// Runs `vmkern ARGS` in the directory.
    fn vmkern(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vmkern"))
            .args(args)
            .current_dir(self.0.dir())
            .stdin(Stdio::null())
            .output()
            .expect("the command can be started")
    }

    /// The names of the runs of `vmkern test ARGS --json`, with what each printed.
    fn runs(&self, args: &[&str]) -> Vec<(String, String)> {
        let output = self.vmkern(&[&["test", "--json"], args].concat());
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let object: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let tests = object["tests"].as_array().expect("there is a list of tests");
        let printed = |test: &Value| {
            let steps = test["report"]["steps"].as_array().expect("there is a list of steps");
            steps.iter().filter_map(|step| step["output"].as_str()).collect::<String>()
        };
        tests
            .iter()
            .map(|test| (test["file"].as_str().expect("it has a name").to_owned(), printed(test)))
            .collect()
    }

    fn names(&self, args: &[&str]) -> Vec<String> {
        self.runs(args).into_iter().map(|(name, _)| name).collect()
    }
}

fn three() -> Scripts {
    Scripts::new(&[("a.kmem", "print 1\n"), ("d/b.kmem", "print 2\n"), ("d/c.kmem", "print 3\n")])
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn files_and_directories_run_each_script_once() {
    let scripts = three();
    assert_eq!(scripts.names(&["."]), ["a.kmem", "d/b.kmem", "d/c.kmem"]);
    assert_eq!(scripts.names(&["d/c.kmem", "d"]), ["d/c.kmem", "d/b.kmem"]);
    assert_eq!(scripts.names(&["a.kmem", "a.kmem"]), ["a.kmem"]);
}

#[test]
fn a_path_that_is_missing_and_a_directory_without_scripts_are_refused() {
    let scripts = three();
    let output = scripts.vmkern(&["test", "a.kmem", "none.kmem"]);
    assert_eq!(status(&output), Some(2), "{}", err(&output));
    assert!(err(&output).contains("none.kmem"), "{}", err(&output));
    std::fs::create_dir(scripts.0.path("empty")).expect("a directory can be made");
    let output = scripts.vmkern(&["test", "empty"]);
    assert_eq!(status(&output), Some(2), "{}", err(&output));
    assert!(err(&output).contains("there is no *.kmem file in empty"), "{}", err(&output));
}

#[test]
fn a_filter_keeps_the_scripts_whose_names_hold_it() {
    let scripts = three();
    assert_eq!(scripts.names(&[".", "--filter", "d/"]), ["d/b.kmem", "d/c.kmem"]);
    assert_eq!(scripts.names(&[".", "--filter", "a.", "--filter", "c."]), ["a.kmem", "d/c.kmem"]);
    let output = scripts.vmkern(&["test", ".", "--filter", "nothing"]);
    assert_eq!(status(&output), Some(2));
    assert!(err(&output).contains("no script has `nothing` in its name"), "{}", err(&output));
}

#[test]
fn nothing_begins_after_a_failure_with_fail_fast() {
    let scripts = Scripts::new(&[
        ("a.kmem", "print 1\n"),
        ("b.kmem", "assert 1 == 2\n"),
        ("c.kmem", "print 3\n"),
    ]);
    assert_eq!(scripts.names(&[".", "--jobs", "1"]), ["a.kmem", "b.kmem", "c.kmem"]);
    assert_eq!(scripts.names(&[".", "--jobs", "1", "--fail-fast"]), ["a.kmem", "b.kmem"]);
    let output = scripts.vmkern(&["test", ".", "--jobs", "1", "--fail-fast"]);
    assert_eq!(status(&output), Some(1));
    assert!(err(&output).contains("1 passed, 1 failed, 1 not run"), "{}", err(&output));
}

#[test]
fn each_seed_is_a_run_of_its_own_with_its_own_random_numbers() {
    let scripts = Scripts::new(&[("r.kmem", "print rand(0,0xffffffff)\n")]);
    let runs = scripts.runs(&[".", "--seeds", "5..8"]);
    let names: Vec<_> = runs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["r.kmem (seed 5)", "r.kmem (seed 6)", "r.kmem (seed 7)"]);
    assert!(runs[0].1 != runs[1].1 && runs[1].1 != runs[2].1, "{runs:?}");
    let alone = scripts.runs(&[".", "--seed", "6"]);
    assert_eq!(alone[0].1, runs[1].1, "a seed means the same alone and in a range");
}

#[test]
fn values_that_make_no_sense_are_refused_with_the_option() {
    let scripts = three();
    for (args, option) in [
        (&["test", ".", "--jobs", "0"][..], "--jobs"),
        (&["test", ".", "--seeds", "5..5"], "--seeds"),
        (&["test", ".", "--seeds", "7"], "--seeds"),
        (&["test", ".", "--seeds", "0..3", "--seed", "1"], "--seed"),
        (&["test"], "PATH"),
    ] {
        let output = scripts.vmkern(args);
        assert_eq!(status(&output), Some(2), "{args:?}");
        assert!(err(&output).contains(option), "{args:?}: {}", err(&output));
    }
}

#[test]
fn an_option_that_would_do_nothing_is_refused_with_what_to_do() {
    let scripts = three();
    for (args, parts) in [
        (&["check", "x.img", "--memory", "8M"][..], ["--memory", "--script FILE"]),
        (&["check", "x.img", "--kernel", "k"], ["--kernel", "--script FILE"]),
        (&["inspect", "--set", "kern.hz=100", "x.img", "maps"], ["--set", "--script FILE"]),
        (&["inspect", "x.img", "--seed", "3"], ["--seed", "--script FILE"]),
        (&["run", "--seed", "3"], ["--seed", "name a script"]),
        (&["run", "-v"], ["--verbose", "name a script"]),
    ] {
        let output = scripts.vmkern(args);
        assert_eq!(status(&output), Some(2), "{args:?}");
        assert!(parts.iter().all(|part| err(&output).contains(part)), "{args:?}: {}", err(&output));
    }
}

#[test]
fn one_step_is_not_called_steps() {
    let scripts = Scripts::new(&[("one.kmem", "print 1\n"), ("two.kmem", "print 1\nprint 2\n")]);
    assert!(err(&scripts.vmkern(&["run", "one.kmem"])).contains(": 1 step in "));
    assert!(err(&scripts.vmkern(&["run", "two.kmem"])).contains(": 2 steps in "));
}
