extern crate std;

use std::boxed::Box;
use std::format;
use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;

fn points() -> Box<FailPoints> {
    Box::new(FailPoints::new_zeroed())
}

fn spec(site: FailSite, text: &str) -> FailSpec {
    FailSpec::parse(site, text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(site: FailSite, text: &str) -> (usize, SpecRule) {
    let SpecError { at, rule } = FailSpec::parse(site, text).expect_err(text);
    (at, rule)
}

/// The actions of the next `count` hits of `site`.
fn run(points: &FailPoints, site: FailSite, count: usize) -> Vec<Option<FailAction>> {
    (0..count).map(|_| points.first(site).map(|fire| fire.action)).collect()
}

#[test]
fn a_programme_is_read_and_written_as_fail_9_says() {
    let site = FailSite::VmMapWire;
    for (text, canonical) in [
        ("off", "off"),
        ("return", "return(6)"),
        ("return(1)", "return(1)"),
        ("2.1%return(5)", "2.1%return(5)"),
        ("5*return(5)->0.1%return(6)", "5*return(5)->0.1%return(6)"),
        ("1%*sleep(50)", "1%sleep(50)"),
        ("1%2%3*4*sleep(0x10)", "2%4*sleep(16)"),
        ("0.0001%delay(7)->print(1)->panic", "0.0001%delay(7)->print(1)->panic"),
        ("100%print", "print"),
        ("3*off->1*return", "3*off->1*return(6)"),
    ] {
        let read = spec(site, text);
        assert_eq!(read.to_string(), canonical, "{text}");
        assert_eq!(spec(site, canonical), read);
    }
    assert!(spec(site, "off").is_off());
    assert!(!spec(site, "1*off").is_off() && !spec(site, "off->off").is_off());
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let site = FailSite::VmMapWire;
    assert_eq!(error(site, ""), (0, SpecRule::Action));
    assert_eq!(error(site, "retrun"), (0, SpecRule::Action));
    assert_eq!(error(site, "returns"), (0, SpecRule::Action));
    assert_eq!(error(site, "101%return"), (0, SpecRule::Probability));
    assert_eq!(error(site, "off->0%return"), (5, SpecRule::Probability));
    assert_eq!(error(site, "0.00001%return"), (0, SpecRule::Probability));
    assert_eq!(error(site, "1.%return"), (0, SpecRule::Probability));
    assert_eq!(error(site, "0*return"), (0, SpecRule::Count));
    assert_eq!(error(site, "5return"), (1, SpecRule::Number));
    assert_eq!(error(site, "1.5*return"), (3, SpecRule::Number));
    assert_eq!(error(site, "18446744073709551616*off"), (0, SpecRule::Number));
    assert_eq!(error(site, "return(x)"), (7, SpecRule::Number));
    assert_eq!(error(site, "return(1"), (8, SpecRule::Parenthesis));
    assert_eq!(error(site, "return(7)"), (7, SpecRule::Value(site)));
    assert_eq!(error(site, "return off"), (6, SpecRule::Arrow));
    assert_eq!(error(site, "off->"), (5, SpecRule::Action));
    assert_eq!(error(site, &["off"; 9].join("->")), (40, SpecRule::Length));
    assert_eq!(error(site, "delay(10000001)"), (6, SpecRule::Time(10_000_000)));
    let site = FailSite::IntrWindow;
    assert_eq!(error(site, "return"), (0, SpecRule::Refused(site, FailAction::Return)));
    assert_eq!(error(site, "1*sleep(1)"), (2, SpecRule::Refused(site, FailAction::Sleep)));
    let site = FailSite::VmPageAlloc;
    assert_eq!(error(site, "return(1)"), (7, SpecRule::Value(site)));
}

#[test]
fn terms_execute_in_order_until_their_counts_are_used_up() {
    let (points, armed) = (points(), Field::default());
    let site = FailSite::VmPageAlloc;
    points.arm(&armed, site, &spec(site, "2*off->1*return->1*print"));
    assert_eq!(armed.get(), site.bit());
    let off = Some(FailAction::Off);
    let hits = [off, off, Some(FailAction::Return), Some(FailAction::Print), None, None];
    assert_eq!(run(&points, site, 6), hits);
    points.arm(&armed, site, &spec(site, "off"));
    assert_eq!(armed.get(), 0);
}

#[test]
fn the_evaluation_goes_on_after_the_term_that_the_caller_names() {
    let (points, armed) = (points(), Field::default());
    let site = FailSite::VmPageAlloc;
    points.arm(&armed, site, &spec(site, "print(1)->return"));
    let first = points.first(site).expect("it prints");
    assert_eq!((first.term, first.action, first.argument), (0, FailAction::Print, 1));
    let second = points.after(site, first).expect("it returns");
    assert_eq!((second.term, second.action), (1, FailAction::Return));
    assert_eq!(points.after(site, second), None);
}

#[test]
fn a_print_does_not_go_on_in_another_programme() {
    let (points, armed) = (points(), Field::default());
    let site = FailSite::VmPageAlloc;
    points.arm(&armed, site, &spec(site, "print(1)->return"));
    let first = points.first(site).expect("it prints");
    points.arm(&armed, site, &spec(site, "off->return"));
    assert_eq!(points.after(site, first), None);
}

#[test]
fn a_late_evaluation_takes_nothing_from_the_next_programme() {
    let (points, armed) = (points(), Field::default());
    let site = FailSite::VmPageAlloc;
    points.arm(&armed, site, &spec(site, "1*return"));
    let term = &points.point(site).terms[0];
    let before = points.point(site).generation.get();
    points.arm(&armed, site, &spec(site, "1*return"));
    assert!(!term.take(before), "it is of another programme");
    assert_eq!(term.remaining(), Some(1));
    assert_eq!(points.first(site).map(|fire| fire.action), Some(FailAction::Return));
    assert_eq!((points.first(site), term.remaining()), (None, Some(0)));
}

#[test]
fn a_count_that_is_never_used_up_is_no_limit() {
    let site = FailSite::VmPageAlloc;
    for (text, count) in [
        ("281474976710654*return", Some(UNLIMITED - 1)),
        ("281474976710655*return", None),
        ("18446744073709551615*return", None),
    ] {
        assert_eq!(spec(site, text).terms()[0].count, count, "{text}");
    }
}

#[test]
fn nothing_executes_while_the_programme_changes() {
    let (points, armed) = (points(), Field::default());
    let site = FailSite::KthreadCreate;
    points.arm(&armed, site, &spec(site, "return"));
    let point = points.point(site);
    let generation = point.generation.get();
    point.generation.set(generation + 1);
    assert_eq!(points.first(site), None);
    point.generation.set(generation + 2);
    assert!(points.first(site).is_some());
}

#[test]
fn a_probability_is_met_over_many_hits() {
    let (points, armed) = (points(), Field::default());
    let site = FailSite::VmFaultAlloc;
    points.random.set(7);
    points.arm(&armed, site, &spec(site, "12.5%return"));
    let fires = run(&points, site, 80_000).into_iter().flatten().count();
    // Ten thousand are expected, with a deviation of 94.
    assert!((9_500..10_500).contains(&fires), "{fires}");
}

#[test]
fn a_stack_is_known_once_it_was_added_and_the_list_is_in_use() {
    let points = points();
    let stacks = &points.stacks;
    stacks.add(1);
    assert!(!stacks.knows(1), "the list is not in use");
    stacks.on.raise();
    stacks.add(1);
    assert!(stacks.knows(1) && !stacks.knows(2));
    (2..=STACKS_MAX as u64 + 5).for_each(|hash| stacks.add(hash));
    assert_eq!(stacks.hashes().len(), STACKS_MAX);
    assert!(stacks.knows(u64::MAX), "a full list admits nothing");
}

#[test]
fn each_site_says_what_it_returns_in_an_error_that_names_it() {
    for site in FailSite::ALL {
        let text = FailSpec::parse(site, "return(77)").expect_err("no function has it");
        assert!(format!("{text}").contains(site.name()), "{text}");
    }
}

fn term(site: FailSite) -> impl Strategy<Value = Term> {
    let actions = FailAction::ALL.into_iter().filter(move |&action| match action {
        FailAction::Return => site.returns() != Returns::Never,
        FailAction::Sleep => site.sleeps() == Sleeps::Yes,
        _ => true,
    });
    let actions: Vec<FailAction> = actions.collect();
    (prop::sample::select(actions), 0..1000u64, 1..=CHANCE_MAX, prop::option::of(1..UNLIMITED))
        .prop_map(move |(action, number, chance, count)| {
            let argument = match action {
                FailAction::Return => site.returns().value(None).unwrap_or(0),
                FailAction::Off | FailAction::Panic => 0,
                _ => number,
            };
            Term { action, argument, chance, count }
        })
}

/// Texts that are programmes, or nearly.
const NEARLY_PROGRAMMES: &str = concat!(
    "(([0-9.x]{0,3}[%*]?){0,3}",
    "(off|return|sleep|delay|panic|print|.)?",
    "[(]?[0-9]{0,3}[)]?(->)?){0,4}"
);

proptest! {
    #[test]
    fn a_programme_is_what_its_text_says(
        (site, terms) in prop::sample::select(FailSite::ALL.to_vec())
            .prop_flat_map(|site| (Just(site), prop::collection::vec(term(site), 1..=TERMS_MAX)))
    ) {
        let text = terms.iter().map(Term::to_string).collect::<Vec<_>>().join("->");
        let read = FailSpec::parse(site, &text);
        prop_assert_eq!(read.map(|spec| spec.terms().to_vec()), Ok(terms));
        let (points, armed) = (points(), Field::default());
        points.arm(&armed, site, &read.expect("checked"));
        prop_assert_eq!(FailSpec::of(points.point(site)), read.ok());
    }

    #[test]
    fn no_text_makes_the_reader_panic(
        site in prop::sample::select(FailSite::ALL.to_vec()),
        text in NEARLY_PROGRAMMES,
    ) {
        if let Err(error) = FailSpec::parse(site, &text) {
            prop_assert!(error.at <= text.len() && text.is_char_boundary(error.at));
        }
    }
}
