//! Threads, interrupts, submaps and handlers.

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{Context, MallocFlags, MapId, MapKind, Op, Outcome, WaitMessage};

use super::fake::{BASE, Fake, SUBMAP, given, panic, run_on};
use crate::script::{
    Ending, Failure, Reply, RunReport, Runner, Source, Status, StepReport, TargetError, explain,
};

fn blocked(message: &str) -> Result<Reply, TargetError> {
    given(Outcome::Blocked { waits_for: WaitMessage::new(message) })
}

fn scripted(replies: impl IntoIterator<Item = Result<Reply, TargetError>>) -> Fake {
    Fake { scripted: replies.into_iter().collect(), ..Fake::default() }
}

/// Runs `text` with these replies; it must hold.
fn holds(replies: impl IntoIterator<Item = Result<Reply, TargetError>>, text: &str) -> Fake {
    let mut fake = scripted(replies);
    let (ending, _) = run_on(&mut fake, text);
    assert_eq!(ending, Ending::Finished, "{text}");
    fake
}

fn fails(replies: impl IntoIterator<Item = Result<Reply, TargetError>>, text: &str) -> Failure {
    match run_on(&mut scripted(replies), text).0 {
        Ending::Failed(failure) => *failure,
        other => panic!("{text}: {other:?}"),
    }
}

