//! Fail points on the command line, in the shell, and in dumps.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// `vmkern ARGS` with `input` on standard input.
fn vmkern(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmkern"))
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    // An invalid command line is refused before the input is read.
    if let Err(error) = child.stdin.take().expect("it is piped").write_all(input.as_bytes()) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    child.wait_with_output().expect("the command ends")
}

/// Status, standard output, and standard error.
fn ended(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let output = vmkern(args, input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

const NOWAIT: &str = "kmem_malloc kmem_map 4K NOWAIT\n";

#[test]
fn a_site_of_the_command_line_is_armed_from_the_boot_on() {
    let script = format!("{NOWAIT}expect null\na = {NOWAIT}");
    // The boot searches for room too, so the first hits are its own.
    let (status, _, err) =
        ended(&["run", "--fail", "vm_page_alloc.system=print", "-"], "inspect fail\n");
    assert_eq!(status, Some(0), "{err}");
    let boots = ["run", "--fail", "vm_page_alloc.interrupt=1*panic", "-"];
    let (status, _, err) = ended(&boots, "");
    assert_eq!(status, Some(3), "{err}");
    assert!(err.contains("fail point vm_page_alloc.interrupt panicking"), "{err}");
    let (status, _, err) = ended(&["run", "--fail", "slab_zalloc=100000*off->return", "-"], "");
    assert_eq!(status, Some(0), "{err}");
    let armed = format!("fail vm_map_findspace 1*return\n{script}");
    assert_eq!(ended(&["run", "--fail", "vm_map_findspace=off", "-"], &armed).0, Some(0));
}

#[test]
fn a_boot_in_which_a_site_always_fails_ends_with_a_panic_or_goes_well() {
    for (site, panic) in [
        ("vm_page_alloc", "proc0_init: no memory for thread0"),
        ("vm_page_alloc.normal", "no memory for the pagedaemon's thread"),
        ("vm_page_alloc.system", ""),
        ("vm_page_alloc.interrupt", "proc0_init: no memory for thread0"),
        ("vm_map_findspace", "kmem_suballoc: bad status return of 3"),
        ("vm_map_entry_alloc", "kmem_init: no memory for kernel_map"),
        ("pmap_pt_alloc", ""),
        ("vm_object_reserve", ""),
        ("vm_fault_alloc", ""),
        ("vm_map_wire", ""),
        ("kmem_suballoc.map", "kmem_suballoc: cannot create submap"),
        ("kthread_create", "no memory for the pagedaemon's thread"),
        ("tsleep", ""),
        ("slab_zalloc", "proc0_init: no memory for thread0"),
    ] {
        let (status, _, err) = ended(&["run", "--fail", &format!("{site}=return"), "-"], "");
        let wanted = if panic.is_empty() { 0 } else { 3 };
        assert_eq!(status, Some(wanted), "{site}: {err}");
        assert!(err.contains(panic), "{site}: {err}");
    }
}

#[test]
fn a_bad_fail_option_is_status_2_with_the_rule_and_the_place() {
    for (option, parts) in [
        ("vm_page_aloc=return", &["unknown fail site `vm_page_aloc`", "`vm_page_alloc`"] as &[_]),
        ("vm_page_alloc=retrun", &["expected an action", "off, return, sleep"]),
        (
            "vm_page_alloc=1*off->sleep(1)",
            &["off->sleep(1)\n  |                      ^^^^^^^^ ", "does not take `sleep`"],
        ),
        ("intr_window=return", &["does not take `return`: it cannot fail"]),
        (
            "tsleep=101%return",
            &["  |        ^^^^^^^^^^ ", "a probability must be above 0 and at most 100"],
        ),
        ("tsleep", &["  |       ^ expected `=` and a programme"]),
    ] {
        for command in ["run", "test", "shell"] {
            let (status, out, err) = ended(&[command, "--fail", option], "");
            assert_eq!((status, out.as_str()), (Some(2), ""), "{command} {option}: {err}");
            for part in ["--fail <SITE=SPEC>"].iter().chain(parts) {
                assert!(err.contains(part), "{command} {option}: {part} is not in {err}");
            }
        }
    }
    let (status, _, err) = ended(&["inspect", "--fail", "tsleep=return", "x.img"], "");
    assert_eq!(status, Some(2));
    assert!(err.contains("--fail has no effect on a memory dump"), "{err}");
}

#[test]
fn a_bad_fail_statement_is_status_2_with_line_and_column_and_nothing_boots() {
    for (script, place, part) in [
        ("settle\nfail vm_page_aloc return", ":2:6:", "unknown fail site `vm_page_aloc`"),
        ("fail tsleep 1*off->", ":1:20:", "expected an action"),
        ("fail tsleep 1*sleep(5)", ":1:15:", "tsleep does not take `sleep`"),
        ("fail intr_window return", ":1:18:", "intr_window does not take `return`"),
        ("fail tsleep 100.5%return", ":1:13:", "at most 100"),
    ] {
        let (status, _, err) = ended(&["run", "-v", "-"], script);
        assert_eq!(status, Some(2), "{script}: {err}");
        assert!(err.contains(place) && err.contains(part), "{script}: {err}");
        assert!(!err.contains("settle  "), "{script}: it ran: {err}");
    }
}

#[test]
fn steps_of_json_have_the_list_and_the_view_as_output() {
    let script = "fail vm_map_findspace 1*return\nfail list\nfail off\ninspect fail\n";
    let (status, out, err) = ended(&["run", "--json", "-"], script);
    assert_eq!(status, Some(0), "{err}");
    let report: Value = serde_json::from_str(&out).expect("it is JSON");
    let steps = report["steps"].as_array().expect("it has steps");
    let verbs: Vec<_> = steps.iter().map(|step| step["verb"].as_str()).collect();
    assert_eq!(verbs, [Some("fail"), Some("fail"), Some("fail"), Some("inspect")]);
    assert!(steps.iter().all(|step| step["result"]["kind"] == "ok"), "{steps:?}");
    assert!(steps[0]["output"].is_null() && steps[2]["output"].is_null());
    for step in [1, 3] {
        let text = steps[step]["output"].as_str().expect("it is text");
        assert!(text.contains("intr_window") && text.contains("makes races more likely"), "{text}");
    }
}

#[test]
fn a_dump_has_the_programmes_and_the_stack_of_the_last_failure() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let dump = directory.path().join("guest.img");
    let dump = dump.to_str().expect("the path is UTF-8");
    let script = "fail vm_map_findspace 1*off->5*return\nfail intr_window 0.5%delay(3)\n\
                  a = kmem_malloc kmem_map 4K NOWAIT\nkmem_malloc kmem_map 4K NOWAIT\n\
                  expect null\n";
    let (status, _, err) = ended(&["run", "--save-dump", dump, "-"], script);
    assert_eq!(status, Some(0), "{err}");
    let (status, out, err) = ended(&["inspect", "--json", dump, "fail"], "");
    assert_eq!(status, Some(0), "{err}");
    let report: Value = serde_json::from_str(&out).expect("it is JSON");
    assert_eq!((&report["inspect"], &report["damage"]), (&"fail".into(), &Value::Array(vec![])));
    let site = |name: &str| {
        let sites = report["sites"].as_array().expect("it has sites");
        sites.iter().find(|site| site["site"] == name).expect("it is a site").clone()
    };
    let findspace = site("vm_map_findspace");
    assert_eq!(findspace["programme"], "0*off->4*return(3)");
    assert_eq!((&findspace["hits"], &findspace["fires"]), (&2.into(), &1.into()));
    assert_eq!(site("intr_window")["programme"], "0.5%delay(3)");
    assert_eq!(site("tsleep")["armed"], false);
    assert_eq!(
        (&report["last"]["site"], &report["last"]["hit"]),
        (&"vm_map_findspace".into(), &2.into())
    );
    let calls = report["last"]["backtrace"].as_array().expect("it has calls");
    let has = |name: &str| calls.iter().any(|call| call.as_str().is_some_and(|c| c.contains(name)));
    assert!(has("vm_map_findspace") && has("kmem_malloc"), "{calls:?}");
}

#[test]
fn the_shell_arms_and_disarms() {
    // The session ends at the first result that is not the required one.
    let lines = format!(
        "fail vm_map_findspace return\n{NOWAIT}expect null\nfail off\na = {NOWAIT}\
         fail nowhere x\n"
    );
    let (status, _, err) = ended(&["shell"], &lines);
    assert_eq!(status, Some(2), "{err}");
    assert!(err.contains("shell:6:6: unknown fail site `nowhere`"), "{err}");
}

#[test]
fn help_lists_the_sites_and_explains_the_verb() {
    for command in ["run", "test", "shell", "check", "inspect"] {
        let (status, out, _) = ended(&[command, "--help"], "");
        assert_eq!(status, Some(0));
        for part in ["--fail <SITE=SPEC>", "kmem_suballoc.map", "a sleep ends at the next tick"] {
            assert!(out.contains(part), "{command}: {part}");
        }
    }
    let (status, out, _) = ended(&["help", "fail"], "");
    assert_eq!(status, Some(0));
    assert!(out.starts_with("fail SITE SPEC|off|list\n"), "{out}");
}
