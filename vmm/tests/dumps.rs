//! Dumps are read on hosts that cannot run guests, and checked by the requested rules.

mod scratch;

use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use serde_json::{Value, json};
use vmkern::check::rules;

const VMKERN: &str = env!("CARGO_BIN_EXE_vmkern");

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(VMKERN);
    command.args(args).stdin(Stdio::null()).output().expect("the command can be started")
}

/// Runs the command in its own mount namespace with an empty `/dev`, so there is no KVM.
fn run_without_kvm(args: &[&str]) -> Output {
    let empty_dev = "mount -t tmpfs none /dev && ! [ -e /dev/kvm ] && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", empty_dev, "sh", VMKERN]);
    command.args(args).stdin(Stdio::piped()).output().expect("unshare is there")
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed by a signal: {output:?}"))
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("standard output is UTF-8")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("standard error is UTF-8")
}

/// A dump of a guest that has lost a page.
fn leaking(scratch: &Scratch) -> String {
    let text = "a = kmem_alloc_nofault kernel_map 16K\npmap_qenter $a 2\n\
                kmem_free kernel_map $a 16K\n";
    let (script, dump) = (scratch.file("leak.kmem", text), scratch.path("leak.dump"));
    let saved = run(&["run", "--memory", "16M", "--save-image", &dump, &script]);
    assert_eq!(status(&saved), 0, "{}", err(&saved));
    dump
}

#[test]
fn a_dump_is_inspected_and_checked_where_there_is_no_kvm() {
    let scratch = Scratch::new();
    let dump = leaking(&scratch);
    for (args, expected) in [
        (&["inspect", &dump][..], 0),
        (&["inspect", &dump, "maps"], 0),
        (&["inspect", &dump, "threads"], 0),
        (&["inspect", "--json", &dump, "objects"], 0),
        (&["check", &dump], 1),
        (&["check", "--json", &dump], 1),
        (&["check", "--list"], 0),
    ] {
        let (here, there) = (run(args), run_without_kvm(args));
        assert_eq!(status(&here), expected, "{args:?}: {}", err(&here));
        assert_eq!(status(&there), expected, "{args:?}: {}", err(&there));
        assert_eq!(out(&here), out(&there), "{args:?}");
        assert!(!out(&there).is_empty(), "{args:?}");
    }
    let script = scratch.path("leak.kmem");
    assert_eq!(status(&run_without_kvm(&["run", &script])), 4);
}

#[test]
fn a_check_tells_the_rules_that_are_asked_for() {
    let scratch = Scratch::new();
    let dump = leaking(&scratch);
    let found = |args: &[&str]| {
        let output = run(&[&["check", "--json"], args, &[&dump]].concat());
        let object: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        let rules: Vec<String> = object["findings"]
            .as_array()
            .expect("there are findings")
            .iter()
            .map(|finding| finding["rule"].as_str().expect("a rule").to_owned())
            .collect();
        (status(&output), rules)
    };
    let (all, lost) = (found(&[]), found(&["--only", "page-lost"]));
    assert_eq!(lost, (1, vec!["page-lost".to_owned(); 2]));
    assert!(lost.1.iter().all(|rule| all.1.contains(rule)), "{all:?}");
    assert_eq!(found(&["--only", "map-size"]), (0, Vec::new()));
    assert_eq!(found(&["--only", "map-size", "--only", "page-lost"]), lost);
    let at_the_end = run(&["check", "--only", "map-size", "--script", &scratch.path("leak.kmem")]);
    assert_eq!(status(&at_the_end), 0, "{}", err(&at_the_end));
    let unknown = run(&["check", "--only", "map-sise", &dump]);
    assert_eq!(status(&unknown), 2);
    assert!(err(&unknown).contains("did you mean `map-size`?"), "{}", err(&unknown));
    assert!(err(&unknown).contains("vmkern check --list"), "{}", err(&unknown));
}

#[test]
fn a_check_by_some_rules_says_by_which() {
    let scratch = Scratch::new();
    let dump = leaking(&scratch);
    let object = |args: &[&str]| -> Value {
        let output = run(&[&["check", "--json"], args].concat());
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    };
    let rules = ["--only", "map-size", "--only", "page-lost"];
    assert_eq!(object(&[&dump])["only"], Value::Null);
    assert_eq!(object(&[&rules[..], &[&dump]].concat())["only"], json!(["map-size", "page-lost"]));
    assert_eq!(
        object(&[&rules[..], &["/none"]].concat())["only"],
        json!(["map-size", "page-lost"])
    );
    for (args, end) in [
        (&rules[..2], "translations, by the rule map-size alone\n"),
        (&rules, "translations, by the rules map-size, page-lost alone\n"),
        (&[], "translations\n"),
    ] {
        let output = run(&[&["check"], args, &[&dump]].concat());
        assert!(err(&output).ends_with(end), "{args:?}: {}", err(&output));
    }
}

#[test]
fn a_check_lists_its_rules_within_the_columns_that_there_are() {
    let list = |columns: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
        command.args(["check", "--list"]).env("COLUMNS", columns).stdin(Stdio::null());
        String::from_utf8(command.output().expect("it can be started").stdout).expect("UTF-8")
    };
    for (columns, limit) in [("60", 60), ("80", 80), ("300", 100)] {
        let text = list(columns);
        let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > limit).collect();
        assert!(wide.is_empty(), "{columns}: {wide:#?}");
        let (words, lines) = (|text: &str| text.split_whitespace().count(), text.lines().count());
        assert!(words(&text) > 1000 && lines > rules().count(), "{text}");
    }
}

#[test]
fn a_check_lists_its_rules() {
    let listed = run(&["check", "--list"]);
    assert_eq!(status(&listed), 0, "{}", err(&listed));
    let object = run(&["check", "--list", "--json"]);
    let object: Value = serde_json::from_slice(&object.stdout).expect("it is JSON");
    let objects = object["rules"].as_array().expect("there are rules");
    assert_eq!(objects.len(), rules().count());
    for (rule, object) in rules().zip(objects) {
        let is_its = |line: &&str| line.split_whitespace().next() == Some(rule.id);
        let line = out(&listed).lines().find(is_its);
        assert!(line.is_some_and(|line| line.ends_with(rule.says)), "{rule:?}");
        assert_eq!(
            (object["id"].as_str(), object["says"].as_str()),
            (Some(rule.id), Some(rule.says))
        );
    }
    assert_eq!(status(&run(&["check", "--list", "guest.dump"])), 2);
}
