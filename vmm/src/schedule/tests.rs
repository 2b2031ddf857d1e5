//! Schedules, on a guest that is two numbers.

use super::keep::{PATIENCE, TRIES};
use super::{Driver, Event, Happened, Moment, Sample, Schedule, Series, Squeeze};
use crate::guest::Pages;

/// A guest that gives what is free, down to a floor for its balloon.
#[derive(Debug)]
struct Fake {
    free: u64,
    seized: u64,
    balloon: u64,
    floor: u64,
    refuses: Option<&'static str>,
    calls: u32,
}

impl Fake {
    fn with(free: u64) -> Self {
        Self { free, seized: 0, balloon: 0, floor: 100, refuses: None, calls: 0 }
    }
}

impl Squeeze for Fake {
    fn seize(&mut self, Pages(more): Pages) -> Result<Pages, String> {
        self.calls += 1;
        if let Some(why) = self.refuses {
            return Err(why.to_owned());
        }
        let taken = more.min(self.free);
        (self.free, self.seized) = (self.free - taken, self.seized + taken);
        Ok(Pages(taken))
    }

    fn release(&mut self, Pages(pages): Pages) -> Result<Pages, String> {
        self.calls += 1;
        let given = pages.min(self.seized);
        (self.free, self.seized) = (self.free + given, self.seized - given);
        Ok(Pages(given))
    }

    fn squeeze(&mut self, Pages(total): Pages) -> Result<Pages, String> {
        self.calls += 1;
        let most = self.balloon + self.free.saturating_sub(self.floor);
        let held = total.min(most);
        (self.free, self.balloon) = (self.free + self.balloon - held, held);
        Ok(Pages(held))
    }

    fn free_pages(&mut self) -> Result<Pages, String> {
        Ok(Pages(self.free))
    }
}

