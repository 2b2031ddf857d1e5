//! The public harness: what a test's guest is judged by in the end, what expectations say when they
//! fail, scripts as tests, and what happens where there is no KVM.

mod scratch;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use vmkern::testing::{self, Balance, CallFailure, CallResult, Calls as _, TestGuest};
use vmkern::{
    Context, Guest, GuestError, GuestVirt, KernReturn, MallocFlags, MapId, MapKind, Op, Outcome,
    ThreadId,
};

const PAGE: u64 = 4096;
const T1: ThreadId = ThreadId::nth::<1>();
const T2: ThreadId = ThreadId::nth::<2>();
const NOWAIT: MallocFlags = MallocFlags::NOWAIT;

const fn crosses_threads<T: Send + Sync>() {}

/// An error that can go anywhere: into a box, out of a thread, through `?`.
const fn is_error<T: std::error::Error + Send + Sync + 'static>() {}

const _: () = {
    crosses_threads::<TestGuest>();
    crosses_threads::<testing::Started<Option<GuestVirt>>>();
    crosses_threads::<Balance>();
    is_error::<testing::CallError>();
    is_error::<testing::ScriptFailure>();
};

/// The words of the panic that `test` ends with.
fn panic_of(test: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(test)).expect_err("it panics");
    match payload.downcast::<String>() {
        Ok(words) => *words,
        Err(payload) => (*payload.downcast::<&str>().expect("a panic has words")).to_owned(),
    }
}

/// Does damage that FreeBSD of 2008 does not prevent: frees a range whose pages are still entered,
/// so two pages are lost.
fn lose_pages(guest: &mut TestGuest) -> CallResult<GuestVirt> {
    let addr = guest.kmem_alloc_nofault(MapId::KERNEL, 4 * PAGE)?.expect("there is room");
    guest.pmap_qenter(addr, 2)?;
    guest.kmem_free(MapId::KERNEL, addr, 4 * PAGE)?;
    Ok(addr)
}

/// A pageable map of a page, full, with `t1` waiting in it.
fn full_map(guest: &mut TestGuest) -> CallResult<(MapId, GuestVirt)> {
    let map = guest.kmem_suballoc(MapId::KERNEL, PAGE, MapKind::User)?;
    let addr = guest.kmem_alloc_wait(map, PAGE)?.expect("the map is empty");
    Ok((map, addr))
}

#[test]
fn the_check_at_the_end_of_a_test_finds_damage() {
    let mut lost = GuestVirt::new(0);
    let words = panic_of(|| {
        let mut guest = TestGuest::new();
        lost = lose_pages(&mut guest).expect("the kernel lets it happen");
    });
    let last = format!("the last call: kmem_free(kernel_map, {lost}, 16384) on t0, at ");
    for part in ["vmm/tests/testing.rs:", "page-lost", &last, "save_dump", "into_unchecked()"] {
        assert!(words.contains(part), "no {part:?} in: {words}");
    }
}

#[test]
fn a_guest_that_is_given_away_and_one_of_a_test_that_fails_are_not_checked() {
    let mut guest = TestGuest::new();
    lose_pages(&mut guest).expect("the kernel lets it happen");
    assert!(panic_of(|| guest.assert_whole()).contains("page-lost"));
    drop(guest.into_unchecked());
    let words = panic_of(|| {
        let mut guest = TestGuest::new();
        lose_pages(&mut guest).expect("the kernel lets it happen");
        panic!("the test's own words");
    });
    assert_eq!(words, "the test's own words");
}

#[test]
fn a_thread_that_is_still_blocked_fails_the_test_unless_it_was_expected() -> CallResult<()> {
    let mut guest = TestGuest::new();
    let (map, _) = full_map(&mut guest)?;
    let words = panic_of(|| {
        let _waits = guest.start(T1).kmem_alloc_wait(map, PAGE).expect("it is sent");
        drop(guest);
    });
    assert!(words.contains("t1 is blocked in \"vmmaps\""), "{words}");
    assert!(words.contains("guest.expect_blocked(t1, \"vmmaps\")"), "{words}");

    let mut guest = TestGuest::new();
    let (map, _) = full_map(&mut guest)?;
    let _waits = guest.start(T1).kmem_alloc_wait(map, PAGE)?;
    guest.expect_blocked(T1, "vmmaps");
    Ok(())
}

