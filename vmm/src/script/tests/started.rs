//! `start`, and what is not over at the end.

use vmkern_abi::control::{Context, Op, Outcome, WaitMessage};

use super::fake::{Fake, given, run_on};
use crate::script::{
    Detail, Ending, Observer, Panic, Reply, Source, Status, Step, Stop, TargetError, TooMuch,
};
use crate::script::{parse, parse_with, run};

const OK: Outcome = Outcome::Ok;

fn blocked(message: &str) -> Outcome {
    Outcome::Blocked { waits_for: WaitMessage::new(message) }
}

fn panic_on(thread: &str) -> Result<Reply, TargetError> {
    let (message, thread) = ("kmem_map too small".to_owned(), Some(thread.to_owned()));
    Ok(Reply::Panicked(Box::new(Panic { message, thread, ..Panic::default() })))
}

fn ends(
    replies: impl IntoIterator<Item = Result<Reply, TargetError>>,
    text: &str,
) -> (Fake, Ending) {
    let mut fake = Fake { scripted: replies.into_iter().collect(), ..Fake::default() };
    let (ending, _) = run_on(&mut fake, text);
    (fake, ending)
}

fn holds(outcomes: impl IntoIterator<Item = Outcome>, text: &str) -> Fake {
    let (fake, ending) = ends(outcomes.into_iter().map(given), text);
    assert_eq!(ending, Ending::Finished, "{text}");
    fake
}

