//! Shortages of the host, signals, and odd input: the command ends with a status and the limit's
//! name, never by a panic, a signal, a hang or a lost result.

mod scratch;

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scratch::Scratch;
use vmkern::{Guest, MallocFlags, MapId, Op, Outcome, ThreadId};

const VMKERN: &str = env!("CARGO_BIN_EXE_vmkern");
/// A script that succeeds.
const GOOD: &str = "kmem_malloc kmem_map 4K NOWAIT\n";

fn fifo(scratch: &Scratch, name: &str) -> String {
    let path = scratch.path(name);
    assert!(Command::new("mkfifo").arg(&path).status().expect("there is mkfifo").success());
    path
}

fn feed(mut child: Child, input: &str) -> Output {
    // A command that refuses its command line may not read its input.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the command ends")
}

/// `command` with `input` on standard input, and everything piped.
fn piped(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started")
}

/// `vmkern ARGS` in a shell that has first run `limit`.
fn limited(limit: &str, args: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{limit} && exec \"$0\" \"$@\""), VMKERN]).args(args);
    command
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed by a signal: {output:?}"))
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that the host refused, with the limit's name.
fn refused(output: &Output, limit: &str) {
    let text = err(output);
    assert_eq!(status(output), 4, "{text}");
    assert!(text.contains(limit) && text.lines().count() == 1, "{text}");
}

#[test]
fn each_limit_of_open_files_gives_status_0_or_4_with_the_limits_name() {
    let mut seen = [false; 2];
    // With fewer the program itself does not start.
    for files in 4..=40 {
        for vcpus in ["1", "4"] {
            let run = ["run", "--vcpus", vcpus, "-"];
            let output = feed(piped(&mut limited(&format!("ulimit -n {files}"), &run)), GOOD);
            if status(&output) == 0 {
                seen[0] = true;
            } else {
                refused(&output, &format!("RLIMIT_NOFILE is {files}"));
                seen[1] = true;
            }
        }
    }
    assert_eq!(seen, [true; 2], "some limits are enough, and some are not");
}

#[test]
fn a_limit_of_file_sizes_below_the_guests_ram_gives_status_4_with_the_limits_name() {
    // In units of 1024 bytes.
    for (limit, memory) in
        [("0", "8M"), ("1", "64M"), ("8191", "8M"), ("65535", "64M"), ("1000000", "64G")]
    {
        let output = feed(
            piped(&mut limited(&format!("ulimit -f {limit}"), &["run", "--memory", memory, "-"])),
            GOOD,
        );
        refused(&output, "RLIMIT_FSIZE");
    }
    let output = feed(piped(&mut limited("ulimit -f 8192", &["run", "--memory", "8M", "-"])), GOOD);
    assert_eq!(status(&output), 0, "{}", err(&output));
}

#[test]
fn a_limit_of_address_space_below_the_guests_ram_gives_status_4_with_the_limits_name() {
    for (limit, memory) in [("1000000", "1G"), ("4000000", "4G"), ("4000000", "64G")] {
        let output = feed(
            piped(&mut limited(&format!("ulimit -v {limit}"), &["run", "--memory", memory, "-"])),
            GOOD,
        );
        refused(&output, "RLIMIT_AS");
    }
}

/// `vmkern ARGS` as a user with a limit of `threads` threads. Root has no such limit, so root runs
/// it as another user who may open the same files.
fn with_threads(threads: u32, args: &[&str]) -> Command {
    let limit = format!("ulimit -u {threads}");
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return limited(&limit, args);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "61234", "--regid", "61234", "--clear-groups"]);
    command.args(["--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override"]);
    command.args(["bash", "-c", &format!("{limit} && exec \"$0\" \"$@\""), VMKERN]).args(args);
    command
}

#[test]
fn each_limit_of_threads_gives_status_0_or_4_with_the_limits_name() {
    let scratch = Scratch::new();
    let suite = scratch.dir().to_owned();
    for name in ["a.kmem", "b.kmem", "c.kmem"] {
        scratch.file(name, GOOD);
    }
    for threads in 1..=7 {
        let runs: [&[&str]; 4] = [
            &["run", "-"],
            &["run", "--vcpus", "3", "-"],
            &["doctor"],
            &["test", "-j", "3", &suite],
        ];
        for args in runs {
            let output = feed(piped(&mut with_threads(threads, args)), GOOD);
            let text = format!(
                "{args:?} with {threads} threads: {}{}",
                String::from_utf8_lossy(&output.stdout),
                err(&output)
            );
            assert!([0, 4].contains(&status(&output)), "{text}");
            assert!(
                status(&output) == 0 || text.contains(&format!("RLIMIT_NPROC is {threads}")),
                "{text}"
            );
        }
    }
    let output = feed(piped(&mut with_threads(1, &["run", "-"])), GOOD);
    refused(&output, "RLIMIT_NPROC is 1");
}

