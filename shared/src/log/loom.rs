//! A reader that the writer overtakes, under every interleaving, by loom: `scripts/loom.sh` runs
//! this.

extern crate std;

use std::sync::Arc;
use std::vec::Vec;

use loom::thread;
use zerocopy::FromZeros;

use super::{Keeping, LogRing};

/// Writes bytes number 1 to `last` like a kernel that owns no lock: it waits for room, and rings
/// the bell for a keeper that sleeps.
fn write_all(ring: &LogRing<3>, last: u8, ring_bell: impl Fn()) {
    for byte in 1..=last {
        while !ring.has_room(1) {
            thread::yield_now();
        }
        ring.write(&[byte]);
        if ring.keeper.must_wake() {
            ring_bell();
        }
    }
}

/// Takes bytes number 1 to `last`, none of which may be missing. While there are none, it calls
/// `wait` with the number of the next byte.
fn take_all(ring: &LogRing<3>, last: u8, wait: impl Fn(u64)) {
    let mut got = Vec::new();
    while got.len() < usize::from(last) {
        let next = got.len() as u64;
        let mut piece = [0; 3];
        let read = ring.read(next, &mut piece);
        assert_eq!(read.start, next, "nothing was overwritten");
        if read.is_empty() {
            wait(next);
            continue;
        }
        ring.taken(read.end);
        got.extend(read.zip(piece).map(|(_, byte)| byte));
    }
    assert!((1..=last).eq(got));
}

#[test]
fn a_keeper_gets_every_byte_of_a_writer_that_waits_for_room() {
    loom::model(|| {
        let ring: Arc<LogRing<3>> = Arc::new(LogRing::new_zeroed());
        let _watched: Vec<_> = ring.watch().collect();
        ring.keep(Keeping::Everything);
        let far = Arc::clone(&ring);
        let writer =
            thread::spawn(move || write_all(&far, 4, || unreachable!("the keeper is awake")));
        take_all(&ring, 4, |_| thread::yield_now());
        writer.join().expect("the writer has not failed");
    });
}

/// Three preemptions at most, for the reason given at
/// `no_wakeup_is_lost_between_the_last_look_and_the_sleep` in the control region's models; and two
/// bytes, for which there is room.
#[test]
fn a_keeper_that_sleeps_is_woken_by_what_is_written_after_its_last_look() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.map_or(3, |bound| bound.min(3)));
    builder.check(|| {
        let ring: Arc<LogRing<3>> = Arc::new(LogRing::new_zeroed());
        let _watched: Vec<_> = ring.watch().collect();
        ring.keep(Keeping::Everything);
        let (far, keeper) = (Arc::clone(&ring), thread::current());
        let writer = thread::spawn(move || write_all(&far, 2, || keeper.unpark()));
        take_all(&ring, 2, |next| {
            ring.keeper.prepare();
            if ring.written() == next {
                thread::park();
            }
            ring.keeper.cancel();
        });
        writer.join().expect("the writer has not failed");
    });
}

#[test]
fn a_byte_that_was_overwritten_while_it_was_read_is_never_taken_for_another() {
    loom::model(|| {
        let ring: Arc<LogRing<3>> = Arc::new(LogRing::new_zeroed());
        let _watched: Vec<_> = ring.watch().collect();
        ring.write(&[1, 2]);
        let far = Arc::clone(&ring);
        let writer = thread::spawn(move || far.write(&[3, 4, 5]));
        let mut piece = [0; 3];
        let read = ring.read(0, &mut piece);
        for (at, found) in read.zip(piece) {
            assert_eq!(u64::from(found), at + 1);
        }
        writer.join().expect("the writer has not failed");
    });
}
