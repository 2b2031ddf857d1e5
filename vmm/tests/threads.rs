//! Threads that sleep, through the library's public interface and through the command.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use vmkern::abi::layout::ThreadState;
use vmkern::guest::RequestError;
use vmkern::{Context, Guest, GuestError, GuestVirt, MapId, MapKind, Op, Outcome, ThreadId};

const T1: ThreadId = ThreadId::nth::<1>();

fn call(guest: &mut Guest, thread: u16, op: Op) -> Outcome {
    let thread = ThreadId::try_from(thread).expect("it exists");
    guest.call(thread, op).unwrap_or_else(|error| panic!("{op:?}: {error}")).outcome
}

fn value(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Value(value) => value,
        other => panic!("{other:?} instead of a value"),
    }
}

/// A guest in which t1 waits for room in a map of one page, with the map and the page.
fn waiting() -> (Guest, MapId, GuestVirt) {
    let mut guest = Guest::builder().launch().unwrap_or_else(|error| panic!("{error}"));
    let suballoc = Op::KmemSuballoc { parent: MapId::KERNEL, size: 4096, kind: MapKind::User };
    let map = MapId(value(call(&mut guest, 0, suballoc)));
    let op = Op::KmemAllocWait { map, size: 4096 };
    let page = GuestVirt::new(value(call(&mut guest, 0, op)));
    let Outcome::Blocked { waits_for } = call(&mut guest, 1, op) else {
        panic!("the map has room for two")
    };
    assert_eq!(waits_for.to_string(), "vmmaps");
    (guest, map, page)
}

#[test]
fn a_blocked_operation_is_outstanding_until_a_join_brings_its_answer() {
    let (mut guest, map, page) = waiting();
    assert_eq!(guest.in_flight(), 0);
    assert_eq!(
        guest.blocked().map(|(thread, why)| (thread, why.to_string())).collect::<Vec<_>>(),
        [(T1, "vmmaps".to_owned())]
    );
    let refused = guest.call(T1, Op::Nop).expect_err("the thread sleeps");
    assert!(
        matches!(refused, GuestError::BadRequest(RequestError::ThreadBlocked(T1))),
        "{refused}"
    );
    let join = Op::Join { thread: 1 };
    assert!(matches!(call(&mut guest, 0, join), Outcome::Blocked { .. }));
    assert_eq!(
        call(&mut guest, 0, Op::KmemFreeWakeup { map, addr: page, size: 4096 }),
        Outcome::Ok
    );
    assert_eq!(value(call(&mut guest, 0, join)), page.get());
    assert_eq!(guest.blocked().count(), 0);
    assert_eq!(call(&mut guest, 1, Op::Nop), Outcome::Ok);
    let refused = guest.call(ThreadId::MAIN, join).expect_err("nothing is outstanding");
    assert!(
        matches!(refused, GuestError::BadRequest(RequestError::NothingToJoin(T1))),
        "{refused}"
    );
}

#[test]
fn threads_can_be_read_out_of_memory_with_what_they_wait_for() {
    let (guest, _, _) = waiting();
    let threads = guest.threads().expect("the list is sound");
    let sleeper = threads.iter().find(|thread| thread.tid == 1).expect("it has been made");
    assert_eq!((sleeper.label().as_str(), sleeper.state), ("t1", ThreadState::Sleeping));
    assert_eq!(sleeper.waits_for.map(|why| why.to_string()).as_deref(), Some("vmmaps"));
    let daemon =
        threads.iter().find(|thread| thread.label() == "pagedaemon").expect("every kernel has one");
    assert_eq!(daemon.state, ThreadState::Sleeping);
    assert_eq!(
        guest.meter().expect("the counters can be read").thread_count.get(),
        threads.len() as u64
    );
}

#[test]
fn a_map_of_kmem_suballoc_can_be_looked_into_and_another_address_is_no_map() {
    let (guest, map, page) = waiting();
    let stats = guest.map_stats(map).expect("the map is sound");
    assert_eq!((stats.min, stats.size, stats.max_free), (page, 4096, 0));
    assert_eq!(guest.map_entries(map).expect("the map is sound").len(), 1);
    assert!(guest.map_stats(MapId(map.0 + 64)).is_err());
}

