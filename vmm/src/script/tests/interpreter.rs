//! The interpreter: a line at a time.

use std::time::Duration;

use vmkern_abi::control::{Context, Op, Outcome, WaitMessage};

use super::fake::{BASE, Fake, given, panic, run_on};
use crate::script::{Ending, Interpreter, Judging, Progress, Step, Stop, TargetError};

/// Gives `lines` to an interpreter on `fake` one by one, up to the first error.
fn by_lines(fake: &mut Fake, lines: &str) -> (Ending, Vec<Step>) {
    let stop = Stop::after(Duration::from_secs(3600));
    let mut steps = Vec::new();
    let mut observe = |step: &Step| steps.push(step.clone());
    let mut interpreter = Interpreter::new("test.kmem", &[], fake, 0, &stop, &mut observe);
    let ending = match lines.lines().try_for_each(|line| interpreter.line(line).map(drop)) {
        Ok(()) => interpreter.end(),
        Err(ending) => *ending,
    };
    (ending, steps)
}

#[test]
fn lines_one_by_one_come_to_the_same_as_the_whole_script() {
    for text in [
        "",
        "let a = 1\nassert $a == 2",
        "a = kmem_malloc kmem_map 4K\n\n# judged\nexpect null\nread $a",
        "a = kmem_malloc kmem_map 0\nexpect null\nassert $a == 0",
        "kmem_malloc kmem_map 0",
        "repeat 3\nb[$i] = kmem_malloc kmem_map 4K*$i\nexpect $b[0]\nend",
        "repeat 2\n repeat 2\n print $i\n end\nend\nprint \"end\"",
        "start t1: x = kmem_alloc kernel_map 4K\nexpect null\njoin t1",
        "m = kmem_suballoc kernel_map 1M\nprint $m.min\ncheck\nx = check\nassert $x == 0",
        "vtop 0xffffff8000000000\ndump /full/x",
        "a = read 1\nexpect 0\nabandon t3",
    ] {
        let (mut whole, mut parts) = (Fake::default(), Fake::default());
        assert_eq!(by_lines(&mut parts, text), run_on(&mut whole, text), "{text}");
        assert_eq!((parts.ops, parts.contexts), (whole.ops, whole.contexts), "{text}");
    }
}

#[test]
fn a_repeat_is_done_at_its_end() {
    let (mut fake, stop) = (Fake::default(), Stop::after(Duration::from_secs(3600)));
    let mut count = 0;
    let mut observe = |_: &Step| count += 1;
    let mut interpreter = Interpreter::new("", &[], &mut fake, 0, &stop, &mut observe);
    let lines = ["repeat 2", "repeat 3", "settle", "end", "# still open", "end", "settle"];
    let progress = lines.map(|line| interpreter.line(line).expect("it is good"));
    let (done, more) = (Progress::Done, Progress::More);
    assert_eq!(progress, [more, more, more, more, more, done, done]);
    assert_eq!(interpreter.line("repeat 5").expect("it is good"), more);
    assert!(matches!(interpreter.end(), Ending::Script(_)), "it is open");
    assert_eq!(count, 7);
}

#[test]
fn a_line_that_is_wrong_changes_nothing() {
    let (mut fake, stop) = (Fake::default(), Stop::after(Duration::from_secs(3600)));
    let mut observe = |_: &Step| ();
    let mut interpreter = Interpreter::new("", &[], &mut fake, 0, &stop, &mut observe);
    let mut is_wrong =
        |line: &str| matches!(interpreter.line(line).map_err(|over| *over), Err(Ending::Script(_)));
    assert!(!is_wrong("a = kmem_malloc kmem_map 0"));
    assert!(is_wrong("expect nul") && !is_wrong("expect null") && !is_wrong("repeat 2"));
    assert!(is_wrong("b = kmem_maloc kmem_map 4K") && !is_wrong("end") && is_wrong("print $b"));
    assert_eq!(interpreter.names().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn whoever_types_goes_on_whatever_a_statement_gave() {
    let mut fake = Fake::default();
    let blocked = || given(Outcome::Blocked { waits_for: WaitMessage::new("vmwait") });
    fake.scripted = [given(Outcome::Null), blocked(), panic("it is over")].into();
    let stop = Stop::after(Duration::from_secs(3600));
    let mut observe = |_: &Step| ();
    let interpreter = Interpreter::new("", &[], &mut fake, 0, &stop, &mut observe);
    let mut shell = interpreter.judging(Judging::Lenient);
    for line in ["a = read 1", "let b = $a", "t1: read 2", "t2: read 3"] {
        shell.line(line).expect("nobody is disappointed");
    }
    assert_eq!(shell.panic().map(|panic| panic.message.as_str()), Some("it is over"));
    let ending = shell.line("expect panic \"over\"").expect_err("the guest is dead");
    assert!(matches!(*ending, Ending::ExpectedPanic(_)), "{ending:?}");
    shell.line("read 4").expect("the target answers");
    let ending = shell.line("expect 7").expect_err("it was 0");
    assert!(matches!(*ending, Ending::Failed(_)), "{ending:?}");
    assert_eq!(shell.outstanding().len(), 1);
    drop(shell);
    // In a loop nobody would see it.
    fake.scripted = [given(Outcome::Null), panic("once more")].into();
    let mut observe = |_: &Step| ();
    let interpreter = Interpreter::new("", &[], &mut fake, 0, &stop, &mut observe);
    let mut shell = interpreter.judging(Judging::Lenient);
    for line in ["repeat 5", "read 1"] {
        assert_eq!(shell.line(line).expect("it is good"), Progress::More);
    }
    let ending = shell.line("end").expect_err("the guest dies");
    assert!(matches!(*ending, Ending::Panicked(..)), "{ending:?}");
}

#[test]
fn a_thread_that_nobody_waits_for_any_more_counts_as_started() {
    let interrupted = || Err(TargetError::Interrupted);
    let mut fake = Fake { scripted: [interrupted(), interrupted()].into(), ..Fake::default() };
    fake.scripted.push_back(given(Outcome::Value(BASE)));
    let stop = Stop::after(Duration::from_secs(3600));
    let mut observe = |_: &Step| ();
    let interpreter = Interpreter::new("", &[], &mut fake, 0, &stop, &mut observe);
    let mut shell = interpreter.judging(Judging::Lenient);
    for line in ["a = sleep 1s", "join t0"] {
        assert_eq!(*shell.line(line).expect_err("it was interrupted"), Ending::Interrupted);
    }
    assert!(matches!(shell.line("read 1"), Err(ending) if matches!(*ending, Ending::Script(_))));
    shell.line("join t0").expect("it answers");
    shell.line("assert $a == 0xffffff8000000000").expect("the join has bound it");
    drop(shell);
    assert_eq!(fake.contexts, [Context::Thread(0); 3]);
    assert!(matches!(fake.ops[..], [Op::Sleep { .. }, Op::Join { .. }, Op::Join { .. }]));
}
