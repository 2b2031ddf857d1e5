//! The tour: its chapters, alone and in their order, and a stop at a time. Needs KVM.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use vmkern::tour::CHAPTERS;

const VMKERN: &str = env!("CARGO_BIN_EXE_vmkern");

fn tour(args: &[&str]) -> Output {
    Command::new(VMKERN)
        .args(["run", "--tour"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the command can be started")
}

fn out(output: &Output) -> &str {
    str::from_utf8(&output.stdout).expect("it is UTF-8")
}

fn err(output: &Output) -> &str {
    str::from_utf8(&output.stderr).expect("it is UTF-8")
}

#[test]
fn each_chapter_is_whole_alone_and_explains_what_it_shows() {
    for chapter in &CHAPTERS {
        for memory in ["8M", "64M", "1G"] {
            let output = tour(&[chapter.name, "--memory", memory]);
            let text = out(&output);
            assert_eq!(output.status.code(), Some(0), "{}: {}", chapter.name, err(&output));
            assert!(text.contains(chapter.title), "{text}");
            assert_eq!(text.contains("   panic\n"), chapter.name == "freeing", "{text}");
            let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 80).collect();
            assert!(wide.is_empty(), "{wide:#?}");
            let is_told = text.contains("   returned ");
            assert_eq!(text.matches("   cycles: this KVM").count(), usize::from(is_told), "{text}");
            let (letters, entry) = (text.find("   letters: V valid"), text.find("V RW"));
            assert_eq!(letters.is_some(), entry.is_some(), "{text}");
        }
    }
}

#[test]
fn the_whole_tour_has_all_chapters_in_their_order_and_so_has_a_run_without_a_script() {
    let whole = tour(&[]);
    assert_eq!(whole.status.code(), Some(0), "{}", err(&whole));
    let bare = Command::new(VMKERN).arg("run").output().expect("the command can be started");
    for output in [&whole, &tour(&["all"]), &bare] {
        let places: Vec<_> = CHAPTERS.iter().map(|one| out(output).find(one.title)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
    }
    // What a chapter took it gave back: the check at the end finds nothing, and the next chapter
    // works.
    assert!(out(&whole).contains("   nothing found in 8 maps"), "{}", out(&whole));
}

#[test]
fn a_report_has_the_steps_of_its_chapter_and_how_it_ended() {
    for (name, verb, outcome) in
        [("sleeping", "kmem_suballoc", "finished"), ("freeing", "kmem_malloc", "finished")]
    {
        let output = tour(&[name, "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        assert_eq!((&report["outcome"], &report["status"]), (&outcome.into(), &0.into()));
        assert_eq!(report["steps"][0]["verb"], verb);
        assert_eq!(report["panic"].is_object(), name == "freeing");
    }
}

#[test]
fn a_chapter_that_there_is_not_is_refused_with_those_that_there_are() {
    let output = tour(&["kmem_mallok"]);
    assert_eq!(output.status.code(), Some(2));
    for chapter in &CHAPTERS {
        assert!(err(&output).contains(chapter.name), "{}", err(&output));
    }
    let list = tour(&["list"]);
    assert_eq!((list.status.code(), out(&list).lines().count()), (Some(0), CHAPTERS.len()));
    assert_eq!(tour(&["list", "--json"]).status.code(), Some(2));
    let both = Command::new(VMKERN).args(["run", "--tour", "boot", "x.kmem"]).output();
    assert_eq!(both.expect("the command can be started").status.code(), Some(2));
}

#[test]
fn a_stop_at_a_time_wants_a_terminal() {
    let output = tour(&["boot", "--step"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("--step waits for Enter at a terminal"), "{}", err(&output));
    assert_eq!(out(&output), "");
}

/// A tour at a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn new(args: &[&str]) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("there are terminals");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let theirs =
            open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("it can be opened");
        let stream = || Stdio::from(theirs.try_clone().expect("there is room for a descriptor"));
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", VMKERN, "run", "--tour"])
            .args(args)
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
        Self { child, keys, screen }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many stops have asked for Enter; the number of the last one shown.
    #[track_caller]
    fn see_stops(&self, stops: usize) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.text().matches("Enter goes on").count() < stops {
            assert!(Instant::now() < end, "{}", self.text());
            thread::sleep(Duration::from_millis(10));
        }
        let after = format!("\n{:>2} ", stops + 1);
        assert!(!self.text().contains(&after), "nobody pressed Enter yet: {}", self.text());
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("somebody reads them");
    }

    #[track_caller]
    fn status(mut self) -> (Option<i32>, String) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                // What it wrote last may still be on its way.
                thread::sleep(Duration::from_millis(100));
                return (status.code(), self.text());
            }
            assert!(Instant::now() < end, "the tour does not end: {}", self.text());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn enter_shows_the_next_stop_and_the_time_limit_is_each_stops() {
    let mut terminal = Terminal::new(&["boot", "--step", "--timeout", "1500ms"]);
    for stop in 1..3 {
        terminal.see_stops(stop);
        thread::sleep(Duration::from_millis(1000));
        terminal.press("\r");
    }
    let (status, text) = terminal.status();
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("That is all."), "{text}");
}

#[test]
fn q_leaves_the_tour_and_ctrl_c_interrupts_it() {
    let mut terminal = Terminal::new(&["--step"]);
    terminal.see_stops(1);
    terminal.press("q\r");
    let (status, text) = terminal.status();
    assert_eq!((status, text.contains("error")), (Some(0), false), "{text}");
    let mut terminal = Terminal::new(&["--step"]);
    terminal.see_stops(1);
    terminal.press("\x03");
    let (status, text) = terminal.status();
    assert_eq!(status, Some(130), "{text}");
}