/// Line, column and message of the error that running `text` shows.
fn wrong(
    replies: impl IntoIterator<Item = Result<Reply, TargetError>>,
    text: &str,
) -> (usize, usize, String) {
    match run_on(&mut scripted(replies), text).0 {
        Ending::Script(error) => {
            (error.span.line, Source::new("", text).column(error.span), error.message)
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn statements_run_where_they_say() {
    let fake = holds(
        [],
        "settle\nt0: settle\nt63: settle\nintr: settle\non_lowmem kmem_free kmem_map 8K 4K\n\
         t5: uma_reclaim",
    );
    let thread = Context::Thread;
    assert_eq!(
        fake.contexts,
        [thread(0), thread(0), thread(63), Context::Interrupt, Context::Lowmem, thread(5)]
    );
    assert_eq!(
        fake.ops[4],
        Op::KmemFree { map: MapId::KMEM, addr: GuestVirt::new(8192), size: 4096 }
    );
    assert_eq!(fake.ops[5], Op::UmaReclaim);
}

#[test]
fn a_statement_that_blocks_unexpectedly_fails_with_what_it_waits_for() {
    for expect in [
        "",
        "expect ok",
        "expect null",
        "expect 0",
        "expect error KERN_FAILURE",
        "expect panic \"x\"",
    ] {
        let failure = fails([blocked("vmwait")], &format!("t1: settle\n{expect}"));
        assert_eq!(failure.got, "blocked in \"vmwait\"", "{expect}");
    }
}

#[test]
fn blocked_that_was_expected_fails_where_the_statement_finished() {
    let failure = fails([given(Outcome::Value(4096))], "t1: kmem_alloc kmem_map 1\nexpect blocked");
    assert_eq!((failure.expected.as_str(), failure.got.as_str()), ("blocked", "0x1000"));
}

#[test]
fn a_join_gives_the_result_and_binds_the_name_of_the_blocked_statement() {
    let fake = holds(
        [blocked("vmwait"), given(Outcome::Ok), given(Outcome::Value(BASE))],
        "let a = 1\nt1: a = kmem_malloc kmem_map 4K\nexpect blocked\nkmem_free kmem_map 0 4K\n\
         join t1\nassert $a == kmem_map.min\nt1: settle",
    );
    assert_eq!(fake.ops[2], Op::Join { thread: 1 });
    assert_eq!(fake.ops.len(), 4);
}

#[test]
fn a_join_can_bind_a_name_of_its_own_and_be_judged() {
    holds(
        [blocked("vmwait"), given(Outcome::Value(7))],
        "t1: a = read 0\nexpect blocked\nb = join t1\nexpect 7\nassert $a + $b == 14",
    );
    holds(
        [blocked("vmwait"), given(Outcome::Null)],
        "t1: kmem_alloc kmem_map 1\nexpect blocked\njoin t1\nexpect null",
    );
    let failure =
        fails([blocked("vmwait"), given(Outcome::Null)], "t1: settle\nexpect blocked\njoin t1");
    assert_eq!((failure.span.line, failure.got.as_str()), (3, "null"));
    assert_eq!(failure.called.as_deref(), Some("join(t1)"));
}

#[test]
fn an_element_is_bound_under_the_index_that_it_had_when_its_statement_was_made() {
    holds(
        [
            blocked("vmmaps"),
            blocked("vmmaps"),
            given(Outcome::Value(70)),
            given(Outcome::Value(80)),
        ],
        "repeat 1\nt1: a[$i + 3] = settle\nexpect blocked\nt2: a[$i] = settle\nexpect blocked\n\
         end\njoin t1\njoin t2\nassert $a[3] == 70\nassert $a[0] == 80",
    );
}

#[test]
fn a_join_that_finds_the_thread_blocked_still_can_be_expected_and_repeated() {
    holds(
        [blocked("nokva"), blocked("vmwait"), given(Outcome::Value(5))],
        "t1: a = settle\nexpect blocked\nb = join t1\nexpect blocked\njoin t1\nassert $a == $b",
    );
    let failure =
        fails([blocked("nokva"), blocked("vmwait")], "t1: settle\nexpect blocked\njoin t1");
    assert_eq!(failure.got, "blocked in \"vmwait\"");
}

#[test]
fn the_name_of_a_blocked_statement_has_no_value_before_the_join() {
    let (line, column, message) =
        wrong([blocked("vmwait")], "let a = 1\nt1: a = settle\nexpect blocked\nlet b = $a");
    assert_eq!((line, column), (4, 9));
    assert_eq!(message, "`$a` has no value: its statement gave blocked in \"vmwait\"");
}

#[test]
fn another_statement_for_a_blocked_thread_is_a_script_error_with_what_it_waits_for() {
    for (text, line) in [
        ("settle\nexpect blocked\nsettle", 3),
        ("t7: settle\nexpect blocked\nt1: settle\nt7: settle", 4),
        ("t7: settle\nexpect blocked\nabandon t7\nt7: settle", 4),
        ("t7: settle\nexpect blocked\nt7: join t7", 3),
        ("t7: settle\nexpect blocked\nt7: on_lowmem settle", 3),
    ] {
        let (at, _, message) = wrong([blocked("vmwait")], text);
        assert_eq!(at, line, "{text}");
        assert!(message.contains("still blocked by line 1: it waits for \"vmwait\""), "{message}");
    }
}

#[test]
fn t0_can_be_joined_and_abandoned_by_a_script_that_names_no_other_thread() {
    holds(
        [blocked("vmwait"), given(Outcome::Ok), given(Outcome::Ok)],
        "settle\nexpect blocked\non_lowmem settle\njoin t0\nsettle",
    );
    holds([blocked("vmwait")], "settle\nexpect blocked\nabandon t0");
}

#[test]
fn there_is_nothing_to_join_or_abandon_of_a_thread_that_is_not_blocked() {
    for verb in ["join", "abandon"] {
        let (line, _, message) = wrong([], &format!("t1: settle\n{verb} t1"));
        assert_eq!(
            (line, message.as_str()),
            (2, "t1 is not blocked: each statement of it has given its result")
        );
    }
    assert_eq!(
        wrong([blocked("x"), given(Outcome::Ok)], "t1: settle\nexpect blocked\njoin t1\njoin t1").0,
        4
    );
}

#[test]
fn a_script_that_ends_with_blocked_threads_fails_and_says_who_waits_for_what() {
    let failure = fails(
        [blocked("vmwait"), blocked("vmwait")],
        "settle\nt1: settle\nexpect blocked\nassert 1 == 1",
    );
    assert_eq!(failure.got, "blocked in \"vmwait\"");
    let failure =
        fails([blocked("vmwait"), blocked("vmmaps")], "t1: settle\nexpect blocked\nassert 1 == 1");
    assert_eq!((failure.span.line, failure.got.as_str()), (1, "t1 still waits for \"vmmaps\""));
    let failure = fails(
        ["vmwait", "vmmaps", "vmwait", "vmmaps"].map(blocked),
        "t1: settle\nexpect blocked\nt2: settle\nexpect blocked",
    );
    assert_eq!(failure.expected, "2 threads joined or abandoned before the end");
    assert_eq!(
        failure.got,
        "t1 (line 1) still waits for \"vmwait\", t2 (line 3) still waits for \"vmmaps\""
    );
}

#[test]
fn a_thread_that_was_woken_before_the_end_is_not_blocked_at_the_end() {
    let fake = holds([blocked("vmwait"), given(Outcome::Null)], "t1: settle\nexpect blocked");
    assert_eq!(fake.ops[1], Op::Join { thread: 1 });
}

#[test]
fn an_abandoned_thread_may_stay_blocked_and_may_still_be_joined() {
    let fake = holds([blocked("vmwait")], "t1: settle\nexpect blocked\nabandon t1");
    assert_eq!(fake.ops.len(), 1);
    holds(
        [blocked("vmwait"), given(Outcome::Ok)],
        "t1: settle\nexpect blocked\nabandon t1\njoin t1\nt1: settle",
    );
}

#[test]
fn a_panic_in_a_join_is_judged_like_any_other() {
    let text = "t1: settle\nexpect blocked\njoin t1\nexpect panic \"kmem_map too small\"";
    let (ending, _) = run_on(
        &mut scripted([blocked("vmwait"), panic("kmem_malloc(1): kmem_map too small: 0")]),
        text,
    );
    assert!(matches!(ending, Ending::ExpectedPanic(_)), "{ending:?}");
    for text in ["t1: settle\nexpect blocked\njoin t1", "t1: settle\nexpect blocked"] {
        let (ending, _) = run_on(&mut scripted([blocked("vmwait"), panic("boom")]), text);
        assert_eq!(ending.status(), Status::Panicked);
    }
}

#[test]
fn failures_and_timeouts_tell_which_threads_wait_for_what() {
    let waiting = ("t1".to_owned(), "blocked by line 1, waits for \"vmwait\"".to_owned());
    let failure = fails([blocked("vmwait")], "t1: settle\nexpect blocked\nassert 1 == 2");
    assert!(failure.values.contains(&waiting), "{:?}", failure.values);
    let timeout =
        || Err(TargetError::Timeout { limit: std::time::Duration::from_secs(60), at: None });
    let text = "t1: settle\nexpect blocked\nt2: settle";
    let (ending, _) = run_on(&mut scripted([blocked("vmwait"), timeout()]), text);
    let Ending::Timeout(failure) = &ending else { panic!("{ending:?}") };
    assert!(failure.values.contains(&waiting), "{:?}", failure.values);
    let told = explain(&ending, &Source::new("x", text), "");
    assert!(told.contains("pagedaemon") && told.contains("sleeps in \"psleep\""), "{told}");
}

#[test]
fn what_runs_on_no_thread_cannot_block() {
    for text in ["intr: settle\nexpect blocked", "on_lowmem settle\nexpect blocked"] {
        assert_eq!(
            run_on(&mut scripted([blocked("vmwait")]), text).0.status(),
            Status::Broken,
            "{text}"
        );
    }
}

#[test]
fn kmem_suballoc_binds_a_map() {
    let fake = holds(
        [],
        "m = kmem_suballoc kernel_map 1M\ns[2] = kmem_suballoc $m 64K system\n\
         kmem_alloc_wait $m 4K\nkmem_malloc $s[1 + 1] 4K NOWAIT\nkmem_free_wakeup $m $m.min 4K\n\
         assert $m.min == kernel_map.min + 1M\nassert $s[2].max_free == 5\nassert $m > 0",
    );
    let flags = MallocFlags::NOWAIT;
    assert_eq!(
        fake.ops,
        [
            Op::KmemSuballoc { parent: MapId::KERNEL, size: 1 << 20, kind: MapKind::User },
            Op::KmemSuballoc { parent: SUBMAP, size: 64 << 10, kind: MapKind::System },
            Op::KmemAllocWait { map: SUBMAP, size: 4096 },
            Op::KmemMalloc { map: SUBMAP, size: 4096, flags },
            Op::KmemFreeWakeup { map: SUBMAP, addr: GuestVirt::new(BASE + 0x10_0000), size: 4096 },
        ]
    );
}

#[test]
fn a_map_that_a_blocked_kmem_suballoc_makes_is_bound_at_the_join() {
    holds(
        [blocked("vmwait"), given(Outcome::Value(SUBMAP.0))],
        "t1: m = kmem_suballoc kernel_map 1M\nexpect blocked\nn = join t1\nassert $m.min == $n.min",
    );
}

#[test]
fn a_name_that_is_bound_to_a_number_again_is_no_map_any_more() {
    let (line, column, message) =
        wrong([], "m = kmem_suballoc kernel_map 1M\nlet m = 7\nkmem_alloc_wait $m 4K");
    assert_eq!((line, column, message.as_str()), (3, 17, "`$m` is not a map, but the number 7"));
    assert_eq!(wrong([], "m = kmem_suballoc kernel_map 1M\nlet m = 7\nlet x = $m.size").2, message);
}

#[test]
fn a_failure_shows_maps_and_handlers_as_the_script_wrote_them() {
    let replies = [given(Outcome::Value(SUBMAP.0)), given(Outcome::Null)];
    let failure =
        fails(replies, "m = kmem_suballoc kernel_map 1M\nlet n = 4096\nkmem_alloc_wait $m $n");
    assert_eq!(failure.called.as_deref(), Some("kmem_alloc_wait($m, 4096)"));
    let failure = fails([given(Outcome::Null)], "let n = 4096\non_lowmem kmem_free kmem_map $n 4K");
    assert_eq!(failure.called.as_deref(), Some("on_lowmem(kmem_free(kmem_map, 4096, 4096))"));
    assert_eq!(failure.values, [("$n".to_owned(), "4096".to_owned())]);
    let failure = fails([given(Outcome::Null)], "kmem_suballoc kernel_map 4K system");
    assert_eq!(failure.called.as_deref(), Some("kmem_suballoc(kernel_map, 4096, system)"));
}

#[test]
fn json_names_threads_and_what_they_wait_for() {
    let mut fake = scripted([blocked("vmwait"), given(Outcome::Ok), given(Outcome::Value(16))]);
    let (ending, steps) = run_on(
        &mut fake,
        "t12: a = settle\nexpect blocked\nintr: settle\njoin t12\nt3: on_lowmem settle\n\
         abandon t12",
    );
    assert_eq!(steps[2].runner.to_string(), "t12");
    assert_eq!(steps[1].runner, Runner::Interrupt);
    assert_eq!(ending.status(), Status::Usage);
    let steps: Vec<StepReport> = steps.into_iter().map(Into::into).collect();
    let report = RunReport::ended(
        &ending,
        steps,
        std::collections::BTreeMap::new(),
        crate::script::EnvironmentReport::asked(1, 0, 0),
    );
    let json = serde_json::to_value(&report).expect("a report is JSON");
    let text = |step: usize| {
        (json["steps"][step]["thread"].clone(), json["steps"][step]["result"].clone())
    };
    let result =
        |kind: &str, value: Option<&str>| serde_json::json!({ "kind": kind, "value": value });
    assert_eq!(text(0), ("t12".into(), result("blocked", Some("vmwait"))));
    assert_eq!(text(1), ("intr".into(), result("ok", None)));
    assert_eq!(text(2), ("t12".into(), result("value", Some("0x10"))));
    assert_eq!(text(3), ("t3".into(), result("ok", None)));
}
