//! `rand(LO,HI)`.
//!
//! The generator is xoshiro256** (Blackman and Vigna), its 256 bits of state made from the run's
//! seed by four steps of SplitMix64. Both bounds are included. A draw takes the next 64-bit output
//! `x`; outputs at or above the greatest multiple of `n = HI - LO + 1` that fits in 64 bits are
//! thrown away, so that every value is equally likely, and the result is `LO + x % n`. A script
//! with the same seed draws the same numbers on every machine and in every version.

use rand_xoshiro::Xoshiro256StarStar;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// The random numbers of one run.
#[derive(Clone, Debug)]
pub struct Random(Xoshiro256StarStar);

impl Random {
    /// The numbers of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256StarStar::seed_from_u64(seed))
    }

    /// A number from `low` to `high`, both included; `low` is not above `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let Some(n) = (high - low).checked_add(1) else { return self.0.next_u64() };
        let limit = u64::MAX - (u64::MAX % n + 1) % n;
        loop {
            let x = self.0.next_u64();
            if x <= limit {
                return low + x % n;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_are_drawn_and_nothing_outside_of_them() {
        let mut random = Random::new(0);
        let mut seen = [false; 3];
        for _ in 0..100 {
            let value = random.between(5, 7);
            seen[usize::try_from(value - 5).expect("small")] = true;
        }
        assert_eq!(seen, [true; 3]);
        assert_eq!(random.between(9, 9), 9);
        random.between(0, u64::MAX);
    }

    #[test]
    fn the_numbers_of_a_seed_are_part_of_the_language() {
        // SplitMix64 from 0 gives the state; the first output of xoshiro256** is rotl(s1 * 5, 7) *
        // 9.
        let mut state = [0u64; 4];
        let mut x = 0u64;
        for word in &mut state {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *word = z ^ (z >> 31);
        }
        let first = state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        assert_eq!(Random::new(0).between(0, u64::MAX), first);
    }
}
