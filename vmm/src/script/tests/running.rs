//! Running.

use std::time::Duration;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{KernReturn, MallocFlags, MapId, Op, Outcome, WaitMessage};

use super::fake::{BASE, Fake, given, panic, run_on, run_text};
use crate::check::Finding;
use crate::guest::FailSite;
use crate::script::{Ending, Failure, Reply, Source, Status, Step, Stop, TargetError, parse, run};

fn finished(text: &str) -> Fake {
    let mut fake = Fake::default();
    let (ending, _) = run_on(&mut fake, text);
    assert_eq!(ending, Ending::Finished);
    fake
}

fn failed(text: &str) -> Failure {
    match run_text(text).0 {
        Ending::Failed(failure) => *failure,
        other => panic!("{other:?}"),
    }
}

/// Line, column and message of the error that running `text` shows.
fn wrong(text: &str) -> (usize, usize, String) {
    match run_text(text).0 {
        Ending::Script(error) => {
            (error.span.line, Source::new("", text).column(error.span), error.message)
        }
        other => panic!("{other:?}"),
    }
}

fn scripted(reply: Result<Reply, TargetError>) -> Fake {
    Fake { scripted: [reply].into(), ..Fake::default() }
}

#[test]
fn operators_combine_from_left_to_right() {
    finished(
        "assert 2 + 3 * 4 == 20\nassert 2+(3*4) == 14\nassert 100 - 10 - 5 == 85\n\
         assert 7 % 4 * 2 == 6\nassert 9/2 == 4",
    );
}

#[test]
fn arithmetic_that_overflows_is_a_script_error_with_its_place() {
    assert_eq!(
        wrong("let a = 1\nlet b = 2 + $a - 4"),
        (2, 9, "3 - 4 is not an unsigned 64-bit number".to_owned())
    );
    assert_eq!(wrong("let a = 0xffffffffffffffff+1").0, 1);
    assert_eq!(wrong("let a = 1/0").0, 1);
    assert_eq!(wrong("let a = 1%0").0, 1);
    assert_eq!(wrong("let a = 0xffffffffffffffff*2").0, 1);
}

#[test]
fn arguments_reach_the_operation() {
    let fake = finished(
        "a = kmem_malloc kmem_map 12K ZERO|NOWAIT\nkmem_malloc kmem_map 1\nwrite $a+8 (1 + 2)\n\
         verify $a 4K zero\nverify $a 4K 9\nsleep 3ms\nsleep 2s",
    );
    let map = MapId::KMEM;
    let addr = GuestVirt::new(BASE);
    assert_eq!(
        fake.ops,
        [
            Op::KmemMalloc { map, size: 12 << 10, flags: MallocFlags::ZERO | MallocFlags::NOWAIT },
            Op::KmemMalloc { map, size: 1, flags: MallocFlags::empty() },
            Op::Write { addr: addr.add(8), value: 3 },
            Op::VerifyZero { addr, size: 4096 },
            Op::Verify { addr, size: 4096, seed: 9 },
            Op::Sleep { micros: 3_000 },
            Op::Sleep { micros: 2_000_000 },
        ]
    );
}

#[test]
fn repeats_nest_and_i_is_the_innermost_counter() {
    let (ending, steps) = run_text(
        "repeat 2\nlet j = $i\nrepeat 3\nprint $j $i\nend\nprint $i\nend\nrepeat 0\n\
         print \"never\"\nend",
    );
    assert_eq!(ending, Ending::Finished);
    let output: Vec<_> = steps.iter().filter_map(|step| step.output.as_deref()).collect();
    assert_eq!(output, ["0 0", "0 1", "0 2", "0", "1 0", "1 1", "1 2", "1"]);
}

#[test]
fn a_series_remembers_each_of_its_values() {
    finished(
        "repeat 10\nlet s[$i] = $i * $i\nend\nlet sum = 0\nrepeat 10\nlet sum = $sum + $s[9 - $i]\n\
         end\nassert $sum == 285\na[5] = kmem_alloc kernel_map 1\nassert $a[2+3] == kernel_map.min",
    );
}

