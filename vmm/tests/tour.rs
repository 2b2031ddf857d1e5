//! The tour: its chapters, alone and in their order, and a stop at a time. Needs KVM.

mod pty;

use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use pty::Pty;
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
struct Terminal(Pty);

impl Terminal {
    fn new(args: &[&str]) -> Self {
        let args: Vec<&str> = ["run", "--tour"].iter().chain(args).copied().collect();
        Self(Pty::new(&args, &[]))
    }

    /// Waits until so many stops have asked for Enter; the number of the last one shown.
    #[track_caller]
    fn see_stops(&self, stops: usize) {
        let asked = |text: &str| text.matches("Enter goes on").count() >= stops;
        let text = self.0.wait_for(|text| asked(text).then(|| text.to_owned()), str::to_owned);
        let after = format!("\n{:>2} ", stops + 1);
        assert!(!text.contains(&after), "nobody pressed Enter yet: {text}");
    }

    fn press(&mut self, keys: &str) {
        self.0.press(keys);
    }

    #[track_caller]
    fn status(mut self) -> (Option<i32>, String) {
        let status = self.0.status();
        // What it wrote last may still be on its way.
        thread::sleep(Duration::from_millis(100));
        (status.code(), self.0.text())
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