#[test]
fn an_operation_runs_in_an_interrupt_handler() {
    let mut guest = Guest::builder().launch().unwrap_or_else(|error| panic!("{error}"));
    let op = Op::KmemMalloc { map: MapId::KMEM, size: 4096, flags: vmkern::MallocFlags::NOWAIT };
    let response = guest.call_in(Context::Interrupt, op).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(response.outcome, Outcome::Value(_)), "{response:?}");
}

/// A guest with a map of two pages, both allocated by t0.
fn full(vcpus: u32) -> (Guest, MapId, [GuestVirt; 2]) {
    let mut guest =
        Guest::builder().vcpus(vcpus).launch().unwrap_or_else(|error| panic!("{error}"));
    let suballoc = Op::KmemSuballoc { parent: MapId::KERNEL, size: 8192, kind: MapKind::User };
    let map = MapId(value(call(&mut guest, 0, suballoc)));
    let op = Op::KmemAllocWait { map, size: 4096 };
    let pages = [0; 2].map(|_| GuestVirt::new(value(call(&mut guest, 0, op))));
    (guest, map, pages)
}

fn start(guest: &mut Guest, thread: u16, op: Op) {
    let response =
        guest.call_in(Context::Start(thread), op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
    assert_eq!(response.outcome, Outcome::Ok);
}

#[test]
fn what_is_started_begins_with_the_next_request_in_the_order_of_starting_on_any_number_of_cpus() {
    for vcpus in [1, 2, 4] {
        let (mut guest, map, [first, second]) = full(vcpus);
        for addr in [first, second] {
            assert_eq!(
                call(&mut guest, 0, Op::KmemFreeWakeup { map, addr, size: 4096 }),
                Outcome::Ok
            );
        }
        let threads =
            |guest: &Guest| guest.meter().expect("the counters can be read").thread_count.get();
        let (before, alloc) = (threads(&guest), Op::KmemAllocWait { map, size: 4096 });
        start(&mut guest, 5, alloc);
        start(&mut guest, 3, alloc);
        let used = guest.map_stats(map).expect("the map is sound").size;
        assert_eq!((used, threads(&guest)), (0, before), "nothing has begun");
        // There is no room for a third.
        assert!(matches!(call(&mut guest, 4, alloc), Outcome::Blocked { .. }), "{vcpus} CPUs");
        for (thread, page) in [(3, second), (5, first)] {
            assert_eq!(value(call(&mut guest, 0, Op::Join { thread })), page.get(), "{vcpus} CPUs");
        }
    }
}

#[test]
fn what_was_started_keeps_its_thread_until_a_join() {
    let (mut guest, map, [first, _]) = full(1);
    start(&mut guest, 1, Op::KmemFreeWakeup { map, addr: first, size: 4096 });
    for context in [Context::Thread(1), Context::Start(1)] {
        let refused = guest.call_in(context, Op::Nop).expect_err("the thread has something to do");
        assert!(
            matches!(refused, GuestError::BadRequest(RequestError::ThreadBlocked(T1))),
            "{refused}"
        );
    }
    assert_eq!(call(&mut guest, 0, Op::Join { thread: 1 }), Outcome::Ok);
    assert_eq!(call(&mut guest, 1, Op::Nop), Outcome::Ok);
}

#[test]
fn the_answer_of_rest_and_an_interrupt_come_after_what_was_started() {
    for context in [Context::Rest, Context::Interrupt] {
        let (mut guest, map, [first, _]) = full(2);
        start(&mut guest, 1, Op::KmemFreeWakeup { map, addr: first, size: 4096 });
        guest.call_in(context, Op::Nop).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(guest.map_stats(map).expect("the map is sound").size, 4096, "{context:?}");
    }
}

#[test]
fn time_stands_still_for_a_started_sleep_that_nobody_waits_for() {
    let mut guest = Guest::builder().launch().unwrap_or_else(|error| panic!("{error}"));
    let ticks = |guest: &Guest| guest.meter().expect("the counters can be read").ticks.get();
    let before = ticks(&guest);
    start(&mut guest, 1, Op::Sleep { micros: 2_000_000 });
    assert_eq!(call(&mut guest, 0, Op::Nop), Outcome::Ok);
    assert_eq!(ticks(&guest), before);
    let hz = guest.meter().expect("the counters can be read").hz.get();
    call(&mut guest, 0, Op::Sleep { micros: 1_000_000 });
    assert_eq!(ticks(&guest), before + hz);
    call(&mut guest, 0, Op::Join { thread: 1 });
    assert_eq!(ticks(&guest), before + 2 * hz);
}

fn run(args: &[&str], script: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmkern"))
        .arg("run")
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

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

const BLOCKED: &str = "m = kmem_suballoc kernel_map 4K\nkmem_alloc_wait $m 4K\n\
                       t3: kmem_alloc_wait $m 4K\nexpect blocked\n";

#[test]
fn a_script_that_ends_with_a_blocked_thread_gives_status_1_and_the_wait_message() {
    let output = run(&[], BLOCKED);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("t3 still waits for \"vmmaps\""), "{}", text(&output));
    let output = run(&["--json"], BLOCKED);
    let step = &json(&output)["steps"][2];
    assert_eq!(
        (&step["thread"], &step["result"]["kind"], &step["result"]["value"]),
        (&"t3".into(), &"blocked".into(), &"vmmaps".into())
    );
    assert_eq!(run(&[], &format!("{BLOCKED}abandon t3\n")).status.code(), Some(0));
}

#[test]
fn a_script_that_ends_with_a_thread_that_waits_for_pages_names_vmwait() {
    let script = "t4: kmem_alloc kernel_map v_page_count+1*4K\nexpect blocked\n";
    let output = run(&["--memory", "8M"], script);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("t4 still waits for \"vmwait\""), "{}", text(&output));
}

