//! Seeded damage to a guest's memory, which the check must find.

mod flips;
mod kinds;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng as _;
use vmkern::check::Report;
use vmkern_tests::damage::anatomy::Anatomy;
use vmkern_tests::damage::{Overlay, State, specimen};

use self::kinds::{CACHE_KINDS, KINDS, Kind, Scene};

/// Victims of each kind of corruption in each guest.
const VICTIMS: u64 = 8;

/// Tries `kind` with random numbers from `seed`. Returns what is wrong with the report, if
/// anything.
fn try_kind(
    anatomy: &Anatomy<'_>,
    image: &vmkern::dump::Dump,
    kind: &Kind,
    seed: u64,
) -> Result<(), String> {
    let random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut scene = Scene { anatomy, overlay: Overlay::new(image), random };
    let at = (kind.damage)(&mut scene);
    let report = Report::of(&scene.overlay).map_err(|error| error.to_string())?;
    let named =
        report.findings.iter().any(|f| f.rule == kind.rule && f.what == kind.what && f.at == at);
    let lines: Vec<String> = report.to_string().lines().take(6).map(str::to_owned).collect();
    let (Kind { name, rule, what, .. }, found) = (kind, lines.join("\n  "));
    if named {
        Ok(())
    } else {
        Err(format!("{name}: no {rule} about {what} at {at} (seed {seed}):\n  {found}"))
    }
}

#[test]
fn every_kind_of_corruption_is_found_and_the_right_structure_named() {
    let (mut failures, mut with_caches) = (Vec::new(), 0);
    for guest in 0..3 {
        let image = specimen(guest, State::AtRest);
        let report = Report::of(&image).expect("the roots can be read");
        assert!(report.is_clean(), "{report}");
        let anatomy = Anatomy::of(&image);
        let has_caches = anatomy.places.iter().filter(|(name, _)| *name == "Pcpu").count() > 1;
        with_caches += u32::from(has_caches);
        for kind in KINDS.iter().chain(CACHE_KINDS.iter().filter(|_| has_caches)) {
            let failed = (0..VICTIMS)
                .find_map(|seed| try_kind(&anatomy, &image, kind, guest * 1000 + seed).err());
            failures.extend(failed);
        }
    }
    assert!(with_caches > 0, "no guest has several CPUs");
    assert!(
        failures.is_empty(),
        "{} failures of {} kinds:\n{}",
        failures.len(),
        KINDS.len() + CACHE_KINDS.len(),
        failures.join("\n")
    );
}