#[test]
fn an_expectation_to_be_blocked_fails_with_what_the_thread_does_instead() -> CallResult<()> {
    let mut guest = TestGuest::new();
    let words = panic_of(|| guest.expect_blocked(T1, "vmmaps"));
    assert_eq!(words, "t1 is not blocked in \"vmmaps\": it does nothing; blocked are: none");
    let (map, addr) = full_map(&mut guest)?;
    let waits = guest.start(T1).kmem_alloc_wait(map, PAGE)?;
    assert_eq!(waits.thread(), T1);
    let words = panic_of(|| guest.expect_blocked(T1, "vmwait"));
    assert!(words.contains("\"vmwait\": kmem_alloc_wait("), "{words}");
    assert!(words.contains("4096) sleeps in \"vmmaps\""), "{words}");
    assert!(words.ends_with("blocked are: t1 in \"vmmaps\""), "{words}");
    guest.kmem_free_wakeup(map, addr, PAGE)?;
    let words = panic_of(|| guest.expect_blocked(T1, "vmmaps"));
    assert!(words.contains(&format!("4096) returned {:#x}", addr.get())), "{words}");
    Ok(())
}

#[test]
fn a_started_call_is_joined_with_its_answer() -> CallResult<()> {
    let mut guest = TestGuest::new();
    let (map, addr) = full_map(&mut guest)?;
    let waits = guest.start(T1).kmem_alloc_wait(map, PAGE)?;
    let sleeps = guest.start(T2).sleep(1000)?;
    assert!(format!("{waits:?}").ends_with("4096) on t1"), "{waits:?}");
    sleeps.join(&mut guest)?;
    guest.expect_blocked(T1, "vmmaps");
    guest.kmem_free_wakeup(map, addr, PAGE)?;
    assert_eq!(waits.join(&mut guest)?, Some(addr));
    let stuck = guest.start(T2).kmem_alloc_wait(map, PAGE)?;
    let error = stuck.join(&mut guest).expect_err("nobody wakes it");
    assert!(matches!(error.failure(), CallFailure::Blocked(_)), "{error}");
    guest.expect_blocked(T2, "vmmaps");
    Ok(())
}

#[test]
fn calls_run_where_they_are_said_to() -> CallResult<()> {
    let mut guest = TestGuest::launch(Guest::builder().tunable("vm.kmem_size", 1 << 20));
    let addr = guest.on(T1).kmem_malloc(MapId::KMEM, 1 << 20, NOWAIT)?.expect("it is empty");
    assert_eq!(guest.in_interrupt().kmem_malloc(MapId::KMEM, PAGE, NOWAIT)?, None);
    guest.on_lowmem().kmem_free(MapId::KMEM, addr, PAGE)?;
    let got = guest.kmem_malloc(MapId::KMEM, PAGE, MallocFlags::WAITOK)?;
    assert_eq!(got, Some(addr), "the handler made room");
    let error = guest.on(T1).kmem_alloc_wait(MapId::KMEM, PAGE).expect_err("a system map");
    assert_eq!(error.context(), Context::Thread(1));
    assert!(matches!(error.failure(), CallFailure::Kernel(KernReturn::InvalidArgument)));
    assert_eq!(
        format!("{error:?}"),
        "kmem_alloc_wait(kmem_map, 4096) on t1: the kernel answered KERN_INVALID_ARGUMENT"
    );
    Ok(())
}

#[test]
fn a_plain_guest_takes_the_same_calls() -> CallResult<()> {
    let mut guest = Guest::builder().launch().expect("a guest can be launched");
    let addr = guest.kmem_alloc(MapId::KERNEL, PAGE)?.expect("there is room");
    guest.write(addr, 7)?;
    assert_eq!(guest.read(addr)?, 7);
    assert!(guest.kernel_vtop(addr)?.is_some());
    assert_eq!(guest.perform::<Outcome>(Op::Settle)?, Outcome::Ok);
    let error = guest.verify(addr, PAGE, 1).expect_err("it holds something else");
    assert!(matches!(error.failure(), CallFailure::Mismatch { .. }), "{error}");
    Ok(())
}

