//! Rings and doorbells under every interleaving of two CPUs, by loom: `scripts/loom.sh` runs these.
//!
//! A bell is a parked thread's token: like the interrupt and the eventfd, it wakes a sleeper, or
//! ends the next sleep at once. After a lost wakeup the sleeper sleeps for ever, which loom reports
//! as a deadlock.

extern crate std;

use std::sync::Arc;
use std::vec::Vec;

use loom::thread;
use zerocopy::FromZeros;

use super::{Consumer, Corrupt, Producer, Ring, SLOT_WORDS, Sleeper, Slot};
use crate::atomic::Ordering;
use crate::atomic::watched::Watched;

/// A ring with two slots, so a few messages fill it, and its consumer's sleeper.
#[derive(FromZeros)]
#[repr(C)]
struct Lane {
    ring: Ring<2>,
    sleeper: Sleeper,
}

impl Lane {
    fn new() -> (Arc<Self>, Vec<Watched>) {
        let lane = Arc::new(Self::new_zeroed());
        let watched = lane.ring.watch().chain([lane.sleeper.asleep.watch()]).collect();
        (lane, watched)
    }
}

/// A message whose words differ when it is torn.
fn message(number: u64) -> Slot {
    [number; SLOT_WORDS]
}

/// Takes `count` messages without sleeping, which must be those from number 1 on.
fn drain(consumer: &mut Consumer<'_, 2>, count: u64) {
    for number in 1..=count {
        let got = loop {
            match consumer.pop().expect("the producer is honest") {
                Some(got) => break got,
                None => thread::yield_now(),
            }
        };
        assert_eq!(got, message(number));
    }
}

#[test]
fn messages_arrive_whole_once_and_in_order_while_slots_are_used_again() {
    loom::model(|| {
        let (lane, _watched) = Lane::new();
        let far = Arc::clone(&lane);
        let producer = thread::spawn(move || {
            let mut producer = Producer::new(&far.ring);
            for number in 1..=3 {
                while !producer.push(&message(number)).expect("the consumer is honest") {
                    thread::yield_now();
                }
            }
        });
        let mut consumer = Consumer::new(&lane.ring);
        drain(&mut consumer, 3);
        assert_eq!(consumer.pop(), Ok(None), "no message comes twice");
        producer.join().expect("the producer ends well");
    });
}

/// Takes messages up to number `last`, and sleeps as [`super`] says while there are none. It calls
/// `prepare` before the last look.
fn serve(lane: &Lane, last: u64, prepare: impl Fn(&Sleeper)) {
    let mut consumer = Consumer::new(&lane.ring);
    let mut next = 1;
    while next <= last {
        if let Some(got) = consumer.pop().expect("the producer is honest") {
            assert_eq!(got, message(next));
            next += 1;
            continue;
        }
        prepare(&lane.sleeper);
        if consumer.waiting() == Ok(0) {
            thread::park();
        }
        lane.sleeper.cancel();
    }
}

/// Sends messages up to number `last`, no more than the ring holds, and rings the bell when asked
/// to.
fn send(lane: &Lane, last: u64, bell: &thread::Thread) {
    let mut producer = Producer::new(&lane.ring);
    for number in 1..=last {
        assert_eq!(producer.push(&message(number)), Ok(true));
        if lane.sleeper.must_wake() {
            bell.unpark();
        }
    }
}

/// Three preemptions at most, however many are asked for. With four, loom reports an impossible
/// deadlock. In it, the producer's swap finds 0, which the consumer stored before it armed itself
/// again; by the fences, the producer's next load must see it armed. loom lets the load see the 0
/// of that swap once more, as if the swap could come after the arming. But the value that a swap
/// stores comes directly after the value that the swap found.
#[test]
fn no_wakeup_is_lost_between_the_last_look_and_the_sleep() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.map_or(3, |bound| bound.min(3)));
    builder.check(|| {
        let (lane, _watched) = Lane::new();
        let (far, bell) = (Arc::clone(&lane), thread::current());
        let producer = thread::spawn(move || send(&far, 2, &bell));
        serve(&lane, 2, Sleeper::prepare);
        producer.join().expect("the producer ends well");
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_of_prepare_a_wakeup_is_lost() {
    loom::model(|| {
        let (lane, _watched) = Lane::new();
        let (far, bell) = (Arc::clone(&lane), thread::current());
        let producer = thread::spawn(move || send(&far, 1, &bell));
        serve(&lane, 1, |sleeper| sleeper.asleep.store(1, Ordering::Relaxed));
        producer.join().expect("the producer ends well");
    });
}

#[test]
fn the_bell_is_rung_once_per_sleep() {
    loom::model(|| {
        let (lane, _watched) = Lane::new();
        lane.sleeper.prepare();
        let far = Arc::clone(&lane);
        let other = thread::spawn(move || u32::from(far.sleeper.must_wake()));
        let mine = u32::from(lane.sleeper.must_wake());
        assert_eq!(mine + other.join().expect("it ends well"), 1);
    });
}

#[test]
fn a_hostile_counter_is_an_error_or_a_distance_that_fits() {
    for lie in [1, 2, 3, u32::MAX] {
        loom::model(move || {
            let (lane, _watched) = Lane::new();
            let far = Arc::clone(&lane);
            let liar = thread::spawn(move || {
                far.ring.lie(lie);
            });
            let mut consumer = Consumer::new(&lane.ring);
            let mut producer = Producer::new(&lane.ring);
            for _ in 0..2 {
                match consumer.waiting() {
                    Ok(waiting) => assert!(waiting <= 2),
                    Err(Corrupt { own, other }) => assert!(other.wrapping_sub(own) > 2),
                }
                let _ = consumer.pop();
                match producer.free() {
                    Ok(free) => assert!(free <= 2),
                    Err(Corrupt { own, other }) => assert!(own.wrapping_sub(other) > 2),
                }
                let _ = producer.push(&message(9));
            }
            liar.join().expect("the liar ends well");
        });
    }
}
