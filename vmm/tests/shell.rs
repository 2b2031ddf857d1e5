//! `vmkern shell`: lines from a pipe, and lines that somebody types at a terminal.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// `vmkern shell ARGS` with `lines` on its standard input.
fn piped(args: &[&str], lines: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.arg("shell").args(args).env("NO_COLOR", "1").env_remove("CLICOLOR_FORCE");
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = streams.spawn().expect("the command can be started");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A shell that has ended reads no more.
    let _ = stdin.write_all(lines.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn out(output: &Output) -> &str {
    str::from_utf8(&output.stdout).expect("it is UTF-8")
}

fn err(output: &Output) -> &str {
    str::from_utf8(&output.stderr).expect("it is UTF-8")
}

#[test]
fn lines_from_a_pipe_end_with_the_status_that_run_ends_with() {
    for (lines, status) in [
        ("", 0),
        ("a = kmem_malloc kmem_map 4K\nprint $a\nexit\nnever\n", 0),
        ("kmem_malloc kmem_map 0\n", 1),
        ("kmem_malloc kmem_map 0\nexpect null\n", 0),
        ("settle\nkmem_maloc kmem_map 4K\n", 2),
        ("repeat 3\nsettle\n", 2),
        ("read 1\n", 3),
        ("read 0xffffff8000000000\nexpect panic \"page fault\"\n", 0),
        (
            "m = kmem_suballoc kernel_map 4K\nkmem_alloc_wait $m 4K\nt1: kmem_alloc_wait $m 4K\n\
             expect blocked\n",
            1,
        ),
        ("start t1: x = kmem_alloc kernel_map 4K\nexpect null\n", 1),
    ] {
        let output = piped(&[], lines);
        assert_eq!(output.status.code(), Some(status), "{lines}: {output:?}");
    }
    assert_eq!(piped(&["--memory", "1K"], "").status.code(), Some(2));
    let output = piped(&["--timeout", "200ms", "--time", "real"], "sleep 5s\n");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

#[test]
fn a_pipe_sees_what_is_printed_and_no_prompt() {
    let lines = "repeat 2\n  a[$i] = kmem_malloc kmem_map 4K\n  print hex($a[$i])\nend\n\
                 inspect maps\ncheck\n";
    let output = piped(&[], lines);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = out(&output);
    assert!(text.starts_with("0xffffff80"), "{text}");
    assert!(text.contains("kmem_map") && !text.contains("vmkern>"), "{text}");
    assert_eq!(err(&output), "");
}

#[test]
fn errors_have_their_place_among_all_lines() {
    let output = piped(&[], "# a comment\nhelp settle\n\nlet a = 1\nassert $a == 2\n");
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(text.contains("shell:5") && text.contains("5 | assert $a == 2"), "{text}");
    assert!(out(&output).starts_with("settle\n"), "{output:?}");
    let output = piped(&[], "settle\n  read $b\n");
    assert!(err(&output).contains("2 |   read $b\n  |        ^^"), "{output:?}");
}

#[test]
fn a_guest_line_before_every_statement_takes_another_guest() {
    let lines = "# first\nguest memory=128M vcpus=2 kern.hz=100\nprint ncpu hz\n\
                 assert v_page_count > 20000\nguest vcpus=1\n";
    let output = piped(&["--vcpus", "3"], lines);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(out(&output), "3 100\n");
    assert!(err(&output).contains("shell:5:1: `guest` stands before"), "{output:?}");
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

/// A shell at a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<String>>,
    /// How much of the screen has been waited for.
    seen: usize,
}

impl Terminal {
    fn new(args: &[&str], state: &str) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let theirs =
            open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("it can be opened");
        let stream = || Stdio::from(theirs.try_clone().expect("there is room for a descriptor"));
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_vmkern"), "shell"])
            .args(args)
            .env("XDG_STATE_HOME", state)
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .expect("setsid of util-linux is there");
        drop(theirs);
        let keys = File::from(ours);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (keys.try_clone().expect("there is room"), Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error when the other side is closed.
            while let Ok(len @ 1..) = from.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..len]);
                to.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { child, keys, screen, seen: 0 }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("somebody reads them");
    }

    /// Waits until `text` has come, behind what was waited for before.
    #[track_caller]
    fn see(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(at) = screen[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            assert!(Instant::now() < end, "no {text:?} in {:?}", &screen[self.seen..]);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types a line at the prompt.
    #[track_caller]
    fn enter(&mut self, line: &str) {
        self.see("vmkern> ");
        self.press(&format!("{line}\r"));
    }

    #[track_caller]
    fn status(mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return status.code();
            }
            assert!(Instant::now() < end, "the shell does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn whoever_types_sees_what_each_statement_gives_and_goes_on() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&["--vcpus", "2"], utf8(scratch.path()));
    shell.enter("a = kmem_malloc kmem_map 4K");
    shell.see("0xffffff80");
    shell.enter("kmem_malloc kmem_map 0");
    shell.see("null");
    shell.enter("expect ok");
    shell.see("failed:");
    shell.enter("kmem_maloc kmem_map 4K");
    shell.see("did you mean `kmem_malloc`?");
    shell.enter("repeat 2");
    shell.see("..> ");
    shell.press("print \"round\" $i\r");
    shell.see("..> ");
    shell.press("end\r");
    shell.see("round 1");
    // The verb and the name are completed.
    shell.enter("veri\t $a 4K zero");
    shell.see("ok");
    shell.enter("inspect map kmem_map");
    shell.see("kmem_map");
    shell.enter("check");
    shell.see("ok");
    shell.enter("read 1");
    shell.see("the guest panicked");
    shell.enter("inspect cpus");
    shell.see("cpu");
    shell.enter("exit");
    assert_eq!(shell.status(), Some(3));
    let history = fs::read_to_string(scratch.path().join("vmkern/history")).expect("it is kept");
    assert!(history.contains("verify $a 4K zero"), "{history}");
}

#[test]
fn ctrl_c_stops_waiting_and_leaves_the_thread_to_a_join() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&["--time", "real"], utf8(scratch.path()));
    shell.enter("t1: sleep 2s");
    shell.see("\n");
    thread::sleep(Duration::from_millis(300));
    shell.press("\x03");
    shell.see("interrupted");
    shell.see("t1: started by line 1");
    // Others go on meanwhile.
    shell.enter("a = kmem_malloc kmem_map 4K");
    shell.see("0xffffff80");
    shell.enter("t1: settle");
    shell.see("`join t1` first");
    shell.enter("join t1");
    shell.see("ok");
    // A repeat ends.
    shell.enter("repeat 100");
    shell.see("..> ");
    shell.press("sleep 200ms\r");
    shell.see("..> ");
    shell.press("end\r");
    shell.see("ok");
    shell.press("\x03");
    shell.see("interrupted");
    shell.see("vmkern> ");
    shell.press("\x03");
    assert_eq!(shell.status(), Some(130));
}

#[test]
fn lines_typed_ahead_or_pasted_are_done_one_after_the_other() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&["--time", "real"], utf8(scratch.path()));
    shell.enter("sleep 300ms");
    shell.press("print \"typed\" 1\rprint \"typed\" 2\r");
    shell.see("ok");
    shell.see("typed 1");
    shell.see("typed 2");
    // A guest line in the middle of what is pasted takes nothing away from it.
    let mut shell = Terminal::new(&[], utf8(scratch.path()));
    shell.see("vmkern> ");
    shell.press("\x1b[200~guest vcpus=2\nprint \"cpus\" ncpu\nprint \"all\" 3\x1b[201~\r");
    shell.see("cpus 2");
    shell.see("all 3");
    shell.press("\x04");
    assert_eq!(shell.status(), Some(0));
}

