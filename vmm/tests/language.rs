//! The script language through the command: started statements, guests, presets, JSON, bounds.

mod scratch;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use serde_json::Value;

fn vmkern(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.args(args).stdin(Stdio::null());
    command
}

/// `vmkern run ARGS -` with `script` on standard input.
fn script(args: &[&str], script: &str) -> Output {
    let mut child = vmkern(&["run"])
        .args(args)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    child
        .stdin
        .take()
        .expect("it is piped")
        .write_all(script.as_bytes())
        .expect("the command reads its script");
    child.wait_with_output().expect("the command ends")
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed by a signal: {output:?}"))
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("standard error is UTF-8")
}

const RACE: &str = "m = kmem_suballoc kernel_map 8K\nstart t2: a = kmem_alloc_wait $m 4K\n\
                    start t1: b = kmem_alloc_wait $m 8K\nstart t3: c = kmem_alloc_wait $m 4K\n\
                    print $m.size\nsettle\njoin t2\njoin t3\njoin t1\nexpect blocked\nabandon t1\n\
                    print $a-$m.min $c-$m.min\n";

#[test]
fn started_statements_give_the_same_on_any_number_of_cpus() {
    for vcpus in ["1", "2", "4"] {
        let output = script(&["--vcpus", vcpus], RACE);
        assert_eq!(
            (status(&output), out(&output).as_str()),
            (0, "0\n0 4096\n"),
            "{vcpus}: {}",
            err(&output)
        );
    }
}

#[test]
fn started_statements_begin_at_once_in_real_time() {
    let text = "guest time=real\nlet begin = now\nstart t1: sleep 20ms\nstart t2: sleep 10ms\n\
                join t1\njoin t2\nassert now - $begin >= 20ms\n";
    let output = script(&[], text);
    assert_eq!(status(&output), 0, "{}", err(&output));
}

#[test]
fn a_started_thread_that_kills_the_guest_is_named_by_its_own_line() {
    let output = script(&[], "start t1: read 0\nsleep 1s\n");
    assert_eq!(status(&output), 3);
    assert!(
        err(&output).contains("standard input:1") && err(&output).contains("called    read(0)"),
        "{}",
        err(&output)
    );
    assert_eq!(status(&script(&[], "start t1: read 0\nexpect panic \"page fault\"\nsettle\n")), 0);
}

#[test]
fn run_obeys_the_command_line_and_test_the_script() {
    let text = "guest memory=32M vcpus=2\nlet wanted = 8192\nassert v_page_count < $wanted\n\
                assert ncpu == 2\n";
    let scratch = Scratch::new();
    let file = scratch.file("a.kmem", text);
    for (args, wanted) in
        [(vec!["run"], 0), (vec!["run", "--memory", "64M"], 1), (vec!["run", "--vcpus", "1"], 1)]
    {
        let output = vmkern(&args).arg(&file).output().expect("the command can be started");
        assert_eq!(status(&output), wanted, "{args:?}: {}", err(&output));
    }
    let output = vmkern(&["test", "--memory", "64M", scratch.dir()])
        .output()
        .expect("the command can be started");
    assert_eq!(status(&output), 0, "{}", err(&output));
    assert!(
        err(&output).contains("a.kmem: its `guest` line counts, not the command line: memory"),
        "{}",
        err(&output)
    );
}

#[test]
fn a_name_can_be_given_on_the_command_line() {
    let text = "let n = 1\nprint $n\n";
    assert_eq!(out(&script(&[], text)), "1\n");
    assert_eq!(out(&script(&["--let", "n=4K", "--let", "m=1"], text)), "4096\n");
    for bad in ["n", "n=", "n=x", "1n=1", "n[0]=1", "=1"] {
        let output =
            vmkern(&["run", "--let", bad, "-"]).output().expect("the command can be started");
        assert_eq!(status(&output), 2, "{bad}");
    }
}

#[test]
fn steps_of_json_carry_arguments_time_ticks_and_what_changed() {
    let output = script(&["--json"], "kmem_malloc kmem_map 8K NOWAIT\nt2: sleep 1s\n");
    let json: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let steps = &json["steps"];
    assert_eq!(steps[0]["arguments"], serde_json::json!(["kmem_map", "8192", "M_NOWAIT"]));
    let free = &steps[0]["changed"]["v_free_count"];
    assert!(free[0].as_u64() > free[1].as_u64(), "{json}");
    assert_eq!(
        (steps[1]["thread"].as_str(), steps[1]["time"].as_u64()),
        (Some("t2"), Some(1_000_000)),
        "{json}"
    );
    assert_eq!(steps[1]["ticks"], json["stats"]["hz"]);
}

#[test]
fn what_a_script_prints_or_binds_ends_in_a_script_error_or_the_time_limit() {
    let forever = |body: &str| format!("repeat 18446744073709551615\n{body}\nend\n");
    let output = script(&["--json"], &forever("let a[$i] = $i"));
    let json: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!((status(&output), json["failures"][0]["line"].as_u64()), (2, Some(2)));
    let got = json["failures"][0]["got"].as_str().unwrap_or_default();
    assert!(got.contains("1048576 elements"), "{got}");

    let greedy = forever("print \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"");
    let scratch = Scratch::new();
    scratch.file("greedy.kmem", &greedy);
    scratch.file("modest.kmem", "print 1\n");
    let args = ["test", "--json", "--timeout", "60s", scratch.dir()];
    let output = vmkern(&args).output().expect("the command can be started");
    let json: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let ends: Vec<_> = json["tests"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|test| test["report"]["status"].as_u64())
        .collect();
    assert_eq!(ends, [Some(2), Some(0)]);
}

#[test]
fn a_word_of_many_megabytes_is_refused_in_few_words() {
    let word = "kmem_alloc".repeat(30_000);
    for text in [
        format!("{word} 1"),
        format!("a = {word}"),
        format!("let x = {word}"),
        format!("read ${word}"),
    ] {
        let output = script(&["--timeout", "600s"], &text);
        assert_eq!(status(&output), 2);
        assert!(output.stderr.len() < 4000, "{} bytes", output.stderr.len());
    }
}