#[test]
fn an_expected_panic_is_returned_and_one_with_other_words_shows_both() -> CallResult<()> {
    let mut guest = TestGuest::new();
    let nowhere = GuestVirt::new(0x1000);
    let crash = guest.on(T1).expect_panic("page fault").read(nowhere);
    assert_eq!((crash.cr2, crash.thread_name.as_deref()), (nowhere, Some("t1")));
    drop(guest);

    let words = panic_of(|| {
        let mut guest = TestGuest::new();
        guest.expect_panic("kmem_map too small").read(nowhere);
    });
    for part in ["read(0x1000) on t0", "\"kmem_map too small\"", "it said \"page fault: read"] {
        assert!(words.contains(part), "no {part:?} in: {words}");
    }
    let words = panic_of(|| {
        TestGuest::new().expect_panic("page fault").nop();
    });
    assert_eq!(words, "nop() on t0 was expected to panic with \"page fault\", and it answered ok");
    Ok(())
}

#[test]
fn a_death_that_came_otherwise_is_expected_afterwards() -> CallResult<()> {
    let mut guest = TestGuest::new();
    let words = panic_of(|| drop(guest.expect_dead("page fault")));
    assert!(words.ends_with("panicked with \"page fault\", and it lives"), "{words}");
    let addr = GuestVirt::new(0x1000);
    guest.submit(ThreadId::MAIN, Op::Read { addr }).expect("it is sent");
    let answer = guest.next_response();
    assert!(matches!(answer, Err(GuestError::Crashed(_))), "{answer:?}");
    let words = panic_of(|| drop(guest.expect_dead("kmem_map too small")));
    assert!(words.contains("it died: ") && words.contains("page fault"), "{words}");
    assert_eq!(guest.expect_dead("page fault").cr2, addr);
    Ok(())
}

#[test]
fn a_death_that_nobody_expected_fails_the_test_with_the_kernels_report() {
    let words = panic_of(|| {
        let mut guest = TestGuest::new();
        let error = guest.read(GuestVirt::new(0x1000)).expect_err("the kernel dies");
        assert!(matches!(error.failure(), CallFailure::Guest(GuestError::Crashed(_))));
        assert!(error.to_string().starts_with("read(0x1000) on t0: "), "{error}");
    });
    for part in [
        "the test did not expect it",
        "page fault",
        "expect_panic",
        "that failed, at ",
        "read(0x1000) on t0: ",
    ] {
        assert!(words.contains(part), "no {part:?} in: {words}");
    }
}

#[test]
fn a_balance_tells_what_was_not_freed() -> CallResult<()> {
    let mut guest = TestGuest::new();
    let before = Balance::of(&guest);
    let addr = guest.kmem_malloc(MapId::KMEM, 2 * PAGE, NOWAIT)?.expect("it is empty");
    let words = panic_of(|| before.assert_back(&guest));
    for part in ["entries of kmem_map 1, before 0", "bytes of kmem_map 8192, before 0"] {
        assert!(words.contains(part), "no {part:?} in: {words}");
    }
    guest.kmem_free(MapId::KMEM, addr, 2 * PAGE)?;
    before.assert_back(&guest);
    Ok(())
}

/// A report without what is different each time.
fn timeless(report: &str) -> String {
    let cut = |line: &str| match (line.find(" ("), line.find(" ms, status")) {
        (Some(open), Some(end)) => format!("{}{}", &line[..open], &line[end..]),
        _ => line.to_owned(),
    };
    report.lines().map(|line| cut(line) + "\n").collect()
}