#[test]
fn an_unbound_element_is_a_script_error() {
    let (line, column, message) = wrong("let s[1] = 1\nlet x = 1 + $s[2]");
    assert_eq!((line, column, message.as_str()), (2, 13, "`$s[2]` (index 2) has not been bound"));
    assert_eq!(wrong("repeat 0\nlet a = 1\nend\nprint $a").2, "`$a` has not been bound");
}

#[test]
fn null_binds_zero_and_ok_binds_no_number() {
    finished("a = kmem_alloc kernel_map 0\nexpect null\nassert $a == 0");
    assert_eq!(wrong("a = settle\nprint $a").2, "`$a` has no value: its statement gave ok");
}

#[test]
fn expectations_hold_or_fail_as_the_language_says() {
    let space = Outcome::Error(KernReturn::NoSpace);
    let mismatch = Outcome::Mismatch { addr: GuestVirt::new(BASE), got: 1, want: 2 };
    let all = [Outcome::Ok, Outcome::Value(7), Outcome::Value(0), Outcome::Null, space, mismatch];
    let table = [
        ("", [true, true, true, false, false, false]),
        ("expect ok", [true, true, true, false, false, false]),
        ("expect null", [false, false, false, true, false, false]),
        ("expect 7", [false, true, false, false, false, false]),
        ("expect 3 + 4", [false, true, false, false, false, false]),
        ("expect error KERN_NO_SPACE", [false, false, false, false, true, false]),
        ("expect error KERN_FAILURE", [false; 6]),
        ("expect blocked", [false; 6]),
        ("expect panic \"x\"", [false; 6]),
    ];
    for (expect, holds) in table {
        for (outcome, holds) in all.into_iter().zip(holds) {
            let (ending, _) = run_on(&mut scripted(given(outcome)), &format!("settle\n{expect}"));
            assert_eq!(ending.status() == Status::Ok, holds, "{expect} {outcome:?}");
            assert_eq!(ending.status() == Status::Failed, !holds, "{expect} {outcome:?}");
        }
    }
}

#[test]
fn a_failed_verify_names_the_address_the_value_there_and_the_value_wanted() {
    let mismatch = Outcome::Mismatch { addr: GuestVirt::new(BASE + 8), got: 0x11, want: 0x22 };
    let (ending, _) = run_on(&mut scripted(given(mismatch)), "verify 1 2 3");
    let Ending::Failed(failure) = ending else { panic!("{ending:?}") };
    assert_eq!(failure.expected, "0x22 at 0xffffff8000000008");
    assert_eq!(failure.got, "0x11 at 0xffffff8000000008 instead of 0x22");
}

#[test]
fn an_expected_panic_ends_the_script_well() {
    let text = "let a = 1\nread $a\nexpect panic \"page fault\"\nassert 1 == 2";
    let (ending, steps) = run_on(&mut scripted(panic("fatal page fault at 1")), text);
    assert!(matches!(ending, Ending::ExpectedPanic(_)), "{ending:?}");
    assert_eq!(ending.status(), Status::Ok);
    assert_eq!(steps.len(), 1);
}

#[test]
fn any_other_panic_is_status_3() {
    for expect in ["", "expect ok", "expect null", "expect 4", "expect panic \"elsewhere\""] {
        let (ending, _) = run_on(&mut scripted(panic("boom")), &format!("settle\n{expect}"));
        assert_eq!(ending.status(), Status::Panicked, "{expect}");
    }
}

#[test]
fn a_failure_tells_call_values_and_loop_counters() {
    let failure = failed("let n = 3\nrepeat 5\nlet m = $i\na = kmem_alloc kernel_map $n-$m\nend");
    assert_eq!(
        (failure.span.line, failure.expected.as_str(), failure.got.as_str()),
        (4, "ok", "null")
    );
    assert_eq!(failure.called.as_deref(), Some("kmem_alloc(kernel_map, 0)"));
    let values: Vec<_> =
        failure.values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(values, [("$n", "3"), ("$m", "3"), ("$i of the repeat on line 2", "3")]);
}