fn wrong(outcomes: impl IntoIterator<Item = Outcome>, text: &str) -> (usize, String) {
    match ends(outcomes.into_iter().map(given), text).1 {
        Ending::Script(error) => (error.span.line, error.message),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_started_statement_is_sent_at_once_and_its_name_is_bound_by_the_join() {
    let text = "start t1: x = read 1\nstart t[1 + 1]: y = read 2\njoin t2\njoin t[1]\n\
                assert $x == 7\nassert $y == 8";
    let fake = holds([OK, OK, Outcome::Value(8), Outcome::Value(7)], text);
    assert_eq!(fake.contexts[..2], [Context::Start(1), Context::Start(2)]);
    assert_eq!(fake.ops[2..], [Op::Join { thread: 2 }, Op::Join { thread: 1 }]);
}

#[test]
fn the_name_of_a_started_statement_has_no_value_before_the_join() {
    let (line, message) = wrong([OK], "let x = 1\nstart t1: x = read 1\nlet y = $x");
    let text = "`$x` has no value yet: its statement was started, and has not been joined";
    assert_eq!((line, message.as_str()), (3, text));
}

#[test]
fn a_started_thread_takes_nothing_but_its_join() {
    for (text, line) in [
        ("start t1: settle\nt1: settle", 2),
        ("start t1: settle\nstart t1: settle", 2),
        ("start t0: settle\nt2: settle\nsettle", 3),
        ("start t1: settle\nt1: join t1", 2),
        ("start t1: settle\nabandon t1\nt[1]: settle", 3),
    ] {
        let (at, message) = wrong([], text);
        assert_eq!(at, line, "{text}");
        assert!(message.contains("was started by line 1, and has not been joined"), "{message}");
    }
    holds([], "start t1: settle\njoin t1\nt1: settle\nstart t1: settle\njoin t1");
}

#[test]
fn what_is_not_joined_is_joined_at_the_end_in_the_order_of_starting_and_judged() {
    let fake = holds(
        [OK, OK, OK, Outcome::Value(1), OK],
        "start t5: x = read 1\nstart t1: settle\nsettle",
    );
    assert_eq!(fake.ops[3..], [Op::Join { thread: 5 }, Op::Join { thread: 1 }]);
    for (outcome, got) in [(Outcome::Null, "null"), (blocked("vmwait"), "blocked in \"vmwait\"")] {
        let Ending::Failed(failure) =
            ends([OK, OK, outcome].map(given), "start t1: read 1\nsettle").1
        else {
            panic!("{outcome:?} held")
        };
        assert_eq!((failure.span.line, failure.got.as_str()), (1, got));
    }
    holds([OK, Outcome::Null], "start t1: kmem_alloc kmem_map 1\nexpect null");
}

#[test]
fn an_expect_below_the_start_judges_the_join_unless_the_join_has_its_own() {
    holds([OK, Outcome::Null], "start t1: kmem_alloc kmem_map 1\nexpect null\njoin t1");
    holds([OK, Outcome::Null], "start t1: kmem_alloc kmem_map 1\nexpect ok\njoin t1\nexpect null");
    let Ending::Failed(failure) =
        ends([OK, OK].map(given), "start t1: settle\nexpect null\njoin t1").1
    else {
        panic!("ok is null")
    };
    assert_eq!(failure.span.line, 2);
}

#[test]
fn a_join_that_finds_a_started_thread_blocked_says_so_and_can_be_repeated() {
    let text = "start t1: x = read 1\njoin t1\nexpect blocked\njoin t1\nassert $x == 3";
    holds([OK, blocked("vmwait"), Outcome::Value(3)], text);
    holds([OK, blocked("vmwait")], "start t1: settle\njoin t1\nexpect blocked\nabandon t1");
    let text = "start t1: settle\njoin t1\nexpect blocked";
    let (_, ending) = ends([OK, blocked("vmwait"), blocked("vmwait")].map(given), text);
    assert_eq!(ending.status(), Status::Failed);
}

#[test]
fn what_was_started_begins_before_the_script_looks_at_the_guest() {
    for look in ["check", "inspect maps", "dump x"] {
        let fake = holds([], &format!("start t1: settle\n{look}\n{look}\njoin t1"));
        assert_eq!(fake.contexts[1], Context::Rest, "{look}");
        assert_eq!(fake.ops.len(), 3, "{look}");
    }
    let fake = holds([], "start t1: settle\nlet x = v_free_count\nabandon t1");
    assert_eq!(fake.contexts, [Context::Start(1), Context::Rest]);
}

#[test]
fn a_panic_of_a_started_thread_is_judged_by_what_it_was_started_with() {
    for text in [
        "start t1: settle\nexpect panic \"too small\"\nsettle",
        "start t1: settle\nsettle\nexpect panic \"too small\"",
    ] {
        let (_, ending) = ends([given(OK), panic_on("t1")], text);
        assert!(matches!(ending, Ending::ExpectedPanic(_)), "{text}: {ending:?}");
    }
    let (_, ending) = ends([given(OK), panic_on("t1")], "start t1: sleep 5\nt2: settle");
    let Ending::Panicked(_, failure) = ending else { panic!("{ending:?}") };
    assert_eq!((failure.span.line, failure.called.as_deref()), (1, Some("sleep(5)")));
    let (_, ending) = ends(
        [given(OK), panic_on("t2")],
        "start t1: settle\nexpect panic \"too small\"\nt2: settle",
    );
    let Ending::Panicked(_, failure) = ending else { panic!("{ending:?}") };
    assert_eq!(failure.span.line, 3);
}

#[test]
fn a_thread_number_that_only_running_shows_is_checked() {
    assert_eq!(wrong([], "let n = 64\nt[$n]: settle"), (2, "`t[64]` is not a thread".to_owned()));
    assert_eq!(wrong([], "let n = 64\nabandon t[$n]"), (2, "`t[64]` is not a thread".to_owned()));
    let fake = holds([], "repeat 3\nt[$i + 1]: settle\nend");
    assert_eq!(fake.contexts, [1, 2, 3].map(Context::Thread));
}

#[test]
fn now_and_cycles_are_numbers_and_hex_prints_hexadecimal() {
    let source = Source::new("x", "read 1\nlet c = cycles\nprint hex($c+255) now cycles hex(0)");
    let script = parse(&source).expect("it is good");
    let mut printed = Vec::new();
    let mut watch = |step: &Step| printed.extend(step.output.clone());
    let ending = run(
        &script,
        &mut Fake::default(),
        0,
        &Stop::after(std::time::Duration::from_secs(60)),
        &mut watch,
    );
    assert_eq!(ending, Ending::Finished);
    assert_eq!(printed, ["0x106 1000 7 0x0"]);
}

#[test]
fn numbers_are_reported_as_the_script_writes_them() {
    let failure = |text: &str| match ends([], text).1 {
        Ending::Failed(failure) => *failure,
        other => panic!("{text}: {other:?}"),
    };
    let told = failure("let x = 0xdeadbeef\nassert $x == 7");
    assert_eq!(told.got, "0xdeadbeef and 0x7");
    assert_eq!(told.values[0], ("$x".to_owned(), "0xdeadbeef".to_owned()));
    let told = failure("write 8 0xdeadbeef\nread 8\nexpect 0xdead");
    assert_eq!((told.expected.as_str(), told.got.as_str()), ("0xdead", "0xdeadbeef"));
    let told = failure("write 8 9\nread 8\nexpect 7");
    assert_eq!((told.expected.as_str(), told.got.as_str()), ("7", "9"));
    let told = failure("kmem_alloc kmem_map 0x0*0x1000");
    assert_eq!(told.called.as_deref(), Some("kmem_alloc(kmem_map, 0x0)"));
}

#[test]
fn a_preset_name_has_its_value_and_lets_of_it_do_nothing() {
    let source = Source::new("x", "let n = 1\nassert $n == 5\nn = read 1\nassert $n == 0");
    let script = parse_with(&source, &[("n".to_owned(), 5)]).expect("it is good");
    let stop = Stop::after(std::time::Duration::from_secs(60));
    assert_eq!(run(&script, &mut Fake::default(), 0, &stop, &mut |_: &Step| {}), Ending::Finished);
}

#[test]
fn series_are_bounded_whatever_a_script_binds() {
    let (line, message) = wrong([], "repeat 18446744073709551615\nlet a[$i] = $i\nend");
    assert_eq!(
        (line, message.starts_with("the series of this script have 1048576 elements")),
        (2, true),
        "{message}"
    );
    holds([], "repeat 2000000\nlet a[$i % 1000] = $i\nend");
}

/// Wants detail, and no more than two steps.
#[derive(Default)]
struct Two(Vec<Step>);

impl Observer for Two {
    fn detail(&self) -> Detail {
        Detail::Full
    }

    fn step(&mut self, step: &Step) -> Result<(), TooMuch> {
        if self.0.len() == 2 {
            return Err(TooMuch { message: "three steps".to_owned(), expected: "two".to_owned() });
        }
        self.0.push(step.clone());
        Ok(())
    }
}

#[test]
fn a_watcher_sees_arguments_time_and_changes_and_can_end_the_run() {
    let source = Source::new("x", "kmem_alloc kmem_map 8K\nprint 1\nprint 2\nsettle");
    let script = parse(&source).expect("it is good");
    let (mut two, stop) = (Two::default(), Stop::after(std::time::Duration::from_secs(60)));
    let ending = run(&script, &mut Fake::default(), 0, &stop, &mut two);
    let Ending::Script(error) = ending else { panic!("{ending:?}") };
    assert_eq!((error.span.line, error.message.as_str()), (3, "three steps"));
    let seen: Vec<_> =
        two.0.iter().map(|step| step.seen.clone().expect("detail was asked for")).collect();
    assert_eq!(two.0[0].arguments, ["kmem_map", "8192"]);
    assert_eq!(
        (seen[0].now, seen[0].changed.as_slice()),
        (1000, [("v_free_count", 1000, 998)].as_slice())
    );
    assert!(seen[1].changed.is_empty());
}
