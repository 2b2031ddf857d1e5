//! A thousand good images: the check finds nothing in guests that are held at random moments of a
//! stress run.

use vmkern::check::Report;
use vmkern::dump::Dump;
use vmkern::{Guest, TimeMode};
use vmkern_tests::launch_unchecked;
use vmkern_tests::workers::Workers;

/// Memory of a guest: little, so that its pages are used again and again.
const MEMORY: u64 = 24 << 20;
/// Looks at each guest.
const LOOKS: u64 = 125;
/// Each of so many looks is at an image in a file.
const SAVED: u64 = 25;

/// Looks at a guest at random moments. How many of the looks came upon work that was not done.
fn looks(seed: u64, vcpus: u32, time: TimeMode) -> u64 {
    let guest = launch_unchecked(Guest::builder().memory(MEMORY).vcpus(vcpus).time(time));
    let mut stress = Workers::new(guest, seed);
    let directory = tempfile::tempdir().expect("there is a directory for temporary files");
    let mut busy = 0;
    for look in 0..LOOKS {
        for _ in 0..1 + stress.draw(8) {
            stress.step().expect("the guest lives");
        }
        // It works on while it is held: nobody takes an answer before.
        stress.employ().expect("the guest lives");
        busy += u64::from(stress.guest.in_flight() > 0);
        let report = if look % SAVED == 0 {
            let path = directory.path().join("good.img");
            let pause = stress.guest.pause().expect("it can be held");
            stress.guest.save_dump(&path).expect("the image can be written");
            drop(pause);
            Report::of(&Dump::open(&path).expect("the image can be read"))
        } else {
            stress.guest.check()
        };
        let report = report.expect("the roots can be read");
        assert!(report.is_clean(), "look {look}, seed {seed}, {vcpus} CPUs, {time:?}:\n{report}");
    }
    busy
}

/// A guest of each of `seeds`, every other one with a clock that ticks.
fn good(seeds: std::ops::Range<u64>, vcpus: u32) {
    let all = LOOKS * (seeds.end - seeds.start);
    let time = |seed| if seed % 2 == 0 { TimeMode::Virtual } else { TimeMode::Real };
    let busy: u64 = seeds.map(|seed| looks(seed, vcpus, time(seed))).sum();
    assert!(busy > all / 2, "only {busy} of {all} looks came upon a guest at work");
}

#[test]
fn nothing_is_found_in_500_images_of_guests_with_one_cpu() {
    good(0..4, 1);
}

#[test]
fn nothing_is_found_in_500_images_of_guests_with_several_cpus() {
    good(4..6, 2);
    good(6..8, 4);
}
