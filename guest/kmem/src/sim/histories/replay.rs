//! Histories as scripts that a guest runs with the same results.
//!
//! The simulated machine has the guest's settings and manages as many pages, so thresholds,
//! addresses and counters are the guest's. A thread, which yields like a guest's, performs the
//! operations that the driver performs elsewhere. The script contains every result and every
//! counter.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use vmkern_abi::fail::FailSite;

use super::refused::{SITES, failing_once};
use super::script::Script;
use super::step::{History, history, memory_of};
use super::{Telling, in_turn};

/// Steps of a history.
const LONG: Range<usize> = 20..80;

/// Hits of a site of which one fails.
const FIRST_HITS: u64 = 2;

/// A history that has been performed on the simulated machine.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The history as a script, with every result and the counters after each step.
    pub script: String,
    /// The guest's settings.
    pub settings: [(&'static str, u64); 5],
    /// The number of its operations that slept.
    pub slept: u64,
    /// Whether it ended with a panic, as it should.
    pub panicked: bool,
    /// Whether an operation failed, or waited, at a fail point.
    pub failed: bool,
}

/// Where an operation of history `number` fails, if one does: in every other history, at each site
/// and each of the first hits in turn.
fn failing(number: u64) -> Option<(FailSite, u64)> {
    let turn = number / 2;
    let site = SITES[usize::try_from(turn).ok()? % SITES.len()];
    (number % 2 == 1).then_some((site, 1 + turn / SITES.len() as u64 % FIRST_HITS))
}

/// Performs history `number`, on up to three threads besides the first, on a machine that manages
/// `pages` pages.
///
/// # Panics
/// When kernel and model do not agree, and when no simulated machine manages so few pages.
#[must_use]
pub fn replay(number: u64, pages: u64) -> Replay {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let drawn = history(0..4, &[24, 64, 256, 1000], LONG)
        .new_tree(&mut runner)
        .expect("nothing is rejected")
        .current();
    let memory = memory_of(pages);
    let history = History { shape: super::step::Shape { memory, ..drawn.shape }, ..drawn };
    let telling: Telling = Rc::new(RefCell::new(Script::exact()));
    let failed = match failing(number) {
        Some((site, nth)) => failing_once(&history, site, nth, &telling),
        None => {
            in_turn(&history, &telling);
            false
        }
    };
    let told = telling.borrow();
    Replay {
        script: told.text(),
        settings: history.shape.settings(),
        slept: told.slept,
        panicked: told.panicked,
        failed,
    }
}
