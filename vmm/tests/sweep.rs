//! `vmkern test --fail-every` and `--fail-stacks` on small scripts.

mod scratch;

use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use serde_json::Value;

/// Allocates, waits for nobody, and frees.
const PAIR: &str = "a = kmem_malloc kmem_map 8K NOWAIT\nfill $a 8K 3\nverify $a 8K 3\n\
                    kmem_free kmem_map $a 8K\nassert kmem_map.size == 0\n";

/// Runs `vmkern test ARGS` in a directory with `scripts`.
fn vmkern(scripts: &[(&str, impl AsRef<[u8]>)], args: &[&str]) -> Output {
    let scratch = Scratch::new();
    for (name, text) in scripts {
        scratch.file(name, text);
    }
    Command::new(env!("CARGO_BIN_EXE_vmkern"))
        .args([&["test", "."], args].concat())
        .current_dir(scratch.dir())
        .stdin(Stdio::null())
        .output()
        .expect("the command can be started")
}

/// The object of `--json`, of a sweep that ends with `status`.
fn object(scripts: &[(&str, &str)], args: &[&str], status: i32) -> Value {
    let output = vmkern(scripts, &[args, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// The reports of `script`.
fn of<'o>(object: &'o Value, script: &str) -> Vec<&'o Value> {
    let sites = object["sites"].as_array().expect("a list");
    sites.iter().filter(|site| site["script"] == script).collect()
}

#[test]
fn each_hit_fails_once_and_every_outcome_is_a_documented_one() {
    let object =
        object(&[("pair.kmem", PAIR)], &["--fail-every", "vm_page_alloc.interrupt", "--check"], 0);
    // Two pages, and nothing else that this script needs for the first time.
    let [report] = of(&object, "pair.kmem")[..] else { panic!("{object:#}") };
    assert_eq!(report["points"], report["known"], "{report:#}");
    assert!(report["points"].as_u64() >= Some(2), "{report:#}");
    assert_eq!(report["outcomes"]["null"], report["points"], "{report:#}");
    assert_eq!((&object["ok"], &object["unexpected"]), (&true.into(), &0.into()));
}

#[test]
fn the_boot_is_swept_once_and_dies_of_documented_panics() {
    let scripts = [("a.kmem", PAIR), ("b.kmem", PAIR)];
    let args = ["--fail-every", "kmem_suballoc.map", "--check"];
    let object = object(&scripts, &args, 0);
    let [boot] = of(&object, "boot")[..] else { panic!("{object:#}") };
    assert_eq!(boot["outcomes"]["panic in the boot"], boot["points"], "{boot:#}");
    assert!(of(&object, "a.kmem").is_empty(), "it makes no map: {object:#}");
}

#[test]
fn a_stack_fails_in_the_first_script_that_reaches_it_only() {
    let scripts = [("a.kmem", PAIR), ("b.kmem", PAIR)];
    let object = object(&scripts, &["--fail-stacks", "--check"], 0);
    assert!(!of(&object, "a.kmem").is_empty(), "{object:#}");
    assert!(of(&object, "b.kmem").is_empty(), "{object:#}");
    assert_eq!(object["sweep"], "stacks");
}

#[test]
fn a_sweep_is_the_same_whatever_the_number_of_jobs() {
    let scripts = [("a.kmem", PAIR), ("b.kmem", "t3: a = kmem_alloc kernel_map 4K\n")];
    let with = |jobs| object(&scripts, &["--fail-stacks", "--jobs", jobs], 0);
    assert_eq!(with("1")["sites"], with("4")["sites"]);
}

#[test]
fn at_most_as_many_hits_fail_as_are_asked_for() {
    let args = ["--fail-every", "vm_page_alloc", "--fail-up-to", "1"];
    let object = object(&[("pair.kmem", PAIR)], &args, 0);
    for script in ["boot", "pair.kmem"] {
        let [report] = of(&object, script)[..] else { panic!("{object:#}") };
        assert_eq!(report["points"], 1, "{report:#}");
    }
}

#[test]
fn what_cannot_be_swept_is_left_out_with_the_reason() {
    let scripts = [
        ("a-pair.kmem", PAIR),
        ("cpus.kmem", "guest vcpus=2\nsettle\n"),
        ("fails.kmem", "settle\nexpect null\n"),
        ("time.kmem", "guest time=real\nsettle\n"),
    ];
    let object = object(&scripts, &["--fail-every", "vm_map_findspace"], 0);
    let left: Vec<(&str, &str)> = object["left_out"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|left| {
            let text = |key: &str| left[key].as_str().expect("text");
            (text("script"), text("reason"))
        })
        .collect();
    let mut reasons = [("cpus", "CPU"), ("fails", "expected null"), ("time", "real time")].iter();
    assert!(
        reasons.all(|(name, why)| {
            left.iter().any(|(script, reason)| script.contains(name) && reason.contains(why))
        }),
        "{left:#?}"
    );
}

#[test]
fn a_script_that_cannot_run_ends_a_sweep_with_status_2_before_anything_boots() {
    for (name, script, why) in [
        ("wrong.kmem", b"sttle\n".as_slice(), "wrong.kmem:1:1: unknown verb `sttle`"),
        ("binary.kmem", b"\xff", "binary.kmem:1:1: byte 0xff is not UTF-8"),
        ("small.kmem", b"guest memory=4K\nsettle\n", "small.kmem"),
    ] {
        let scripts = [("a-pair.kmem", PAIR.as_bytes()), (name, script)];
        let output = vmkern(&scripts, &["--fail-stacks", "--json"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("error: ") && text.contains(why), "{text}");
        let object: Value = serde_json::from_slice(&output.stdout).expect("an object");
        assert_eq!((&object["ok"], &object["status"]), (&false.into(), &2.into()), "{object:#}");
        assert_eq!(object["points"], 0, "{object:#}");
        assert_eq!(output.status.code(), Some(2));
        let left = &object["left_out"][0];
        assert_eq!(left["script"], name);
        assert!(left["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{left}");
    }
}

#[test]
fn a_sleeper_that_a_free_wakes_is_not_left_asleep() {
    let text = "m = kmem_suballoc kernel_map 8K\na = kmem_alloc_wait $m 8K\n\
                t1: b = kmem_alloc_wait $m 4K\nexpect blocked\nkmem_free_wakeup $m $a 8K\n\
                join t1\nkmem_free_wakeup $m $b 4K\n";
    let object = object(&[("wait.kmem", text)], &["--fail-stacks", "--check"], 0);
    assert!(of(&object, "wait.kmem").len() > 3, "{object:#}");
}

#[test]
fn bad_options_are_refused_before_anything_boots() {
    let said = |args: &[&str]| {
        let output = vmkern(&[("pair.kmem", PAIR)], args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["--fail-every", "vm_page_aloc"]).contains("did you mean `vm_page_alloc`?"));
    assert!(said(&["--fail-every", "intr_window"]).contains("nothing fails at `intr_window`"));
    assert!(said(&["--fail-every", "all", "--fail-stacks"]).contains("cannot be used with"));
    assert!(said(&["--fail-up-to", "3"]).contains("--fail-every"));
    assert!(said(&["--fail-every", "all", "--fail-up-to", "0"]).contains("0"));
}