/// Stops and continues `child` again and again, until it has ended.
fn disturb(child: &Child, over: &AtomicBool) {
    let pid = i32::try_from(child.id()).expect("it is a process number");
    while !over.load(Ordering::SeqCst) {
        for signal in [libc::SIGSTOP, libc::SIGCONT] {
            // SAFETY: a signal to a child that has not been waited for.
            unsafe { libc::kill(pid, signal) };
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn a_launch_that_is_stopped_and_continued_goes_on() {
    let scratch = Scratch::new();
    let script = scratch.file("a.kmem", GOOD);
    for args in [&["run", &script][..], &["run", "--vcpus", "2", &script], &["doctor"]] {
        for round in 0..15 {
            let mut command = Command::new(VMKERN);
            let child = piped(command.args(args));
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| disturb(&child, &over));
                wait_ended(child.id());
                over.store(true, Ordering::SeqCst);
            });
            let output = child.wait_with_output().expect("the command ends");
            assert_eq!(status(&output), 0, "{args:?}, round {round}: {}", err(&output));
        }
    }
}

/// Waits until process `pid`, a child, has ended, and leaves its status to be collected.
fn wait_ended(pid: u32) {
    // SAFETY: the structure lives through the call, and all zero is a value of it.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        assert_eq!(libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOWAIT), 0);
    }
}

#[test]
fn time_limits_that_no_clock_can_tell_are_for_ever() {
    for limit in [
        "9223372036854775807us",
        "9223372036854775807s",
        "9223372036854775808",
        "99999999999999999999ms",
    ] {
        let output = feed(piped(Command::new(VMKERN).args(["run", "--timeout", limit, "-"])), GOOD);
        assert_eq!(status(&output), 0, "{limit}: {}", err(&output));
    }
    for limit in
        [Duration::MAX, Duration::from_secs(1 << 63), Duration::from_micros(i64::MAX as u64)]
    {
        let mut guest = Guest::builder().timeout(limit).launch().expect("this host can run guests");
        guest.restart_clock();
        drop(guest.pause_within(limit).expect("it can be paused"));
        let op = Op::KmemMalloc { map: MapId::KMEM, size: 4096, flags: MallocFlags::NOWAIT };
        assert!(matches!(
            guest.call(ThreadId::MAIN, op).expect("it lives").outcome,
            Outcome::Value(_)
        ));
    }
}

#[test]
fn sleeps_that_no_clock_can_tell_end_in_virtual_time_and_at_the_time_limit_in_real_time() {
    for time in [
        "9223372036854775807us",
        "9223372036854775808",
        "18446744073709551615",
        "9223372036854775807s",
    ] {
        let sleeps = format!("sleep {time}\nsleep {time}\nsleep 1s\nsleep {time}\n{GOOD}");
        for hz in ["kern.hz=1", "kern.hz=100", "kern.hz=10000"] {
            let output = feed(piped(Command::new(VMKERN).args(["run", "--set", hz, "-"])), &sleeps);
            assert_eq!(status(&output), 0, "{time} at {hz}: {}", err(&output));
        }
        let real = ["run", "--time", "real", "--timeout", "500ms", "-"];
        let output = feed(piped(Command::new(VMKERN).args(real)), &sleeps);
        assert_eq!(status(&output), 5, "{time}: {}", err(&output));
    }
}

#[test]
fn guests_of_little_memory_and_many_cpus_boot() {
    for (memory, vcpus) in [("8M", "57"), ("8M", "64"), ("12M", "60"), ("16M", "64")] {
        let args = ["run", "--memory", memory, "--vcpus", vcpus, "-"];
        let output = feed(piped(Command::new(VMKERN).args(args)), GOOD);
        assert_eq!(status(&output), 0, "{memory}, {vcpus} CPUs: {}", err(&output));
    }
}