#[track_caller]
fn schedule(text: &str) -> Schedule {
    Schedule::parse("p.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn operation(operations: u64) -> Moment {
    Moment { micros: operations, operations }
}

/// What is seized at each of these operations.
fn seized_at(text: &str, guest: &mut Fake, operations: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut driver = Driver::new(schedule(text));
    let at = |number| {
        driver.poll(operation(number), guest);
        guest.seized
    };
    operations.into_iter().map(at).collect()
}

#[test]
fn a_step_climbs_evenly_holds_gives_back_and_repeats() {
    let text = "[[step]]\nafter = 10\ntarget = 100\nramp = 4\nhold = 3\nrepeat = 2\npause = 2";
    let seized = seized_at(text, &mut Fake::with(1000), 0..30);
    let mut expected = vec![0; 10];
    for _ in 0..2 {
        expected.extend([0, 25, 50, 75, 100, 100, 100, 0, 0]);
    }
    expected.extend([0, 0]);
    assert_eq!(seized, expected);
}

#[test]
fn a_step_without_hold_lasts_until_the_next_of_its_kind_and_the_end_gives_all_back() {
    let text = "[[step]]\nafter = 1\ntarget = 50\n[[step]]\nafter = 3\ntarget = 20";
    let mut guest = Fake::with(1000);
    let mut driver = Driver::new(schedule(text));
    let mut seized = Vec::new();
    for number in 0..5 {
        driver.poll(operation(number), &mut guest);
        seized.push(guest.seized);
    }
    assert_eq!((seized, driver.held()), (vec![0, 50, 50, 20, 20], Pages(20)));
    driver.end(operation(5), &mut guest);
    assert_eq!((guest.seized, guest.free, driver.held()), (0, 1000, Pages(0)));
}

#[test]
fn steps_by_time_follow_the_clock_from_the_first_poll_on() {
    let text = "[[step]]\nat = \"2ms\"\ntarget = 8\nhold = \"1ms\"";
    let mut guest = Fake::with(1000);
    let mut driver = Driver::new(schedule(text));
    let begin = 700_000;
    let mut seized = Vec::new();
    for micros in [0, 1999, 2000, 2999, 3000] {
        driver.poll(Moment { micros: begin + micros, operations: 0 }, &mut guest);
        seized.push(guest.seized);
    }
    assert_eq!(seized, [0, 0, 8, 8, 0]);
}

#[test]
fn leave_counts_the_free_pages_when_the_step_begins() {
    let text = "[[step]]\nafter = 1\nleave = 37\nhold = 2";
    let mut guest = Fake::with(500);
    let mut driver = Driver::new(schedule(text));
    driver.poll(operation(0), &mut guest);
    driver.poll(operation(1), &mut guest);
    assert_eq!(guest.free, 37);
    // What the guest frees later is its own.
    guest.free += 5;
    driver.poll(operation(2), &mut guest);
    assert_eq!((guest.free, guest.seized), (42, 463));
    driver.poll(operation(3), &mut guest);
    assert_eq!((guest.free, guest.seized), (505, 0));
}

#[test]
fn what_was_not_there_is_told_and_not_asked_for_again_and_again() {
    let mut guest = Fake::with(30);
    let mut driver = Driver::new(schedule("[[step]]\nafter = 0\ntarget = 100"));
    (0..50).for_each(|number| driver.poll(operation(number), &mut guest));
    assert_eq!((guest.seized, guest.calls), (30, 1));
    let (kind, asked, taken) = (super::Kind::Seize, Pages(100), Pages(30));
    let what = Happened::Took { kind, asked, taken };
    assert_eq!(driver.events(), [Event { at: operation(0), what }]);
}

#[test]
fn a_squeeze_goes_through_the_balloon_and_stops_at_the_guests_floor() {
    let text = "[[step]]\nkind = \"squeeze\"\nafter = 0\ntarget = 950\nhold = 3";
    let mut guest = Fake::with(1000);
    let mut driver = Driver::new(schedule(text));
    driver.poll(operation(0), &mut guest);
    assert_eq!((guest.balloon, guest.free, driver.held()), (900, 100, Pages(900)));
    driver.poll(operation(3), &mut guest);
    assert_eq!((guest.balloon, guest.free, driver.held()), (0, 1000, Pages(0)));
    assert!(schedule(text).needs_balloon());
}

#[test]
fn the_closed_loop_moves_to_the_middle_and_rests_between_its_bounds() {
    let mut guest = Fake::with(1000);
    let mut driver = Driver::new(schedule("[keep]\nfree = [100, 300]"));
    let mut free = Vec::new();
    for (number, used) in [0, 90, 20, 0, -95, 0].into_iter().enumerate() {
        guest.free = guest.free.saturating_add_signed(-used);
        driver.poll(operation(number as u64), &mut guest);
        free.push(guest.free);
    }
    // 1000 -> 200; 110 stays; 90 -> 200; 200 stays; 295 stays.
    assert_eq!(free, [200, 110, 200, 200, 295, 295]);
    assert_eq!(guest.calls, 2);
    driver.end(operation(9), &mut guest);
    assert_eq!(guest.seized, 0);
}

/// Why the loop gave up, when, and how often it asked the guest for something after that.
fn given_up(guest: &mut Fake, text: &str, step: u64) -> (String, Moment, u32) {
    let mut driver = Driver::new(schedule(text));
    let mut calls = None;
    for number in 0..200 {
        let now = Moment { micros: number * step, operations: number };
        driver.poll(now, guest);
        let left = |event: &Event| match &event.what {
            Happened::Left { why } => Some((why.clone(), event.at)),
            _ => None,
        };
        if driver.events().iter().any(|event| left(event).is_some()) {
            calls.get_or_insert(guest.calls);
        }
        if number == 199 {
            let (why, at) = driver.events().iter().find_map(left).expect("it has given up");
            return (why, at, guest.calls - calls.expect("it has given up"));
        }
    }
    unreachable!("the loop returns in its last round")
}

#[test]
fn an_impossible_target_is_left_within_100_ms_of_the_guests_clock_with_a_reason() {
    // 1. Too few pages are free, and none is held.
    let text = "[keep]\nfree = [512, 600]";
    let (why, at, after) = given_up(&mut Fake::with(37), text, 10_000);
    assert_eq!(
        why,
        "cannot keep 512 to 600 pages free: 37 pages free, 0 pages held; nothing is held that \
         could be given back: the guest uses the rest"
    );
    assert!((PATIENCE..=100_000).contains(&at.micros), "{at:?}");
    assert_eq!(after, 0, "it asks for nothing more");
    // 2. The guest refuses, and the clock stands still.
    let mut guest = Fake::with(5000);
    guest.refuses = Some("t3 owns vm_page_queue_free_mtx");
    let (why, at, after) = given_up(&mut guest, text, 0);
    assert!(
        why.ends_with("5000 pages free, 0 pages held; t3 owns vm_page_queue_free_mtx"),
        "{why}"
    );
    assert_eq!((at.operations, after), (u64::from(TRIES) - 1, 0));
    assert_eq!(guest.calls, TRIES);
}

#[test]
fn a_shortage_that_passes_does_not_end_the_loop() {
    let mut guest = Fake::with(37);
    let mut driver = Driver::new(schedule("[keep]\nfree = [512, 600]"));
    for number in 0..100 {
        // Every eighth time the guest has enough.
        guest.free = if number % 8 == 7 { 550 } else { 37 };
        driver.poll(operation(number), &mut guest);
    }
    assert_eq!(driver.events(), []);
}

#[test]
fn the_same_moments_give_the_same_events() {
    let text = "[[step]]\nafter = 3\ntarget = 64\nramp = 9\nhold = 5\nrepeat = 4\n\
                [keep]\nfree = [50, 90]";
    let run = || {
        let mut guest = Fake::with(200);
        let mut driver = Driver::new(schedule(text));
        for number in 0..100 {
            guest.free = guest.free.saturating_add_signed(if number % 3 == 0 { 7 } else { -2 });
            driver.poll(operation(number), &mut guest);
        }
        driver.end(operation(100), &mut guest);
        driver.events().to_vec()
    };
    let events = run();
    assert!(events.len() > 10, "{events:?}");
    assert_eq!(events, run());
}

#[test]
fn in_real_time_the_driver_says_when_it_must_be_polled_next() {
    let text = "[[step]]\nat = \"2ms\"\ntarget = 8\nramp = \"640us\"\nhold = \"1ms\"";
    let mut guest = Fake::with(1000);
    let mut driver = Driver::new(schedule(text));
    assert_eq!(driver.next_due(Moment::default()), None, "it has not begun");
    driver.poll(Moment::default(), &mut guest);
    let due = |micros| driver.next_due(Moment { micros, operations: 0 });
    assert_eq!([due(0), due(2000), due(2640), due(3640)], [Some(2000), Some(10), Some(1000), None]);
    let looking = Driver::new(schedule("[keep]\nfree = [1, 2]"));
    assert_eq!(looking.next_due(Moment::default()), Some(10_000));
}

#[test]
fn a_wrong_schedule_is_refused_with_its_line_the_key_and_what_would_be_right() {
    let begin = "[[step]]\nafter = 5\ntarget = 1\n";
    let cases: &[(&str, &str)] = &[
        ("", "p.toml:1: the schedule does nothing; expected `[[step]]` or `[keep]`"),
        ("[[step]\n", "p.toml:1: this is not TOML: "),
        ("[[steps]]\n", "p.toml:1: unknown key `steps`; did you mean `step`?"),
        (
            "[[step]]\nafter = 1\ntraget = 5",
            "p.toml:3: unknown key `traget`; did you mean `target`?",
        ),
        (
            "[[step]]\nafter = 1\nx = 5",
            "p.toml:3: unknown key `x`; a step has kind at after target leave ramp hold repeat \
             pause",
        ),
        ("[[step]]\ntarget = 5", "p.toml:1: the step is incomplete; expected `at = TIME` or"),
        ("[[step]]\nafter = 5", "p.toml:1: the step is incomplete; expected `target = SIZE` or"),
        (
            "[[step]]\nat = \"1s\"\nafter = 5",
            "p.toml:1: the step has `at` and `after`; expected one",
        ),
        (
            "[[step]]\nafter = \"5ms\"",
            "p.toml:2: `after` is \"5ms\"; expected a number of operations",
        ),
        ("[[step]]\nat = 5", "p.toml:2: `at` is 5; expected a time in quotes, such as \"250ms\""),
        ("[[step]]\nat = \"5M\"", "p.toml:2: `at` is \"5M\"; expected a time in quotes"),
        ("[[step]]\nat = \"5\"", "p.toml:2: `at` is \"5\"; expected a time in quotes"),
        ("[[step]]\nafter = -5", "p.toml:2: `after` is -5; expected a number of operations"),
        ("[[step]]\nafter = 5\ntarget = \"5ms\"", "p.toml:3: `target` is \"5ms\"; expected a size"),
        ("[[step]]\nafter = 5\ntarget = \"5\"", "p.toml:3: `target` is \"5\"; expected a size"),
        ("[[step]]\nafter = 5\ntarget = 1.5", "p.toml:3: `target` is a float; expected a size"),
        (
            "[[step]]\nafter = 5\ntarget = 1\nhold = \"1s\"",
            "p.toml:4: `hold` is \"1s\"; expected a number of operations, as the step begins with",
        ),
        (
            "[[step]]\nkind = \"sieze\"\nafter = 5\ntarget = 1",
            "p.toml:2: `kind` is \"sieze\"; expected \"seize\" or \"squeeze\"",
        ),
        (
            "[[step]]\nafter = 5\ntarget = 1\nrepeat = 2",
            "p.toml:1: the step is incomplete; a step with `repeat` needs `hold`",
        ),
        (
            "[[step]]\nafter = 5\ntarget = 1\nhold = 1\nrepeat = 0",
            "p.toml:5: `repeat` is 0; expected a number, at least 1",
        ),
        (
            "[[step]]\nafter = 5\nkind = \"squeeze\"\nleave = 1",
            "p.toml:4: `leave` is 1; expected `target` with `squeeze`",
        ),
        ("[keep]\nfree = [5]", "p.toml:2: `free` is a array; expected two sizes"),
        ("[keep]\nfree = [5, 4]", "p.toml:2: `free` begins with 5 pages and ends with 4 pages"),
        ("[keep]\n", "p.toml:1: `keep` is incomplete; expected two sizes"),
    ];
    for (text, expected) in cases {
        let error = Schedule::parse("p.toml", text).expect_err(text).to_string();
        assert!(error.starts_with(expected), "{text:?}\n{error}\n{expected}");
    }
    for (rest, expected) in [
        ("[[step]]\nafter = 4\ntarget = 1", "step 2 begins at operation 4, before the last"),
        ("hold = 9\n[[step]]\nafter = 13\ntarget = 1", "step 2 begins at operation 13, before the"),
        ("[[step]]\nat = \"1s\"\ntarget = 1", "step 2 counts in another unit than the first"),
    ] {
        let error = Schedule::parse("p.toml", &format!("{begin}{rest}")).expect_err(rest);
        assert!(error.problem.starts_with(expected), "{error}");
    }
}

#[test]
fn a_series_keeps_every_second_sample_when_it_is_full_and_never_grows() {
    let mut series = Series::default();
    for number in 0..100_000 {
        series.push(Sample { free: number, ..Sample::default() });
    }
    let kept = series.samples();
    assert!((2048..=4096).contains(&kept.len()), "{}", kept.len());
    assert_eq!(series.stride(), 32);
    assert!(kept.iter().enumerate().all(|(at, sample)| sample.free == at as u64 * 32));
}
