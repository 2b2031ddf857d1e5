//! `rand(LO,HI)`.
//!
//! The generator is xoshiro256** (Blackman and Vigna), its 256 bits of state made from the run's
//! seed by four steps of SplitMix64. Both bounds are included. A draw takes the next 64-bit output
//! `x`; outputs at or above the greatest multiple of `n = HI - LO + 1` that fits in 64 bits are
//! thrown away, so that every value is equally likely, and the result is `LO + x % n`. A script
//! with the same seed draws the same numbers on every machine and in every version.

/// The random numbers of one run.
#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

impl Random {
    /// The numbers of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        Self([(); 4].map(|()| split_mix(&mut x)))
    }

    /// The next output of xoshiro256**.
    fn next(&mut self) -> u64 {
        let Self(s) = self;
        let output = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        output
    }

    /// A number from `low` to `high`, both included; `low` is not above `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let Some(n) = (high - low).checked_add(1) else { return self.next() };
        let limit = u64::MAX - (u64::MAX % n + 1) % n;
        loop {
            let x = self.next();
            if x <= limit {
                return low + x % n;
            }
        }
    }
}

/// A step of SplitMix64 (Steele, Lea and Flood), whose state is `x`.
fn split_mix(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*x ^ (*x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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

    #[test]
    fn the_state_moves_as_in_the_paper() {
        // The reference implementation from the state 1, 2, 3, 4.
        let mut random = Random([1, 2, 3, 4]);
        let outputs = [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240];
        assert_eq!([(); 4].map(|()| random.next()), outputs);
    }
}