#[test]
fn a_script_from_a_pipe_is_read_to_its_end_or_to_the_time_limit() {
    let scratch = Scratch::new();
    let fifo = fifo(&scratch, "script");
    let output = Command::new(VMKERN)
        .args(["run", "--timeout", "300ms", &fifo])
        .output()
        .expect("it can be started");
    assert_eq!(status(&output), 5, "nobody writes: {}", err(&output));
    assert!(err(&output).contains("within the time limit of 300ms"), "{}", err(&output));

    let child = piped(Command::new(VMKERN).args(["run", &fifo]));
    fs::write(&fifo, GOOD).expect("somebody reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(status(&output), 0, "{}", err(&output));

    let mut silent = piped(Command::new(VMKERN).args(["run", "--timeout", "300ms", "-"]));
    let input = silent.stdin.take();
    let output = silent.wait_with_output().expect("it ends although its input does not");
    assert_eq!(status(&output), 5, "{}", err(&output));
    drop(input);
}

#[test]
fn an_input_without_an_end_is_refused() {
    let endless = [
        "exec \"$0\" run /dev/zero",
        "exec \"$0\" run - </dev/zero",
        "yes 'print 1' | \"$0\" run -",
        "exec \"$0\" check --script /dev/zero",
        "exec \"$0\" inspect --script /dev/zero maps",
    ];
    for command in endless {
        let output =
            Command::new("bash").args(["-c", command, VMKERN]).output().expect("there is a shell");
        let text = err(&output);
        assert_eq!(status(&output), 2, "{command}: {text}");
        assert!(text.contains("longer than 4194304 bytes"), "{command}: {text}");
    }
}

#[test]
fn what_is_not_a_regular_file_is_not_a_kernel_and_is_not_waited_for() {
    let scratch = Scratch::new();
    let fifo = fifo(&scratch, "kernel");
    for (path, kind) in
        [(fifo.as_str(), "a FIFO"), ("/dev/zero", "a device"), ("/proc", "a directory")]
    {
        let output = feed(piped(Command::new(VMKERN).args(["run", "--kernel", path, "-"])), GOOD);
        let text = err(&output);
        assert_eq!(status(&output), 2, "{path}: {text}");
        assert!(text.contains(&format!("it is {kind}")), "{path}: {text}");
    }
}

#[test]
fn a_suite_passes_over_what_is_not_a_file() {
    let scratch = Scratch::new();
    scratch.file("a.kmem", GOOD);
    fifo(&scratch, "fifo.kmem");
    let _socket = UnixListener::bind(scratch.path("socket.kmem")).expect("a socket can be made");
    let link = |to: &str, name: &str| {
        std::os::unix::fs::symlink(to, scratch.path(name)).expect("a link can be made")
    };
    link("nobody@nowhere.1", ".#a.kmem");
    link("/dev/zero", "zero.kmem");
    link("a.kmem", "link.kmem");
    let output =
        Command::new(VMKERN).arg("test").arg(scratch.dir()).output().expect("it can be started");
    let text = err(&output);
    assert_eq!(status(&output), 0, "{text}");
    for name in ["fifo.kmem", "socket.kmem", ".#a.kmem", "zero.kmem"] {
        let passed =
            text.lines().any(|line| line.starts_with("passed over: ") && line.contains(name));
        assert!(passed, "{name} is not passed over:\n{text}");
    }
    assert!(text.contains("2 passed, 0 failed"), "a link to a script is a script:\n{text}");
}

fn suite(scratch: &Scratch, scripts: usize) -> &str {
    for script in 0..scripts {
        scratch.file(&format!("{script}.kmem"), GOOD);
    }
    scratch.dir()
}

#[test]
fn a_suite_with_more_jobs_than_descriptors_waits_for_them() {
    let scratch = Scratch::new();
    let dir = suite(&scratch, 24);
    for (files, jobs) in [(24, "8"), (32, "24"), (64, "24")] {
        let limit = format!("ulimit -n {files}");
        let output =
            limited(&limit, &["test", "-j", jobs, dir]).output().expect("there is a shell");
        assert_eq!(status(&output), 0, "{files} descriptors: {}", err(&output));
        assert!(err(&output).contains("24 passed, 0 failed"), "{}", err(&output));
    }
    let output =
        limited("ulimit -n 9", &["test", "-j", "24", dir]).output().expect("there is a shell");
    assert_eq!(status(&output), 4, "too few for one guest: {}", err(&output));
    assert!(err(&output).contains("RLIMIT_NOFILE is 9"), "{}", err(&output));
}

#[test]
fn a_script_that_prints_for_ever_takes_no_results_of_the_others() {
    let scratch = Scratch::new();
    let dir = suite(&scratch, 3);
    scratch.file(
        "print.kmem",
        "repeat 18446744073709551615\nprint \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"\nend\n",
    );
    let junit = scratch.path("report.xml");
    let args = ["test", "--timeout", "2", "--junit", &junit, dir];
    let output = limited("ulimit -v 1500000", &args).output().expect("there is a shell");
    let text = err(&output);
    assert_eq!(status(&output), 1, "{text}");
    assert!(text.contains("3 passed, 1 failed"), "{}", text.lines().last().unwrap_or_default());
    let report = fs::read_to_string(junit).expect("the report was written");
    assert!(report.len() < 4 << 20, "the report has {} bytes", report.len());
    assert!(report.contains("more lines were printed"), "what was left out is told");
}
