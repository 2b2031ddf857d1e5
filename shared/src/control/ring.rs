//! A ring for one producer and one consumer, each of which distrusts the other.
//!
//! `tail` counts the slots ever filled, and only the producer writes it; `head` counts the slots
//! ever emptied, and only the consumer writes it. Both wrap. Each side keeps its own counter
//! privately and only *checks* the other's: a distance above the ring's size is [`Corrupt`],
//! whatever wrote it. A slot's words are published by the release store of the counter and read
//! after its acquire load.

use core::fmt;

use zerocopy::{FromBytes, KnownLayout};

use super::RING_SLOTS;
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::describe::{Described as _, Structure};
use crate::field::Field;

/// Words in a slot: one cache line.
pub const SLOT_WORDS: usize = 8;

/// One message.
pub type Slot = [u64; SLOT_WORDS];

#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C, align(64))]
struct Counter {
    value: AtomicU32,
    _line: [Field<u8>; 60],
}

/// The ring in shared memory. `N` is a power of two. All zero is the empty ring.
#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C, align(64))]
pub struct Ring<const N: usize> {
    tail: Counter,
    head: Counter,
    slots: [[AtomicU64; SLOT_WORDS]; N],
}

crate::describe!(Counter { value, _line });
crate::describe!(Ring as Ring<RING_SLOTS> { tail, head, slots });

/// The layout of a counter of a ring.
pub(crate) const COUNTER: Structure = Counter::DESCRIPTION;

/// The other side's counter is not one that the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// This side's own counter.
    pub own: u32,
    /// The value of the other side's counter.
    pub other: u32,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring counters {:#x} and {:#x} are further apart than the ring is long",
            self.own, self.other
        )
    }
}

impl core::error::Error for Corrupt {}

impl<const N: usize> Ring<N> {
    #[expect(clippy::cast_possible_truncation, reason = "checked on this very line")]
    const SLOTS: u32 = {
        assert!(N.is_power_of_two() && N <= 1 << 16);
        N as u32
    };

    /// Has loom watch the counters, and the first and the last word of each slot.
    #[cfg(all(test, loom))]
    pub(super) fn watch(&self) -> impl Iterator<Item = crate::atomic::watched::Watched> {
        let words =
            self.slots.iter().flat_map(|slot| [slot[0].watch(), slot[SLOT_WORDS - 1].watch()]);
        [self.tail.value.watch(), self.head.value.watch()].into_iter().chain(words)
    }

    /// Writes `lie` into both counters.
    #[cfg(all(test, loom))]
    pub(super) fn lie(&self, lie: u32) {
        for counter in [&self.tail, &self.head] {
            counter.value.store(lie, Ordering::Relaxed);
        }
    }

    fn slot(&self, counter: u32) -> &[AtomicU64; SLOT_WORDS] {
        &self.slots[(counter & (Self::SLOTS - 1)) as usize]
    }
}

/// The producer's side of a ring.
#[derive(Debug)]
pub struct Producer<'a, const N: usize> {
    ring: &'a Ring<N>,
    tail: u32,
}

impl<'a, const N: usize> Producer<'a, N> {
    /// The producer of a fresh ring. There must be no other.
    #[must_use]
    pub fn new(ring: &'a Ring<N>) -> Self {
        Self { ring, tail: ring.tail.value.load(Ordering::Relaxed) }
    }

    /// How many slots are free.
    ///
    /// # Errors
    /// When the consumer's counter is impossible.
    pub fn free(&self) -> Result<u32, Corrupt> {
        let head = self.ring.head.value.load(Ordering::Acquire);
        let used = self.tail.wrapping_sub(head);
        Ring::<N>::SLOTS.checked_sub(used).ok_or(Corrupt { own: self.tail, other: head })
    }

