//! The byte pattern that `fill` writes and `verify` expects.
//!
//! The byte at an address depends only on the address and the seed, so a block that is verified at
//! another address, or with another seed, differs almost everywhere.

/// The eight bytes (little endian) of the pattern at `address`, a multiple of 8.
#[must_use]
#[inline]
pub const fn word(address: u64, seed: u64) -> u64 {
    let x = (address >> 3) ^ seed.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

/// The byte of the pattern at `address`.
#[must_use]
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lowest byte of the shifted word is what is wanted"
)]
pub const fn byte(address: u64, seed: u64) -> u8 {
    (word(address & !7, seed) >> ((address & 7) * 8)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_addresses_and_seeds_give_different_words() {
        let mut words = [0u64; 256];
        for (i, slot) in words.iter_mut().enumerate() {
            *slot = word(0xffff_ff80_0000_0000 + (i as u64 / 4) * 8, i as u64 % 4);
        }
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
