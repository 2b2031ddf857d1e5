//! `vmkern shell`: lines from a pipe, and lines that somebody types at a terminal.

mod pty;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pty::Pty;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

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

#[test]
fn a_session_from_a_pipe_has_no_limit_but_a_line_has_one() {
    let comment = format!("# {}\n", "x".repeat(1 << 10));
    let long = format!("let a = 1\n{}assert $a == 2\n", comment.repeat(5 << 10));
    let output = piped(&[], &long);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("5122 | assert $a == 2"), "{}", err(&output));
    let output = piped(&[], &format!("settle\n#{}", "x".repeat(4 << 20)));
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("a line has more than 4194304 bytes"), "{}", err(&output));
}

#[test]
fn what_several_guest_lines_say_adds_up_and_the_last_one_counts() {
    let lines = "guest memory=128M vcpus=3 kern.hz=100\n# between\nguest vcpus=2 kern.nbuf=16\n\
                 print ncpu hz\nassert v_page_count > 20000\n";
    let output = piped(&[], lines);
    assert_eq!((output.status.code(), out(&output)), (Some(0), "2 100\n"), "{}", err(&output));
    // A line that is wrong has its place, and a guest that cannot be launched ends a script.
    for (lines, status, place) in [
        ("# first\nguest vcpus=2\nguest memroy=8M\n", 2, "shell:3:7: unknown key"),
        ("guest memory=1K\n", 2, "shell:1:7: bad value"),
        ("guest\n", 2, "shell:1:6: `guest` lacks an argument"),
        ("guest vcpus=2\nguest timeout=0\n", 5, ""),
    ] {
        let output = piped(&[], lines);
        assert_eq!(output.status.code(), Some(status), "{lines}: {output:?}");
        assert!(err(&output).contains(place), "{}", err(&output));
    }
}

#[test]
fn the_shells_own_words_take_no_more_than_they_take() {
    for (lines, place) in [
        ("settle\nhelp nonsense\nprint 1\n", "shell:2:6: `nonsense` is not a word of the language"),
        ("help exspect\n", "did you mean `expect`?"),
        ("help read write\n", "shell:1:11: `help` takes no more arguments"),
        ("exit 3\n", "shell:1:6: `exit` takes no more arguments"),
        ("inspect maps all\n", "shell:1:14: `inspect` takes no more arguments"),
        ("check it\n", "shell:1:7: `check` takes no more arguments"),
        ("settle now\n", "shell:1:8: `settle` takes no more arguments"),
    ] {
        let output = piped(&[], lines);
        assert_eq!((output.status.code(), out(&output)), (Some(2), ""), "{lines}: {output:?}");
        assert!(err(&output).contains(place), "{lines}: {}", err(&output));
    }
}

#[test]
fn each_keyword_has_a_help_with_an_example() {
    for word in ["let", "expect", "assert", "repeat", "end", "print", "start", "guest", "intr"] {
        let output = piped(&[], &format!("help {word} # please\n"));
        assert_eq!((output.status.code(), err(&output)), (Some(0), ""), "{word}");
        assert!(out(&output).contains(word) && out(&output).contains("Example\n"), "{output:?}");
    }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

/// A shell at a terminal of its own.
struct Terminal {
    pty: Pty,
    /// How much of the screen has been waited for.
    seen: usize,
}

impl Terminal {
    fn new(args: &[&str], state: &str) -> Self {
        let args: Vec<&str> = ["shell"].iter().chain(args).copied().collect();
        let pty = Pty::new(&args, &[("XDG_STATE_HOME", state), ("TERM", "xterm")]);
        Self { pty, seen: 0 }
    }

    /// Makes the window so wide.
    fn resize(&self, columns: u16) {
        let size = Winsize { ws_row: 25, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.pty.keys, size).expect("it is a terminal");
    }

    /// Everything that has come so far.
    fn all(&self) -> String {
        self.pty.text()
    }

    fn press(&mut self, keys: &str) {
        self.pty.press(keys);
    }

    /// Waits until `text` has come, behind what was waited for before.
    #[track_caller]
    fn see(&mut self, text: &str) {
        let seen = self.seen;
        let missing = |screen: &str| format!("no {text:?} in {:?}", &screen[seen..]);
        let at = self.pty.wait_for(|screen| screen[seen..].find(text), missing);
        self.seen += at + text.len();
    }

    /// Types a line at the prompt.
    #[track_caller]
    fn enter(&mut self, line: &str) {
        self.see("vmkern> ");
        self.press(&format!("{line}\r"));
    }

    #[track_caller]
    fn status(mut self) -> Option<i32> {
        self.pty.status().code()
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
    let screen = shell.all();
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

#[test]
fn what_was_typed_between_two_ctrl_c_keeps_the_second_from_leaving() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&[], utf8(scratch.path()));
    shell.see("vmkern> ");
    shell.press("\x03");
    shell.see("once more");
    shell.see("vmkern> ");
    // A line that is begun, and one that was begun and erased.
    for typed in ["settle", "x\x7f"] {
        shell.press(typed);
        shell.press("\x03");
        shell.see("once more");
        shell.see("vmkern> ");
    }
    shell.press("\x03");
    assert_eq!(shell.status(), Some(130));
}

#[test]
fn whoever_leaves_with_something_unfinished_is_told_and_the_status_is_that_of_run() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&[], utf8(scratch.path()));
    shell.enter("repeat 2");
    shell.see("..> ");
    shell.press("\x04");
    shell.see("a `repeat` without its `end`");
    assert_eq!(shell.status(), Some(2));
    for leave in ["exit\r", "\x04"] {
        let mut shell = Terminal::new(&[], utf8(scratch.path()));
        shell.enter("m = kmem_suballoc kernel_map 4K");
        shell.enter("kmem_alloc_wait $m 4K");
        shell.enter("t1: kmem_alloc_wait $m 4K");
        shell.see("blocked in \"vmmaps\"");
        shell.see("vmkern> ");
        shell.press(leave);
        shell.see("t1 still waits for \"vmmaps\"");
        assert_eq!(shell.status(), Some(1));
    }
    // What is abandoned is finished, and what was started is joined.
    let mut shell = Terminal::new(&[], utf8(scratch.path()));
    shell.enter("start t1: kmem_alloc kernel_map 0");
    shell.enter("m = kmem_suballoc kernel_map 4K");
    shell.enter("t2: kmem_alloc_wait $m 4K");
    shell.enter("t3: kmem_alloc_wait $m 4K");
    shell.enter("abandon t3");
    shell.see("ok");
    shell.see("vmkern> ");
    shell.press("\x04");
    shell.see("joining t1");
    assert_eq!(shell.status(), Some(0));
}