    /// Puts `message` into the ring; `false` when it is full.
    ///
    /// # Errors
    /// When the consumer's counter is impossible.
    #[must_use = "a full ring drops nothing: the caller still owns the message"]
    pub fn push(&mut self, message: &Slot) -> Result<bool, Corrupt> {
        if self.free()? == 0 {
            return Ok(false);
        }
        for (word, &value) in self.ring.slot(self.tail).iter().zip(message) {
            word.store(value, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.value.store(self.tail, Ordering::Release);
        Ok(true)
    }
}

/// The consumer's side of a ring.
#[derive(Debug)]
pub struct Consumer<'a, const N: usize> {
    ring: &'a Ring<N>,
    head: u32,
}

impl<'a, const N: usize> Consumer<'a, N> {
    /// The consumer of a fresh ring. There must be no other.
    #[must_use]
    pub fn new(ring: &'a Ring<N>) -> Self {
        Self { ring, head: ring.head.value.load(Ordering::Relaxed) }
    }

    /// How many messages wait.
    ///
    /// # Errors
    /// When the producer's counter is impossible.
    pub fn waiting(&self) -> Result<u32, Corrupt> {
        let tail = self.ring.tail.value.load(Ordering::Acquire);
        let waiting = tail.wrapping_sub(self.head);
        if waiting <= Ring::<N>::SLOTS {
            Ok(waiting)
        } else {
            Err(Corrupt { own: self.head, other: tail })
        }
    }

    /// Takes the oldest message, or `None` from an empty ring.
    ///
    /// # Errors
    /// When the producer's counter is impossible.
    pub fn pop(&mut self) -> Result<Option<Slot>, Corrupt> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        let mut message = [0; SLOT_WORDS];
        for (value, word) in message.iter_mut().zip(self.ring.slot(self.head)) {
            *value = word.load(Ordering::Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        self.ring.head.value.store(self.head, Ordering::Release);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::thread;

    use super::*;

    fn ring<const N: usize>() -> Box<Ring<N>> {
        let slots = core::array::from_fn(|_| core::array::from_fn(|_| AtomicU64::new(0)));
        let counter = || Counter {
            value: AtomicU32::new(0),
            _line: core::array::from_fn(|_| Field::default()),
        };
        Box::new(Ring { tail: counter(), head: counter(), slots })
    }

    #[test]
    fn a_full_ring_refuses_and_an_emptied_one_accepts_again() {
        let ring = ring::<4>();
        let (mut producer, mut consumer) = (Producer::new(&ring), Consumer::new(&ring));
        for round in 0..3 {
            for i in 0..4 {
                assert_eq!(producer.push(&[round * 4 + i; SLOT_WORDS]), Ok(true));
            }
            assert_eq!(producer.push(&[99; SLOT_WORDS]), Ok(false));
            for i in 0..4 {
                assert_eq!(consumer.pop(), Ok(Some([round * 4 + i; SLOT_WORDS])));
            }
            assert_eq!(consumer.pop(), Ok(None));
        }
    }

    #[test]
    fn an_impossible_counter_of_the_other_side_is_an_error_for_both() {
        let ring = ring::<4>();
        ring.head.value.store(7, Ordering::Relaxed);
        assert_eq!(Producer::new(&ring).free(), Err(Corrupt { own: 0, other: 7 }));
        let ring = self::ring::<4>();
        let mut consumer = Consumer::new(&ring);
        ring.tail.value.store(5, Ordering::Relaxed);
        assert_eq!(consumer.pop(), Err(Corrupt { own: 0, other: 5 }));
    }

    #[test]
    fn messages_arrive_whole_and_in_order_across_threads() {
        let ring = ring::<8>();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut producer = Producer::new(&ring);
                for i in 0..20_000u64 {
                    while !producer.push(&[i; SLOT_WORDS]).expect("the consumer is honest") {
                        thread::yield_now();
                    }
                }
            });
            let mut consumer = Consumer::new(&ring);
            for i in 0..20_000u64 {
                loop {
                    if let Some(message) = consumer.pop().expect("the producer is honest") {
                        assert_eq!(message, [i; SLOT_WORDS]);
                        break;
                    }
                    thread::yield_now();
                }
            }
        });
    }
}