/// A sleep in `nokva` ends by itself, so its thread never counts as blocked: it shows when the time
/// limit is reached.
#[test]
fn a_run_that_is_stopped_while_a_thread_waits_for_address_space_names_nokva() {
    let script = "let all = kmem_map.max - kmem_map.min\nt2: kmem_malloc kmem_map $all+4K WAITOK\n";
    let output = run(&["--time", "real", "--timeout", "300ms"], script);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    let lines: Vec<_> = text(&output)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert!(lines.contains(&"= t2 sleeps in \"nokva\"".to_owned()), "{}", text(&output));
}

#[test]
fn a_statement_for_a_blocked_thread_gives_status_2_with_line_and_wait_message() {
    let output = run(&[], &format!("{BLOCKED}t3: settle\n"));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    for part in ["standard input:5:1", "t3 is still blocked by line 3", "vmmaps", "`join t3` first"]
    {
        assert!(text(&output).contains(part), "{part} is not in:\n{}", text(&output));
    }
}

#[test]
fn nokva_ends_in_a_panic_after_8_lowmem_events_and_9_virtual_seconds() {
    let script = "let all = kmem_map.max - kmem_map.min\nprint ticks lowmem_events\n\
                  kmem_malloc kmem_map $all+4K WAITOK\nexpect panic \"kmem_map too small\"\n";
    let output = run(&["--json"], script);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let report = json(&output);
    let before: Vec<u64> = report["steps"][0]["output"]
        .as_str()
        .expect("print prints")
        .split(' ')
        .map(|number| number.parse().expect("a number"))
        .collect();
    let stat = |name: &str| report["stats"][name].as_u64().expect("a number");
    assert_eq!(stat("lowmem_events") - before[1], 8);
    assert_eq!(stat("ticks") - before[0], 9 * stat("hz"));
    assert_eq!(report["panic"]["thread"], "t0");
}
