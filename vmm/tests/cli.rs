//! The command, run as a user runs it: real processes, real guests.

mod scratch;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use serde_json::Value;
use vmkern::GuestVirt;
use vmkern::abi::describe::HASH;
use vmkern::dump::Dump;
use vmkern::guest::KernelImage;
use vmkern::inspect::Source as _;
use vmkern::inspect::View;

fn vmkern() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    vmkern().args(args).output().expect("the command can be started")
}

/// `vmkern run ARGS -` with `script` on standard input.
fn script(args: &[&str], script: &str) -> Output {
    let mut child = vmkern()
        .arg("run")
        .args(args)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    // An invalid command line is refused before the script is read.
    if let Err(error) = child.stdin.take().expect("it is piped").write_all(script.as_bytes()) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
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

#[test]
fn a_script_whose_expectations_hold_gives_status_0() {
    let output = script(
        &[],
        "a = kmem_malloc kmem_map 12K ZERO|NOWAIT\nverify $a 12K zero\nprint \"at\" $a\n",
    );
    assert_eq!(status(&output), 0, "{}", err(&output));
    assert_eq!(out(&output), "at 0xffffff8000000000\n");
}

#[test]
fn an_empty_script_holds() {
    for text in ["", "# nothing\n"] {
        assert_eq!(status(&script(&[], text)), 0);
    }
}

#[test]
fn a_failed_expectation_gives_status_1_and_says_what_was_expected() {
    let output = script(
        &[],
        "let n = 3\na = kmem_malloc kmem_map $n*4K NOWAIT\nexpect null\nprint \"never\"\n",
    );
    assert_eq!(status(&output), 1);
    assert_eq!(out(&output), "");
    let text = err(&output);
    for part in [
        "standard input:3",
        "2 | a = kmem_malloc kmem_map $n*4K NOWAIT",
        "3 | expect null",
        "expected  null",
        "got       0xffffff8000000000",
        "called    kmem_malloc(kmem_map, 12288, M_NOWAIT)",
        "$n        3",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn a_wrong_script_gives_status_2_with_its_place_before_anything_boots() {
    let output = script(&[], "print \"never\"\na = kmem_maloc kmem_map 4K\n");
    assert_eq!((status(&output), out(&output).as_str()), (2, ""));
    let text = err(&output);
    for part in ["standard input:2:5", "^^^^^^^^^^ expected a verb", "did you mean `kmem_malloc`?"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn arithmetic_that_overflows_gives_status_2() {
    assert_eq!(status(&script(&[], "let a = 1 - 2\n")), 2);
}

#[test]
fn what_cannot_be_read_as_a_script_gives_status_2() {
    let scratch = Scratch::new();
    let missing = scratch.path("missing.kmem");
    let binary = scratch.file("binary.kmem", b"settle\n# \xff\n");
    for (file, part) in [
        (missing.as_str(), "No such file"),
        (scratch.dir(), "directory"),
        (binary.as_str(), "binary.kmem:2:3: byte 0xff is not UTF-8"),
    ] {
        let output = run(&["run", file]);
        assert_eq!(status(&output), 2);
        assert!(err(&output).contains(part), "{}", err(&output));
        let output = run(&["run", "--json", file]);
        assert_eq!((status(&output), json(&output)["status"].as_u64()), (2, Some(2)));
    }
}

#[test]
fn a_panic_that_nobody_expected_gives_status_3_with_a_backtrace() {
    let output = script(&[], "a = kmem_alloc_nofault kernel_map 4K\nread $a\n");
    assert_eq!(status(&output), 3);
    let text = err(&output);
    for part in [
        "standard input:2",
        "vm_fault: fault on nofault entry, addr: ffffff80",
        "#0",
        "vm_fault+0x",
        "fault.rs:",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn an_expected_panic_gives_status_0_and_another_one_status_3() {
    let text = |panic: &str| {
        format!("read 0xffffff8000000000\nexpect panic \"{panic}\"\nprint \"never\"\n")
    };
    let output = script(&[], &text("page fault"));
    assert_eq!((status(&output), out(&output).as_str()), (0, ""), "{}", err(&output));
    assert_eq!(status(&script(&[], &text("double fault"))), 3);
}

#[test]
fn the_time_limit_gives_status_5_in_the_guest_and_in_the_script() {
    for text in ["sleep 1000s\n", "repeat 1000000000000\nlet a = $i\nend\n"] {
        let output = script(&["--time", "real", "--timeout", "200ms", "--json"], text);
        assert_eq!(status(&output), 5, "{}", err(&output));
        assert_eq!(json(&output)["outcome"], "timeout");
    }
}

#[test]
fn a_guest_that_runs_out_of_time_is_reported_with_where_it_stood() {
    let output = script(&["--time", "real", "--timeout", "200ms"], "sleep 1000s\n");
    let text = err(&output);
    for part in [
        "time limit: standard input:1",
        "an end within 200ms",
        "the guest was stopped at 0xffffffff8",
        "+0x",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_gives_status_2_with_the_rule() {
    for (args, part) in [
        (&["--memory", "0"][..], "8M"),
        (&["--memory", "1T"][..], "64G"),
        (&["--memory", "10M1"][..], "suffix"),
        (&["--vcpus", "65"][..], "1 to 64"),
        (&["--set", "kern.hertz=1"][..], "vm.kmem_size_max"),
        (&["--set", "kern.hz"][..], "NAME=VALUE"),
        (&["--set", "kern.hz=0"][..], "kern.hz must be at least 1 and at most 10000, got 0 (0x0)"),
        (&["--privilege", "root"][..], "supervisor"),
        (&["--time", "tea"][..], "virtual"),
        (&["--timeout", "5K"][..], "ms"),
        (&["--what"][..], "--what"),
    ] {
        let output = script(args, "settle\n");
        assert_eq!(status(&output), 2, "{args:?}");
        assert!(err(&output).contains(part), "{args:?}: {}", err(&output));
        let with_json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        assert_eq!(json(&script(&with_json, "settle\n"))["outcome"], "error");
    }
}

#[test]
fn another_kernel_boots_and_what_is_none_gives_status_2_with_the_rule() {
    let scratch = Scratch::new();
    let kernel = scratch.path("vmkern.elf");
    assert_eq!(status(&run(&["image", "--output", &kernel])), 0);
    let output = script(&["--kernel", &kernel], "kmem_malloc kmem_map 4K NOWAIT\n");
    assert_eq!(status(&output), 0, "{}", err(&output));

    // The note's name, which occurs once as a word of its own.
    let mut bytes = fs::read(&kernel).expect("the image was written");
    let note = [&18u32.to_le_bytes()[..], b"Xen\0"].concat();
    let at = bytes
        .windows(note.len())
        .position(|window| window == note)
        .expect("the image has a PVH note");
    bytes[at + 4] = b'Y';
    let no_note = scratch.file("no-note.elf", &bytes);
    let short = scratch.file("short.elf", &bytes[..100]);
    let text = scratch.file("text.elf", "#!/bin/sh\n");
    let missing = scratch.path("missing.elf");
    let suite = Scratch::new();
    suite.file("a.kmem", "settle\n");
    for (file, rule) in [
        (no_note.as_str(), "has no PVH entry point"),
        (short.as_str(), "is not an ELF executable for x86_64"),
        (text.as_str(), "is not an ELF executable for x86_64"),
        (missing.as_str(), "No such file"),
        (scratch.dir(), "directory"),
    ] {
        let outputs = [
            script(&["--kernel", file], "settle\n"),
            run(&["run", "--kernel", file]),
            run(&["test", "--kernel", file, suite.dir()]),
        ];
        for output in outputs {
            assert_eq!(status(&output), 2, "{file}: {}", err(&output));
            let text = err(&output);
            assert!(text.contains(file) && text.contains(rule), "{file}: {text}");
        }
        assert_eq!(json(&script(&["--json", "--kernel", file], "settle\n"))["status"], 2);
    }
}

#[test]
fn a_kernel_file_that_contradicts_itself_gives_status_2_with_the_field() {
    let scratch = Scratch::new();
    let kernel = scratch.path("vmkern.elf");
    assert_eq!(status(&run(&["image", "--output", &kernel])), 0);
    let good = fs::read(&kernel).expect("the image was written");
    let word = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().expect("eight bytes"));
    let headers = (0..usize::from(good[56])).map(|index| 64 + 56 * index);
    let load = headers.clone().rfind(|&at| good[at] == 1).expect("it has segments");
    let note =
        headers.clone().find(|&at| good[at] == 4).map(|at| word(at + 8)).expect("it has notes");
    let note = usize::try_from(note).expect("it is an offset");
    for (name, at, bytes, told) in [
        ("filesz", load + 32, &(word(load + 40) + 4096).to_le_bytes()[..], "p_filesz"),
        ("offset", load + 8, &u64::MAX.to_le_bytes(), "p_offset"),
        ("beyond", load + 8, &(good.len() as u64).to_le_bytes(), "p_offset"),
        (
            "empty-note",
            note + 4,
            &0u32.to_le_bytes(),
            "bad PVH entry note: its content has 0 bytes",
        ),
        ("wild-note", note + 16, &[0xf0; 4], "bad PVH entry note: its entry"),
    ] {
        let mut lying = good.clone();
        lying[at..at + bytes.len()].copy_from_slice(bytes);
        let file = scratch.file(name, &lying);
        let output = script(&["--kernel", &file], "settle\n");
        assert_eq!(status(&output), 2, "{name}: {}", err(&output));
        assert!(
            err(&output).contains(&file) && err(&output).contains(told),
            "{name}: {}",
            err(&output)
        );
    }
}

#[test]
fn an_image_that_lies_about_its_ram_gives_status_2_with_the_field() {
    let scratch = Scratch::new();
    let path = scratch.path("good.img");
    assert_eq!(status(&script(&["--save-image", &path], "settle\n")), 0);
    let good = fs::read(&path).expect("the image was written");
    let word = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().expect("eight bytes"));
    let headers = usize::from(good[56]) | usize::from(good[57]) << 8;
    let longest = (1..headers)
        .map(|index| 64 + 56 * index)
        .max_by_key(|at| word(at + 40))
        .expect("there is RAM");
    let note = usize::try_from(word(64 + 8)).expect("it is an offset") + 20;
    for (name, at, value, told) in [
        (
            "hole",
            longest + 40,
            word(longest + 32) + 4096,
            "no program header holds physical address",
        ),
        ("ram", note + 32, 1 << 63, "guest note: bytes of RAM is 0x8000000000000000"),
        ("more-ram", note + 32, 128 << 20, "guest note: bytes of RAM is 0x8000000"),
        ("control", note + 8, u64::MAX - 7, "guest note: control region is"),
        ("root", note + 16, 0x20_0000, "guest note: root page table is 0x200000"),
    ] {
        let mut lying = good.clone();
        lying[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let file = scratch.file(name, &lying);
        for args in [["inspect", &file].as_slice(), &["inspect", &file, "pages"], &["check", &file]]
        {
            let output = run(args);
            assert_eq!(status(&output), 2, "{args:?}: {}", err(&output));
            assert!(err(&output).contains(told), "{args:?}: {}", err(&output));
        }
    }
}

#[test]
fn inspect_vtop_names_the_reserved_bits_of_a_refused_entry_below_the_levels_above_it() {
    let scratch = Scratch::new();
    // A second path to the tables of kernel_map, by the root's address in the control region, with
    // `broken` added.
    let way = |broken: &str| {
        format!(
            "let dm = 0xffffff0000000000\nroot = read $dm+0x9060\np4 = read $dm+$root+(511*8)\n\
             m = kmem_malloc kmem_map 4K NOWAIT\nwrite $dm+$root+8 $p4{broken}\n"
        )
    };
    let (large, good) =
        (scratch.file("large.kmem", way("+0x80")), scratch.file("good.kmem", way("")));
    for (file, refused) in [(&large, Some("7")), (&good, None)] {
        let output = run(&["inspect", "--script", file, "vtop", "0x8000000000"]);
        assert_eq!(status(&output), 0, "{}", err(&output));
        let text = out(&output);
        assert!(text.contains("PML4[1]"), "{text}");
        assert_eq!(text.contains("= physical"), refused.is_none(), "{text}");
        let told =
            refused.map(|bit| format!("= the CPU refuses the entry: reserved bits set: {bit}\n"));
        assert!(told.is_none_or(|told| text.contains(&told)), "{text}");
        let report = json(&run(&["inspect", "--json", "--script", file, "vtop", "0x8000000000"]));
        let mask = refused
            .map(|bit| format!("{:#x}", 1u64 << bit.parse::<u32>().expect("it is a number")));
        assert_eq!(report["reserved"].as_str(), mask.as_deref(), "{report}");
        assert_eq!(report["mapping"].is_null(), refused.is_some(), "{report}");
    }
}

#[test]
fn the_kernel_at_cpl0_runs_on_hardware_and_an_emulating_kvm_gives_status_4_with_the_way_out() {
    let doctor = json(&run(&["doctor", "--json"]));
    let output =
        script(&["--privilege", "supervisor", "--json"], "kmem_malloc kmem_map 4K NOWAIT\n");
    let report = json(&output);
    if doctor["kvm"] == "hardware" {
        assert_eq!(
            (status(&output), &report["environment"]["privilege"]),
            (0, &"supervisor".into())
        );
        return;
    }
    assert_eq!(doctor["kvm"], "software");
    assert_eq!((status(&output), &report["outcome"]), (4, &"error".into()));
    let text = err(&output);
    for part in [
        "emulates code at CPL0",
        "`--privilege user`",
        "`auto`",
        "hardware virtualization",
        "self-test",
        "QEMU",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn a_host_that_gives_no_resources_gives_status_4() {
    // Descriptors 0 to 4: enough to start the program and to open /dev/kvm, but too few for a
    // guest.
    let vmkern = env!("CARGO_BIN_EXE_vmkern");
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 5 && exec \"$0\" run --json -", vmkern])
        .stdin(Stdio::null())
        .output()
        .expect("there is a shell");
    assert_eq!(status(&output), 4, "{}", err(&output));
    assert_eq!(json(&output)["outcome"], "error");
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", out(output)))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> =
        value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn json_is_one_object_of_the_documented_shape() {
    let text = "a = kmem_malloc kmem_map 8K NOWAIT\nprint \"x\" 5\nkmem_malloc kmem_map 0 NOWAIT\n\
                expect null\nkmem_free kmem_map $a 8K\nread $a\nexpect panic \"page fault\"\n";
    let report = json(&script(&["--json", "--seed", "7", "--memory", "32M"], text));
    assert_eq!(
        keys(&report),
        [
            "dropped_log_lines",
            "environment",
            "failures",
            "ok",
            "outcome",
            "panic",
            "schema",
            "stats",
            "status",
            "steps"
        ]
    );
    assert_eq!(
        (&report["schema"], &report["ok"], &report["status"]),
        (&1.into(), &true.into(), &0.into())
    );
    assert_eq!(report["outcome"], "finished");
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    let steps = report["steps"].as_array().expect("a list");
    let summary: Vec<_> = steps
        .iter()
        .map(|step| {
            let expected = [
                "arguments",
                "changed",
                "cycles",
                "line",
                "output",
                "result",
                "thread",
                "ticks",
                "time",
                "verb",
            ];
            assert_eq!(keys(step), expected);
            assert_eq!(step["thread"], "t0");
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            (
                step["line"].as_u64().expect("a number"),
                text(&step["verb"]),
                text(&step["result"]["kind"]),
            )
        })
        .collect();
    let expected = [
        (1, "kmem_malloc", "value"),
        (2, "print", "ok"),
        (3, "kmem_malloc", "null"),
        (5, "kmem_free", "ok"),
        (6, "read", "panic"),
    ];
    assert_eq!(
        summary,
        expected.map(|(line, verb, kind)| (line, verb.to_owned(), kind.to_owned()))
    );
    assert_eq!(steps[0]["result"]["value"], "0xffffff8000000000");
    assert_eq!(steps[0]["arguments"], serde_json::json!(["kmem_map", "8192", "M_NOWAIT"]));
    assert!(steps[0]["changed"]["v_free_count"].as_array().is_some_and(|change| change.len() == 2));
    assert!(steps[0]["cycles"].as_u64().expect("a number") > 0);
    assert_eq!((&steps[1]["output"], &steps[0]["output"]), (&"x 5".into(), &Value::Null));
    assert_eq!(keys(&report["panic"]), ["backtrace", "cpu", "message", "thread"]);
    assert_eq!((&report["panic"]["thread"], &report["panic"]["cpu"]), (&"t0".into(), &0.into()));
    assert!(report["panic"]["backtrace"].as_array().is_some_and(|frames| !frames.is_empty()));
    assert!(report["stats"]["v_free_count"].as_u64().expect("a number") > 1000);
    let environment = &report["environment"];
    assert_eq!(
        keys(environment),
        ["abi", "accelerator", "kvm", "memory", "privilege", "seed", "vcpus"]
    );
    assert_eq!((&environment["seed"], &environment["memory"]), (&7.into(), &(32 << 20).into()));
    assert!(environment["kvm"] == "hardware" || environment["kvm"] == "software");
    assert!(environment["privilege"] == "supervisor" || environment["privilege"] == "user");
}

#[test]
fn json_tells_failures_and_panics_apart() {
    let report = json(&script(&["--json"], "settle\nassert 1 + 1 == 3\n"));
    assert_eq!((&report["outcome"], &report["status"]), (&"failed".into(), &1.into()));
    let failure = &report["failures"][0];
    assert_eq!(keys(failure), ["expected", "got", "line"]);
    assert_eq!((&failure["line"], &failure["expected"]), (&2.into(), &"1 + 1 == 3".into()));
    let report = json(&script(&["--json"], "read 0\n"));
    assert_eq!(
        (&report["outcome"], &report["status"], &report["ok"]),
        (&"panic".into(), &3.into(), &false.into())
    );
    assert!(report["panic"]["message"].as_str().expect("text").contains("page fault"));
}

#[test]
fn the_seed_decides_what_rand_draws() {
    let text = "repeat 8\nprint rand(0,1000000)\nend\n";
    let draw = |seed: &str| out(&script(&["--seed", seed], text));
    assert_eq!(draw("5"), draw("5"));
    assert_ne!(draw("5"), draw("6"));
}

#[test]
fn verbose_shows_each_step_on_standard_error_and_nothing_is_coloured_off_a_terminal() {
    let output = script(&["-v"], "kmem_malloc kmem_map 4K NOWAIT\nsettle\n");
    let text = err(&output);
    assert!(
        text.contains("kmem_malloc")
            && text.contains("0xffffff8000000000")
            && text.contains("settle"),
        "{text}"
    );
    assert_eq!(out(&output), "");
    let failed = err(&script(&[], "assert 1 == 2\n"));
    assert!(!text.contains('\x1b') && !failed.contains('\x1b'));
}

#[test]
fn a_console_file_that_cannot_be_written_gives_status_2() {
    let scratch = Scratch::new();
    let path = scratch.path("kernel.log");
    assert_eq!(status(&script(&["--console", &path], "settle\n")), 0);
    assert!(Path::new(&path).is_file());
    assert_eq!(status(&script(&["--console", scratch.dir()], "settle\n")), 2);
}

#[test]
fn the_tour_explains_itself_within_80_columns() {
    for memory in ["8M", "64M", "4G"] {
        let output = run(&["run", "--memory", memory]);
        assert_eq!(status(&output), 0, "{}", err(&output));
        let text = out(&output);
        let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{wide:#?}");
        for part in [
            "kmem_malloc(kmem_map, 12288, M_NOWAIT | M_ZERO)",
            "[###...",
            "PTE +",
            "PTE -",
            "page fault",
            "NOFAULT",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
    let report = json(&run(&["run", "--json"]));
    assert_eq!((&report["outcome"], &report["status"]), (&"finished".into(), &0.into()));
    assert!(report["steps"].as_array().is_some_and(|steps| steps.len() > 10));
}

#[test]
fn an_interrupt_ends_the_run_with_status_130() {
    let scratch = Scratch::new();
    let waiting = scratch.file("sleep.kmem", "print \"go\"\nsleep 1000s\n");
    let busy = scratch.file("busy.kmem", "print \"go\"\nrepeat 1000000000000\nlet a = $i\nend\n");
    for file in [waiting, busy] {
        let mut child = vmkern()
            .args(["run", "--time", "real", &file])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command can be started");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("the script prints");
        assert_eq!(line, "go\n");
        let id = child.id().to_string();
        assert!(
            Command::new("kill").args(["-INT", &id]).status().expect("there is kill").success()
        );
        let output = child.wait_with_output().expect("the command ends");
        assert_eq!((status(&output), err(&output).as_str()), (130, "vmkern: interrupted\n"));
    }
}

#[test]
fn a_suite_runs_every_script_below_its_directory_and_fails_if_one_does() {
    let scratch = Scratch::new();
    scratch.file("b.kmem", "print \"hello\"\nassert 1 == 1\n");
    scratch.file("deep/er/a.kmem", "settle\n");
    scratch.file("notes.txt", "not a script\n");
    let output = run(&["test", scratch.dir()]);
    assert_eq!(status(&output), 0, "{}", err(&output));
    assert!(err(&output).contains("2 passed, 0 failed"));

    scratch.file("c.kmem", "assert 1 == 2\n");
    scratch.file("d.kmem", "frobnicate\n");
    scratch.file("e.kmem", "read 0\n");
    let junit = scratch.path("report.xml");
    let output = run(&["test", scratch.dir(), "--junit", &junit, "--jobs", "2", "--json"]);
    assert_eq!(status(&output), 1);
    let text = err(&output);
    assert!(text.contains("2 passed, 3 failed") && text.contains("c.kmem:1"), "{text}");
    let xml = fs::read_to_string(&junit).expect("the file was written");
    for part in [
        "tests=\"5\"",
        "failures=\"1\"",
        "errors=\"2\"",
        "name=\"deep/er/a.kmem\"",
        "hello",
        "type=\"status 3\"",
    ] {
        assert!(xml.contains(part), "{part} is not in:\n{xml}");
    }
    let report = json(&output);
    let statuses: Vec<_> = report["tests"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|test| &test["report"]["status"])
        .collect();
    assert_eq!(statuses, [0, 1, 2, 0, 3]);
}

#[test]
fn a_suite_of_nothing_gives_status_2() {
    let scratch = Scratch::new();
    let output = run(&["test", scratch.dir()]);
    assert_eq!(status(&output), 2);
    assert!(err(&output).contains("no *.kmem file"), "{}", err(&output));
    assert_eq!(status(&run(&["test", &scratch.path("missing")])), 2);
}

#[test]
fn the_doctor_finds_this_host_well() {
    let output = run(&["doctor"]);
    assert_eq!(status(&output), 0, "{}", out(&output));
    let report = json(&run(&["doctor", "--json"]));
    assert_eq!(report["can_run"], true);
}

#[test]
fn an_image_of_the_end_is_saved_whatever_the_end_was() {
    let scratch = Scratch::new();
    for (name, text, expected) in [
        ("good", "kmem_alloc kernel_map 12K\n", 0),
        ("panic", "read 0xffffff8000000000\n", 3),
        ("failed", "assert 1 == 2\n", 1),
    ] {
        let file = scratch.file(&format!("{name}.kmem"), text);
        let path = scratch.path(&format!("{name}.img"));
        let output = run(&["run", "--memory", "16M", "--save-dump", &path, &file]);
        assert_eq!(status(&output), expected, "{}", err(&output));
        let image = Dump::open(&path).expect("the image can be read");
        assert_eq!(image.program(), file);
        assert_eq!(image.ram_size(), 16 << 20);
        assert_eq!(image.cpus().expect("an image has them").len(), 1);
        assert!(image.symbols(KernelImage::embedded().bytes()).is_ok());
        assert!(fs::metadata(&path).expect("it is there").len() < 8 << 20);
    }
}

#[test]
fn a_script_dumps_images_where_it_stands() {
    let scratch = Scratch::new();
    let path = scratch.path("a.img");
    let text = format!(
        "a = kmem_alloc kernel_map 4K\nfill $a 4K 7\ndump {path}\nkmem_free kernel_map $a 4K\n"
    );
    let output = script(&["--json"], &text);
    assert_eq!(status(&output), 0, "{}", err(&output));
    let steps = &json(&output)["steps"];
    assert_eq!(
        (&steps[2]["verb"], &steps[2]["result"]["kind"]),
        (&"dump".into(), &"ok".into()),
        "{steps}"
    );
    let image = Dump::open(&path).expect("the image can be read");
    let view = View::new(&image).expect("the kernel has page tables");
    let at = steps[0]["result"]["value"]
        .as_str()
        .and_then(|text| u64::from_str_radix(&text[2..], 16).ok());
    let mut bytes = [0; 4096];
    view.read("block", GuestVirt::new(at.expect("an address")), &mut bytes)
        .expect("the block is mapped there");
    assert!(bytes.iter().any(|&byte| byte != 0));
    let output = script(&[], "dump /no/such/directory/a.img\n");
    assert_eq!(status(&output), 1);
    assert!(err(&output).contains("/no/such/directory/a.img"), "{}", err(&output));
}

#[test]
fn help_has_examples_and_the_exit_statuses() {
    for args in [&["run", "--help"][..], &["test", "--help"]] {
        let output = run(args);
        assert_eq!(status(&output), 0);
        assert!(out(&output).contains("Examples:") && out(&output).contains("Exit status:"));
    }
}

#[test]
fn check_says_nothing_of_a_good_guest_and_everything_of_a_damaged_one() {
    let scratch = Scratch::new();
    let image = scratch.path("guest.img");
    let text = "a = kmem_malloc kmem_map 12K NOWAIT\ncheck\nprint kmem_map.size";
    let good = script(&["--check", "--save-dump", &image], text);
    assert_eq!((status(&good), out(&good).trim()), (0, "12288"), "{}", err(&good));
    let checked = run(&["check", &image]);
    assert_eq!((status(&checked), out(&checked)), (0, String::new()), "{}", err(&checked));
    assert!(err(&checked).contains("nothing found in 7 maps"), "{}", err(&checked));

    let size_at = {
        let opened = Dump::open(&image).expect("the image can be read");
        let view = View::new(&opened).expect("it has page tables");
        let roots = view.copy("roots", view.roots()).expect("it has roots");
        let size = roots.maps[1]
            .get()
            .addr()
            .add(std::mem::offset_of!(vmkern::abi::layout::VmMap, size) as u64);
        let page = view.walk(size).expect("it is mapped").mapping.expect("it is mapped").phys;
        let found = opened.load(page).expect("it is RAM");
        assert_eq!(found, 12288);
        page
    };
    // The first run of RAM begins with the file's first page of memory; a page is found by its
    // content.
    let mut bytes = fs::read(&image).expect("the image can be read");
    let offset = usize::try_from(size_at.page_offset()).expect("it is small");
    let places: Vec<usize> = (4096..bytes.len())
        .step_by(4096)
        .filter(|page| {
            bytes.get(page + offset - 8..page + offset + 8)
                == Some(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0, 0, 0, 0])
        })
        .collect();
    assert_eq!(places.len(), 1, "nentries 1 and size 12288 stand in one place");
    bytes[places[0] + offset + 1] = 64;
    fs::write(&image, bytes).expect("the image can be written");
    let checked = run(&["check", &image]);
    assert_eq!(status(&checked), 1, "{}", err(&checked));
    assert!(out(&checked).contains("map-size: kmem_map at 0x"), "{}", out(&checked));
    assert!(
        out(&checked).contains("size says 16384, but its entries sum to 12288"),
        "{}",
        out(&checked)
    );
    let json: Value =
        serde_json::from_slice(&run(&["check", "--json", &image]).stdout).expect("it is JSON");
    assert_eq!(
        (json["ok"].as_bool(), json["findings"][0]["rule"].as_str()),
        (Some(false), Some("map-size"))
    );
    assert_eq!(status(&run(&["check", "/nowhere/guest.img"])), 2);
    assert_eq!(status(&run(&["check"])), 2);
}

#[test]
fn a_script_that_leaks_a_page_fails_its_check() {
    let leak =
        "a = kmem_alloc_nofault kernel_map 16K\npmap_qenter $a 2\nkmem_free kernel_map $a 16K";
    assert_eq!(status(&script(&[], leak)), 0);
    let checked = script(&["--check"], leak);
    assert_eq!(status(&checked), 1, "{}", err(&checked));
    assert!(
        err(&checked).contains("page-lost: vm_page at") && err(&checked).contains("2 findings"),
        "{}",
        err(&checked)
    );
    let json: Value =
        serde_json::from_slice(&script(&["--check", "--json"], leak).stdout).expect("it is JSON");
    assert_eq!(
        (json["ok"].as_bool(), json["status"].as_u64(), json["outcome"].as_str()),
        (Some(false), Some(1), Some("failed"))
    );
    assert_eq!(json["failures"][0]["got"], "2 findings");
    let scratch = Scratch::new();
    let file = scratch.file("leak.kmem", leak);
    let checked = run(&["check", "--script", &file]);
    assert_eq!(status(&checked), 1, "{}", err(&checked));
    assert!(out(&checked).contains("page-lost"), "{}", out(&checked));
    assert_eq!(status(&run(&["test", "--check", scratch.dir()])), 1);
    assert_eq!(status(&run(&["test", scratch.dir()])), 0);
}

#[test]
fn an_unknown_thing_to_inspect_gives_status_2_and_the_known_ones() {
    let output = run(&["inspect", "guest.img", "page_table"]);
    assert_eq!((status(&output), out(&output).as_str()), (2, ""));
    let text = err(&output);
    for known in ["summary", "map NAME", "pagetable [START..END]", "cpus", "diff OTHER"] {
        assert!(text.contains(known), "{known} is not in:\n{text}");
    }
    let missing = run(&["inspect", "/no/such/guest.img", "maps", "--json"]);
    assert_eq!(status(&missing), 2);
    let object: Value = serde_json::from_slice(&missing.stdout).expect("it is JSON");
    assert!(
        object["error"].as_str().is_some_and(|error| error.contains("/no/such/guest.img")),
        "{object}"
    );
    assert_eq!(status(&run(&["inspect"])), 2);
}

#[test]
fn a_guest_is_inspected_at_the_end_of_a_script_even_where_it_died() {
    let scratch = Scratch::new();
    let text = "a = kmem_malloc kmem_map 12K NOWAIT\nprint \"here\"\nread 0xffffff8001000000\n";
    let file = scratch.file("dies.kmem", text);
    let output = run(&["inspect", "--script", &file, "map", "kmem_map"]);
    assert_eq!(status(&output), 3, "{}", err(&output));
    assert!(
        out(&output)
            .contains("0xffffff8000000000-0xffffff8000003000        3 rwx  1     kmem_object")
    );
    assert!(
        err(&output).contains("here\n") && err(&output).contains("page fault"),
        "{}",
        err(&output)
    );
    let expected = scratch.file("expected.kmem", format!("{text}expect panic \"page fault\"\n"));
    let output = run(&["inspect", "--script", &expected, "--json", "summary"]);
    assert_eq!(status(&output), 0, "{}", err(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert!(
        report["panic"].as_str().is_some_and(|panic| panic.starts_with("page fault: read")),
        "{report}"
    );
    assert_eq!(
        status(&run(&["inspect", "--script", &scratch.file("wrong.kmem", "nonsense\n"), "maps"])),
        2
    );
}

#[test]
fn images_are_inspected_and_compared() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.path("a.img"), scratch.path("b.img"));
    let text =
        format!("dump {a}\na = kmem_malloc kmem_map 12K NOWAIT\ninspect diff {a}\ndump {b}\n");
    let output = script(&[], &text);
    assert_eq!(status(&output), 0, "{}", err(&output));
    let added = "+ 0xffffff8000000000     3 x 4K  rw-";
    assert!(out(&output).contains(added), "{}", out(&output));
    for args in [["inspect", "diff", &a, &b], ["inspect", &a, "diff", &b]] {
        let output = run(&args);
        assert_eq!(status(&output), 0, "{}", err(&output));
        assert!(
            out(&output).contains(added) && !out(&output).contains('\u{1b}'),
            "{}",
            out(&output)
        );
    }
    let output = run(&["inspect", &b]);
    assert!(out(&output).starts_with("64.0 MiB of RAM"), "{}", out(&output));
    assert_eq!(status(&run(&["inspect", &b, "page", "0x100000"])), 2);
}

#[test]
fn the_books_samples_of_inspect_are_what_the_command_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new("bash")
        .args(["scripts/samples.sh", "--check", env!("CARGO_BIN_EXE_vmkern")])
        .current_dir(root)
        .output()
        .expect("the script can be started");
    assert_eq!(status(&output), 0, "{}{}", out(&output), err(&output));
}

/// The built-in kernel with another hash of its structures, as a build of another version has it.
fn foreign_kernel() -> Vec<u8> {
    let (mut file, hash) = (KernelImage::embedded().bytes().to_vec(), HASH.to_le_bytes());
    let places: Vec<usize> =
        (0..file.len() - hash.len()).filter(|&at| file[at..].starts_with(&hash)).collect();
    assert!(!places.is_empty(), "the kernel publishes it");
    places.iter().for_each(|&at| file[at] ^= 1);
    file
}

#[test]
fn a_kernel_of_another_abi_is_refused_at_once_by_a_run_and_by_a_bench() {
    let scratch = Scratch::new();
    let kernel = scratch.file("old.elf", foreign_kernel());
    let text = scratch.file("text.elf", "no kernel at all\n");
    let begin = std::time::Instant::now();
    for args in [
        &["bench", "boot", "--rounds", "1", "--against", &kernel] as &[&str],
        &["bench", "ring", "--rounds", "1", "--against", &kernel],
        &["bench", "kmem", "--rounds", "1", "--against", &kernel],
    ] {
        let output = run(args);
        assert_eq!(status(&output), 2, "{args:?}: {}", err(&output));
        let text = err(&output);
        assert!(text.contains("old.elf, does not boot here: "), "{text}");
        assert!(text.contains("the kernel speaks version"), "{text}");
    }
    for wrong in [text.as_str(), "/", "/nonexistent"] {
        let output = run(&["bench", "boot", "--rounds", "1", "--against", wrong]);
        assert_eq!(status(&output), 2, "{wrong}: {}", err(&output));
    }
    let output = script(&["--kernel", &kernel], "settle\n");
    assert_eq!(status(&output), 6, "{}", err(&output));
    assert!(err(&output).contains("of the ABI with structures"), "{}", err(&output));
    assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", begin.elapsed());
}