#[test]
fn a_dead_guest_is_mourned_once_and_guest_starts_another() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&["--vcpus", "2"], utf8(scratch.path()));
    shell.enter("a = read 1");
    shell.see("the guest panicked");
    shell.see("`guest` starts another");
    for line in ["settle", "join t0", "t3: kmem_malloc kmem_map 4K"] {
        shell.enter(line);
        shell.see("the guest is dead: `guest` starts another");
    }
    shell.enter("inspect cpus");
    shell.see("cpu");
    // A repeat that is given up leaves `guest` where it was.
    shell.enter("repeat 2");
    shell.see("..> ");
    shell.press("\x03");
    shell.see("once more");
    assert_eq!(shell.all().matches("the guest panicked").count(), 1);
    shell.enter("guest memory=128M");
    shell.enter("print \"cpus\" ncpu");
    shell.see("\ncpus 2");
    shell.enter("assert v_page_count > 20000");
    // The same again, with the options of the one that died.
    shell.enter("read 1");
    shell.see("the guest panicked");
    shell.enter("guest");
    shell.enter("assert v_page_count > 20000");
    shell.enter("print \"alive\" 1");
    shell.see("\nalive 1");
    shell.see("vmkern> ");
    assert!(!shell.all().contains("failed:"), "{}", shell.all());
    shell.press("\x04");
    assert_eq!(shell.status(), Some(0));
}

#[test]
fn a_guest_that_cannot_be_launched_leaves_the_shell_with_the_one_before() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let mut shell = Terminal::new(&[], utf8(scratch.path()));
    shell.enter("guest vcpus=2");
    shell.enter("guest timeout=0");
    shell.see("error:");
    shell.see("as it was before");
    shell.enter("guest vcpus=200");
    shell.see("shell:3:7: bad value");
    shell.enter("print \"cpus\" ncpu");
    shell.see("\ncpus 2");
    shell.enter("guest vcpus=1");
    shell.see("`guest` stands before every other statement");
    shell.see("vmkern> ");
    shell.press("\x04");
    assert_eq!(shell.status(), Some(0));
}

#[test]
fn a_signal_at_the_prompt_ends_the_shell_and_restores_the_terminal() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    for (signal, status) in [("-TERM", 143), ("-HUP", 129)] {
        let mut shell = Terminal::new(&[], utf8(scratch.path()));
        shell.see("\x1b[?2004h");
        shell.press("half a line");
        shell.see("half a line");
        let begin = Instant::now();
        let pid = shell.pty.child.id().to_string();
        let killed = Command::new("kill").args([signal, &pid]).status().expect("kill is there");
        assert!(killed.success(), "{killed}");
        shell.see("\x1b[?2004l");
        let keys = shell.pty.keys.try_clone().expect("there is room");
        assert_eq!(shell.status(), Some(status));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        let modes = tcgetattr(&keys).expect("it is a terminal").local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "{modes:?}");
    }
}

#[test]
fn help_fits_the_terminal() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    for (columns, limit) in [(50, 50), (80, 80), (200, 100)] {
        let mut shell = Terminal::new(&[], utf8(scratch.path()));
        shell.resize(columns);
        shell.enter("help");
        shell.see("Not yet of this kernel");
        shell.see("snapshot");
        shell.see("vmkern> ");
        let all = shell.all();
        let help = all.split("A script has").nth(1).expect("it is there");
        let wide = help.lines().filter(|line| line.chars().count() > limit);
        assert_eq!(wide.collect::<Vec<_>>(), [""; 0], "{columns}");
        shell.press("\x04");
        assert_eq!(shell.status(), Some(0));
    }
}