#[test]
fn a_script_that_fails_is_told_as_the_command_tells_it() {
    let scratch = Scratch::new();
    for (name, text, status) in [
        ("failed.kmem", "print \"before\"\na = kmem_alloc kernel_map 4K\nread $a\nexpect 1\n", 1),
        ("mistake.kmem", "kmem_aloc kernel_map 4K\n", 2),
        ("panicked.kmem", "guest memory=16M\nread 0x1000\n", 3),
        (
            "damaged.kmem",
            "a = kmem_alloc_nofault kernel_map 16K\npmap_qenter $a 2\n\
             kmem_free kernel_map $a 16K\n",
            1,
        ),
        (
            "guest.kmem",
            "guest memory=8M vcpus=2 vm.kmem_size=4096\nassert v_page_count > 9999\n",
            1,
        ),
    ] {
        let path = scratch.file(name, text);
        let failure = testing::script(&path).expect_err(name);
        assert_eq!(failure.status() as u8, status, "{failure}");
        let command = Command::new(env!("CARGO_BIN_EXE_vmkern"))
            .args(["test", "--check", &path])
            .stdin(Stdio::null())
            .output()
            .expect("the command can be started");
        let told = String::from_utf8(command.stderr).expect("the report is UTF-8");
        // The line on the whole suite comes last.
        let told = told.rsplit_once("\n\n").map_or(&*told, |(report, _)| report).trim_end();
        // Where the kernel stood, in cycles and addresses, is the same; times are not.
        assert_eq!(timeless(failure.report()).trim_end(), timeless(told).trim_end(), "{name}");
        assert_eq!(format!("{failure:?}"), format!("\n{failure}"));
    }
}

#[test]
fn a_script_that_holds_passes_and_one_that_is_not_there_fails() {
    let scratch = Scratch::new();
    let text = "guest vm.kmem_size=1048576\nassert kmem_map.max == kmem_map.min + 1M\n";
    testing::script(scratch.file("holds.kmem", text)).expect("it holds");
    testing::script_text(text).expect("it holds");
    let failure = testing::script(scratch.path("none.kmem")).expect_err("there is no such file");
    assert!(failure.report().contains("cannot read") && failure.status() as u8 == 2, "{failure}");
}

/// A test for the tests below, which run it on a host without KVM.
#[test]
fn may_be_skipped() -> CallResult<()> {
    let Some(mut guest) = testing::guest() else { return Ok(()) };
    guest.nop()
}

/// As the one above.
#[test]
fn script_may_be_skipped() -> Result<(), testing::ScriptFailure> {
    testing::script_text("kmem_alloc kernel_map 4K\n")
}

/// As the one above.
#[test]
fn must_run() -> CallResult<()> {
    TestGuest::new().nop()
}

/// Runs `test`, of this program, where `/dev` is empty; `policy` is the value of VMKERN_KVM.
fn without_kvm(test: &str, policy: Option<&str>) -> Output {
    let empty_dev = "mount -t tmpfs none /dev && ! [ -e /dev/kvm ] && exec \"$@\"";
    let program = env::current_exe().expect("the program knows its file");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", empty_dev, "sh"]).arg(program);
    command.args(["--exact", test]).env_remove("VMKERN_KVM").stdin(Stdio::piped());
    command.envs(policy.map(|policy| ("VMKERN_KVM", policy)));
    command.output().expect("unshare is there")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_kvm_a_test_fails_unless_skipping_is_asked_for_and_a_skip_is_told() {
    for test in ["may_be_skipped", "script_may_be_skipped"] {
        for policy in [None, Some("require")] {
            let output = without_kvm(test, policy);
            assert!(!output.status.success(), "{}", out(&output));
            assert!(out(&output).contains("this host has no /dev/kvm"), "{}", out(&output));
        }
        let output = without_kvm(test, Some("skip"));
        assert!(output.status.success(), "{}", out(&output));
        let told = err(&output);
        assert!(told.starts_with("vmm/tests/testing.rs:") && told.lines().count() == 1, "{told}");
        assert!(told.contains("skipped, as VMKERN_KVM=skip: this host has no /dev/kvm"), "{told}");
    }
    let output = without_kvm("must_run", Some("skip"));
    assert!(!output.status.success(), "{}", out(&output));
    assert!(out(&output).contains("testing::guest()"), "{}", out(&output));
}

#[test]
fn any_other_value_of_the_variable_is_an_error_with_kvm_too() {
    for test in ["may_be_skipped", "script_may_be_skipped"] {
        for value in ["", "maybe", "SKIP"] {
            let program = env::current_exe().expect("the program knows its file");
            let mut command = Command::new(program);
            command.args(["--exact", test]).env("VMKERN_KVM", value);
            let output = command.output().expect("the program can be started");
            assert!(!output.status.success(), "{value:?}: {}", out(&output));
            let wanted = format!("must be `require` (the default) or `skip`, got {value:?}");
            assert!(out(&output).contains(&wanted), "{value:?}: {}", out(&output));
        }
    }
}