#[test]
fn a_failed_assertion_tells_both_sides() {
    let failure = failed("let a = 4\nassert v_free_count + 1 == $a * 2");
    assert_eq!(failure.expected, "v_free_count + 1 == $a * 2");
    assert_eq!(failure.got, "1001 and 8");
    assert_eq!(
        failure.values,
        [("v_free_count".to_owned(), "1000".to_owned()), ("$a".to_owned(), "4".to_owned())]
    );
}

#[test]
fn a_failure_tells_the_values_that_were_compared_although_they_change_meanwhile() {
    let values = |text: &str| {
        let mut fake = Fake { step: 10, ..Fake::default() };
        match run_on(&mut fake, text).0 {
            Ending::Failed(failure) => (failure.got, failure.values),
            other => panic!("{other:?}"),
        }
    };
    let rows = |rows: &[(&str, &str)]| -> Vec<(String, String)> {
        rows.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(values("assert now > 5s"), ("10 and 5000000".to_owned(), rows(&[("now", "10")])));
    // Each of two looks has its own line, and one of a call tells what the guest was given.
    assert_eq!(
        values("assert now == now"),
        ("10 and 20".to_owned(), rows(&[("now", "10"), ("now", "20")]))
    );
    assert_eq!(
        values("read now\nexpect now"),
        ("0".to_owned(), rows(&[("now", "10"), ("now", "1020")]))
    );
    // What was started is told with what it was started with.
    let scripted = [given(Outcome::Ok), given(Outcome::Value(7))].into();
    let mut fake = Fake { step: 10, scripted, ..Fake::default() };
    let text = "start t1: read now\nexpect 8\nlet a = now\njoin t1";
    let Ending::Failed(failure) = run_on(&mut fake, text).0 else { panic!("it gives 7") };
    assert_eq!(failure.values[0], ("now".to_owned(), "10".to_owned()));
}

#[test]
fn nothing_runs_after_a_failure() {
    let mut fake = Fake::default();
    let (ending, steps) = run_on(&mut fake, "settle\nkmem_alloc kernel_map 0\nsettle");
    assert_eq!((ending.status(), steps.len(), fake.ops.len()), (Status::Failed, 2, 2));
}

#[test]
fn a_page_walk_that_disagrees_is_our_bug() {
    let mut fake = Fake { skew: 4096, ..Fake::default() };
    let (ending, _) = run_on(&mut fake, &format!("vtop {BASE}"));
    assert_eq!(ending.status(), Status::Broken);
    finished(&format!("p = vtop {}\nassert $p == 5", BASE + 5));
}

#[test]
fn a_page_walk_is_compared_only_with_one_of_the_guest_that_no_other_thread_can_make_untrue() {
    // The answer to a registration is not that of the operation.
    let mut fake = Fake { skew: 4096, ..Fake::default() };
    assert_eq!(run_on(&mut fake, &format!("on_lowmem vtop {BASE}")).0, Ending::Finished);
    // The thread is still to be made.
    let blocked = given(Outcome::Blocked { waits_for: WaitMessage::new("vmwait") });
    let mut fake = Fake { skew: 4096, ..scripted(blocked) };
    let (ending, _) = run_on(&mut fake, &format!("t1: vtop {BASE}\nexpect blocked\nabandon t1"));
    assert_eq!(ending, Ending::Finished);
    // What was started may be at work.
    let mut fake = Fake { skew: 4096, ..Fake::default() };
    let (ending, _) = run_on(&mut fake, &format!("start t1: settle\nvtop {BASE}\njoin t1"));
    assert_eq!(ending, Ending::Finished);
}

#[test]
fn random_numbers_come_from_the_seed() {
    let text = "repeat 20\nprint rand(0,1000000)\nend";
    let (_, first) = run_text(text);
    assert_eq!(first, run_text(text).1);
    let script = parse(&Source::new("x", text)).expect("a good script");
    let mut other = Vec::new();
    let stop = Stop::after(Duration::from_secs(3600));
    run(&script, &mut Fake::default(), 1, &stop, &mut |step: &Step| other.push(step.clone()));
    assert_ne!(first, other);
    assert_eq!(wrong("print rand(2,1)").2, "rand(2,1) has no number to draw");
}

#[test]
fn a_loop_that_asks_the_guest_nothing_ends_with_its_time() {
    let script =
        parse(&Source::new("x", "repeat 1000000000000\nlet a = 1\nend")).expect("a good script");
    let ending =
        run(&script, &mut Fake::default(), 0, &Stop::after(Duration::ZERO), &mut |_: &Step| {});
    assert_eq!(ending.status(), Status::Timeout);
    let stop = Stop::after(Duration::from_secs(3600));
    stop.interrupt();
    assert_eq!(
        run(&script, &mut Fake::default(), 0, &stop, &mut |_: &Step| {}),
        Ending::Interrupted
    );
}

#[test]
fn what_the_guest_cannot_answer_ends_the_run_with_its_status() {
    let cases = [
        (TargetError::Timeout { limit: Duration::from_secs(60), at: None }, Status::Timeout),
        (TargetError::Interrupted, Status::Interrupted),
        (TargetError::Broken("odd".to_owned()), Status::Broken),
    ];
    for (error, status) in cases {
        assert_eq!(run_on(&mut scripted(Err(error)), "settle").0.status(), status);
    }
}

#[test]
fn dump_takes_any_file_name_and_says_which_script_ran() {
    let mut fake = Fake::default();
    let names = [
        "out.img",
        "./a-b/~c.img",
        "/tmp/1st:x.img",
        "2nd.img",
        "\"with a blank.img\"  # to look at later",
    ];
    let text: String = names.iter().map(|name| format!("t3: dump {name}\nexpect ok\n")).collect();
    let (ending, steps) = run_on(&mut fake, &text);
    assert_eq!(ending, Ending::Finished);
    assert_eq!(steps.len(), names.len());
    let files = ["out.img", "./a-b/~c.img", "/tmp/1st:x.img", "2nd.img", "with a blank.img"];
    assert_eq!(fake.dumps, files.map(|file| format!("test.kmem: {file}")));
    let (ending, _) = run_text("dump /full/x.img");
    assert!(
        matches!(&ending, Ending::Failed(failure) if failure.got == "No space left on device"),
        "{ending:?}"
    );
    for bad in [
        "dump",
        "dump   # nothing",
        "dump a b",
        "dump \"\"",
        "dump \"a",
        "intr: dump a",
        "on_lowmem dump a",
    ] {
        assert!(parse(&Source::new("x", bad)).is_err(), "{bad}");
    }
    assert!(
        parse(&Source::new("x", "dump = kmem_alloc kernel_map 4K\nkmem_free kernel_map $dump 4K"))
            .is_ok()
    );
}

#[test]
fn check_gives_ok_or_the_number_of_findings_which_is_a_failure_that_nobody_expects() {
    let (ending, steps) = run_text("t2: check\nexpect ok\nn = check\nassert $n == 0");
    assert_eq!(ending, Ending::Finished);
    assert_eq!((steps[0].verb, steps[0].output.clone()), ("check", None));
    let finding = |detail: &str| Finding {
        rule: "map-size",
        what: "kmem_map".into(),
        at: GuestVirt::new(0x4000),
        detail: detail.to_owned(),
    };
    let damaged = || Fake { findings: vec![finding("a"), finding("b")], ..Fake::default() };
    let (ending, steps) = run_on(&mut damaged(), "check");
    assert!(
        matches!(&ending, Ending::Failed(f) if f.expected == "no findings"
            && f.got == "2 findings"),
        "{ending:?}"
    );
    assert_eq!(
        steps[0].output.as_deref(),
        Some("map-size: kmem_map at 0x4000: a\nmap-size: kmem_map at 0x4000: b")
    );
    assert_eq!(run_on(&mut damaged(), "check\nexpect 2").0, Ending::Finished);
    assert!(matches!(run_on(&mut damaged(), "check\nexpect ok").0, Ending::Failed(_)));
    assert!(matches!(run_on(&mut damaged(), "check\nexpect 1").0, Ending::Failed(_)));
    for bad in ["check 1", "intr: check", "on_lowmem check"] {
        assert!(parse(&Source::new("x", bad)).is_err(), "{bad}");
    }
}

#[test]
fn inspect_shows_what_is_asked_for_and_its_numbers_are_expressions() {
    let text = "a = kmem_malloc kmem_map 8K NOWAIT\ninspect maps\ninspect vtop $a+4K\n\
                inspect pagetable $a..$a+8K\ninspect pagetable $a $a+4K\n\
                m = kmem_suballoc kernel_map 64K\ninspect map $m\nt3: inspect map kmem_map\n\
                inspect diff a.img\nexpect ok";
    let (ending, steps) = run_text(text);
    assert_eq!(ending, Ending::Finished);
    let shown: Vec<_> = steps.iter().filter_map(|step| step.output.as_deref()).collect();
    let wanted = [
        "maps",
        "vtop 0xffffff8000001000",
        "pagetable 0xffffff8000000000..0xffffff8000002000",
        "pagetable 0xffffff8000000000..0xffffff8000001000",
        "map 0xffffff0000123000",
        "map kmem_map",
        "diff \"a.img\"",
    ];
    assert_eq!(shown, wanted.map(|what| format!("test.kmem: {what}")));
}

#[test]
fn inspect_of_what_does_not_exist_fails_the_script() {
    let (ending, _) = run_text("inspect page 99");
    assert!(
        matches!(&ending, Ending::Failed(failure) if failure.got == "there is no page 0x63"),
        "{ending:?}"
    );
    let (ending, _) = run_text("let a = 8K\ninspect pagetable $a 4K");
    assert!(
        matches!(&ending, Ending::Script(error) if error.message == "0x2000..0x1000 is empty"),
        "{ending:?}"
    );
    let bad = [
        "inspect",
        "inspect thread",
        "inspect maps 1",
        "inspect map",
        "inspect vtop",
        "inspect pagetable 1",
        "inspect diff",
        "intr: inspect maps",
        "on_lowmem inspect maps",
        "inspect map $x",
    ];
    for bad in bad {
        assert!(parse(&Source::new("x", bad)).is_err(), "{bad}");
    }
    let errors = parse(&Source::new("x", "inspect threds")).expect_err("there is none");
    assert_eq!(errors[0].help.as_deref(), Some("did you mean `threads`?"));
}

#[test]
fn fail_arms_a_site_with_the_rest_of_the_line_and_asks_nobody() {
    let fake = finished("fail tsleep  2.5%3*return->print(0x2)   # often\nfail tsleep off\n");
    let armed = |spec: &str| (FailSite::Tsleep, spec.to_owned());
    assert_eq!(fake.armed, [armed("2.5%3*return->print(2)"), armed("off")]);
    assert_eq!(fake.ops, []);
    // All sites at once.
    let sites: Vec<_> = finished("fail off").armed;
    assert_eq!(sites, FailSite::ALL.map(|site| (site, "off".to_owned())));
    // A name can be bound to its result, and be `fail` itself.
    let (ending, steps) = run_text("a = fail list\nfail = kmem_alloc kmem_map 4K\n");
    assert_eq!(ending, Ending::Finished);
    let list = steps[0].output.as_deref().unwrap_or_default();
    for site in FailSite::ALL {
        assert!(list.contains(site.name()) && list.contains(site.effect()), "{}", site.name());
    }
}
