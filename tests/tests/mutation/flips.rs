//! Single bit flips in all structures in a guest's memory.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmkern::abi::describe::STRUCTURES;
use vmkern::check::Report;
use vmkern::dump::Dump;
use vmkern_tests::damage::anatomy::{Anatomy, ENTRIES, Part, structure};
use vmkern_tests::damage::meaning::{CHECKED, MEANINGLESS, Meaning, PARTLY, meaning};
use vmkern_tests::damage::{Overlay, State, specimen};

/// Flips in each field of each guest.
const EACH: usize = 24;
/// Flips anywhere in each guest, with all bytes equally likely.
const ANYWHERE: usize = 4000;

/// Flips, and how many of them were found.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    done: u64,
    found: u64,
}

impl Tally {
    fn add(&mut self, found: bool) {
        self.done += 1;
        self.found += u64::from(found);
    }

    fn percent(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "they are small")]
        let share = |n: u64| n as f64;
        100.0 * share(self.found) / share(self.done.max(1))
    }
}

struct Flips<'a> {
    image: &'a Dump,
    random: Xoshiro256PlusPlus,
}

impl Flips<'_> {
    fn draw(&mut self, below: u64) -> u64 {
        self.random.next_u64() % below
    }

    /// Flips a bit in `part`. Returns whether the check finds it.
    fn flip(&mut self, part: &Part) -> bool {
        let at = part.at.add(self.draw(part.size));
        let bit = u32::try_from(self.draw(8)).expect("it is small");
        let mut overlay = Overlay::new(self.image);
        overlay.flip(at, bit);
        // If the check cannot even begin, its error counts as finding the flip.
        Report::of(&overlay).map_or(true, |report| !report.is_clean())
    }
}

/// The meaning of a part, which must be in a table.
fn meaning_of(part: &Part) -> Meaning {
    meaning(part.structure, part.field)
        .unwrap_or_else(|| panic!("{}.{} is in no table", part.structure, part.field))
}

#[test]
fn every_field_of_every_structure_says_what_it_means_to_the_check() {
    for own in STRUCTURES {
        for field in own.fields {
            let inner = structure(field.kind.name).filter(|_| field.kind.prefix.is_empty());
            match (inner, meaning(own.name, field.name)) {
                (None, None) => panic!("{}.{} is in no table of meaning.rs", own.name, field.name),
                (Some(inner), Some(Meaning::Checked | Meaning::Partly(_))) => {
                    panic!(
                        "{}.{} is a {}, whose fields are in the tables",
                        own.name, field.name, inner.name
                    );
                }
                _ => {}
            }
        }
    }
    let exists = |name: &str, field: &str| {
        ENTRIES.iter().any(|(_, own)| *own == name && field == "bits")
            || structure(name).is_some_and(|own| own.fields.iter().any(|own| own.name == field))
    };
    for (name, field, _) in PARTLY.iter().chain(MEANINGLESS) {
        assert!(exists(name, field), "there is no {name}.{field}");
    }
    for (name, fields) in CHECKED {
        fields.iter().for_each(|field| assert!(exists(name, field), "there is no {name}.{field}"));
    }
}