#[test]
fn what_is_pasted_behind_a_line_that_is_stopped_is_not_done() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&["--time", "real"], utf8(scratch.path()));
    shell.see("vmkern> ");
    shell.press("\x1b[200~print \"begins\"\nsleep 5s\nprint \"goes on\"\x1b[201~\r");
    shell.see("\nbegins");
    thread::sleep(Duration::from_millis(300));
    shell.press("\x03");
    shell.see("interrupted");
    shell.enter("print \"the end\"");
    shell.see("\nthe end");
    let screen = shell.screen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(!screen.contains("\ngoes on"), "{screen}");
}

#[test]
fn ctrl_d_leaves_and_ctrl_c_at_the_prompt_does_when_it_comes_twice() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&[], utf8(scratch.path()));
    shell.see("vmkern> ");
    shell.press("\x04");
    assert_eq!(shell.status(), Some(0));
    // Where no history can be written there is none.
    let mut shell = Terminal::new(&[], "/proc");
    shell.enter("repeat 2");
    shell.see("..> ");
    shell.press("\x03");
    shell.see("once more");
    shell.enter("settle");
    shell.see("ok");
    shell.see("vmkern> ");
    shell.press("\x03");
    shell.see("vmkern> ");
    shell.press("\x03");
    assert_eq!(shell.status(), Some(130));
}
