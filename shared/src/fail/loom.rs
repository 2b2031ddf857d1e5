//! Arming a site while the kernel evaluates it, under every interleaving, by loom:
//! `scripts/loom.sh` runs these.
//!
//! The words of one term are watched. Sites and terms are independent of each other, except that a
//! programme has one length and one generation, which are watched, too.

extern crate std;

use std::sync::Arc;
use std::vec::Vec;

use loom::thread;
use zerocopy::FromZeros;

use super::{FailAction, FailPoints, FailSite, FailSpec};
use crate::atomic::watched::Watched;
use crate::field::Field;

/// A site with two values, so programmes can differ in action and argument.
const SITE: FailSite = FailSite::VmMapWire;

/// What the kernel executes: the action and its argument.
type Executed = Option<(FailAction, u64)>;

const RETURN: Executed = Some((FailAction::Return, 1));
const DELAY: Executed = Some((FailAction::Delay, 7));

/// The sites of a guest.
#[derive(FromZeros)]
#[repr(C)]
struct Sites {
    armed: Field<u64>,
    points: FailPoints,
}

impl Sites {
    /// Sites of which [`SITE`] is armed, and the words that loom watches from here on.
    fn armed_with(programme: &str) -> (Arc<Self>, Vec<Watched>) {
        let sites = Arc::new(Self::new_zeroed());
        sites.arm(programme);
        let point = sites.points.point(SITE);
        let [term, ..] = &point.terms;
        let watched = std::vec![
            sites.armed.watch(),
            point.generation.watch(),
            point.length.watch(),
            term.left.watch(),
            term.argument.watch(),
            term.action.watch(),
        ];
        (sites, watched)
    }

    /// The host arms the site.
    fn arm(&self, programme: &str) {
        let spec = FailSpec::parse(SITE, programme).expect("it is a programme");
        self.points.arm(&self.armed, SITE, &spec);
    }

    /// The kernel comes to the site.
    fn hit(&self) -> Executed {
        if self.armed.get() & SITE.bit() == 0 {
            return None;
        }
        let fire = self.points.first(SITE)?;
        Some((fire.action, fire.argument))
    }
}

#[test]
fn the_kernel_executes_the_old_programme_or_the_new_one_or_nothing() {
    loom::model(|| {
        let (sites, _watched) = Sites::armed_with("return(1)");
        let kernel = Arc::clone(&sites);
        let kernel = thread::spawn(move || kernel.hit());
        sites.arm("delay(7)");
        let executed = kernel.join().expect("it ends well");
        assert!([None, RETURN, DELAY].contains(&executed), "{executed:?}");
        assert_eq!(sites.hit(), DELAY, "the new programme holds");
    });
}

#[test]
fn an_evaluation_that_overlaps_with_arming_takes_no_count_of_the_new_programme() {
    loom::model(|| {
        let (sites, _watched) = Sites::armed_with("1*return(1)");
        let kernel = Arc::clone(&sites);
        let kernel = thread::spawn(move || kernel.hit());
        sites.arm("1*delay(7)");
        let executed = kernel.join().expect("it ends well");
        assert!([None, RETURN, DELAY].contains(&executed), "{executed:?}");
        // The new programme executes once, there or here.
        let later = if executed == DELAY { None } else { DELAY };
        assert_eq!((sites.hit(), sites.hit()), (later, None));
    });
}

#[test]
fn a_count_of_1_is_executed_by_one_cpu() {
    loom::model(|| {
        let (sites, _watched) = Sites::armed_with("1*return(1)");
        let other = Arc::clone(&sites);
        let other = thread::spawn(move || other.hit());
        let executed = [sites.hit(), other.join().expect("it ends well")];
        assert!(executed == [RETURN, None] || executed == [None, RETURN], "{executed:?}");
    });
}

#[test]
fn a_site_that_was_disarmed_executes_nothing_afterwards() {
    loom::model(|| {
        let (sites, _watched) = Sites::armed_with("return(1)");
        let kernel = Arc::clone(&sites);
        let kernel = thread::spawn(move || kernel.hit());
        sites.arm("off");
        assert_eq!(sites.hit(), None);
        let executed = kernel.join().expect("it ends well");
        assert!([None, RETURN, Some((FailAction::Off, 0))].contains(&executed), "{executed:?}");
    });
}