#[test]
fn flipped_bits_are_found_where_they_mean_something() {
    let mut by_field: BTreeMap<(&str, &str), (Meaning, Tally)> = BTreeMap::new();
    let mut by_structure: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut anywhere = Tally::default();
    for (seed, state) in
        [(10, State::AtRest), (11, State::AtRest), (12, State::Busy), (13, State::Busy)]
    {
        let image = specimen(seed, state);
        let report = Report::of(&image).expect("the roots can be read");
        assert!(report.is_clean(), "{report}");
        let parts = Anatomy::of(&image).parts;
        let mut flips = Flips { image: &image, random: Xoshiro256PlusPlus::seed_from_u64(seed) };
        let mut groups: BTreeMap<(&str, &str), Vec<Part>> = BTreeMap::new();
        for part in &parts {
            groups.entry((part.structure, part.field)).or_default().push(*part);
        }
        for (name, parts) in &groups {
            let (_, tally) =
                by_field.entry(*name).or_insert((meaning_of(&parts[0]), Tally::default()));
            for _ in 0..EACH {
                let part =
                    parts[usize::try_from(flips.draw(parts.len() as u64)).expect("an index")];
                tally.add(flips.flip(&part));
            }
        }
        let live: Vec<&Part> =
            parts.iter().filter(|part| !matches!(meaning_of(part), Meaning::Nothing(_))).collect();
        let bytes: u64 = live.iter().map(|part| part.size).sum();
        for _ in 0..ANYWHERE {
            let mut byte = flips.draw(bytes);
            let part = live.iter().find(|part| match byte.checked_sub(part.size) {
                Some(rest) => {
                    byte = rest;
                    false
                }
                None => true,
            });
            let found = flips.flip(part.expect("the byte is of one of them"));
            anywhere.add(found);
        }
    }
    let mut meaningful = Tally::default();
    let mut weak = Vec::new();
    for (&(name, field), &(meaning, tally)) in &by_field {
        if meaning != Meaning::Checked && tally.found < tally.done {
            println!("{name}.{field}: {} of {}, {meaning:?}", tally.found, tally.done);
        }
        if matches!(meaning, Meaning::Nothing(_)) {
            continue;
        }
        for total in [&mut meaningful, by_structure.entry(name).or_default()] {
            total.done += tally.done;
            total.found += tally.found;
        }
        // Sometimes a flipped bit yields another valid value: the index of another CPU, a flag that
        // may be set or not.
        if meaning == Meaning::Checked && tally.percent() < 90.0 {
            weak.push(format!("{name}.{field}: only {} of {}", tally.found, tally.done));
        }
    }
    for (name, tally) in &by_structure {
        println!("{name}: {:.1} % of {}", tally.percent(), tally.done);
    }
    println!("each field alike: {:.1} % of {}", meaningful.percent(), meaningful.done);
    println!("each byte alike: {:.1} % of {}", anywhere.percent(), anywhere.done);
    assert!(weak.is_empty(), "{}", weak.join("\n"));
    assert!(anywhere.percent() >= 95.0, "{:.1} % of all bytes", anywhere.percent());
    assert!(meaningful.percent() >= 90.0, "{:.1} % of all fields", meaningful.percent());
}

/// Arithmetic on a guest's values must not overflow. It once did, in the thresholds and in an
/// entry's offset.
#[test]
fn no_field_with_its_largest_value_makes_the_check_panic() {
    let image = specimen(14, State::AtRest);
    let parts = Anatomy::of(&image).parts;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(14);
    let mut tally = Tally::default();
    let mut groups: BTreeMap<(&str, &str), Vec<Part>> = BTreeMap::new();
    for part in parts.iter().filter(|part| !matches!(meaning_of(part), Meaning::Nothing(_))) {
        groups.entry((part.structure, part.field)).or_default().push(*part);
    }
    for part in groups.values().flat_map(|group| {
        let first = usize::try_from(random.next_u64() % group.len() as u64).expect("an index");
        group.iter().cycle().skip(first).take(group.len().min(8))
    }) {
        let mut overlay = Overlay::new(&image);
        for at in 0..part.size {
            for bit in 0..8 {
                let place = part.at.add(at);
                let shift = u32::try_from(place.get() % 8).expect("it is small") * 8 + bit;
                let is_clear = overlay.word(place).load(Ordering::Relaxed) >> shift & 1 == 0;
                if is_clear {
                    overlay.flip(place, bit);
                }
            }
        }
        tally.add(Report::of(&overlay).map_or(true, |report| !report.is_clean()));
    }
    assert!(tally.percent() > 90.0, "{} of {}", tally.found, tally.done);
}
