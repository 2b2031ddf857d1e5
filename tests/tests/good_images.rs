//! A thousand good guests: the check has no findings in guests that are held at random moments of a
//! stress run.

use vmkern::check::Report;
use vmkern::dump::Dump;
use vmkern::{Guest, TimeMode};
use vmkern_tests::launch_unchecked;
use vmkern_tests::workers::Workers;

/// Memory of a guest: little, so its pages are reused often.
const MEMORY: u64 = 24 << 20;
/// Looks at each guest.
const LOOKS: u64 = 125;
/// Every look whose number is a multiple of this reads a dump in a file.
const SAVED: u64 = 25;

/// Checks a guest at random moments. Returns how many of the looks found unfinished work.
fn looks(seed: u64, vcpus: u32, time: TimeMode) -> u64 {
    let guest = launch_unchecked(Guest::builder().memory(MEMORY).vcpus(vcpus).time(time));
    let mut stress = Workers::new(guest, seed);
    let directory = tempfile::tempdir().expect("there is a directory for temporary files");
    let mut busy = 0;
    for look in 0..LOOKS {
        for _ in 0..1 + stress.draw(8) {
            stress.step().expect("the guest lives");
        }
        // The guest has work whenever it is held: no answer is taken before.
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

/// A guest for each of `seeds`, every other one in real time.
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
