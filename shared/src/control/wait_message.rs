//! What a sleeping thread waits for, as a text of fixed size.

use core::fmt;

/// What a sleeping thread waits for: FreeBSD's wait message, at most 15 bytes, cut where it is
/// longer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WaitMessage([u8; 16]);

impl WaitMessage {
    /// The message `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 16];
        for (byte, c) in bytes.iter_mut().take(15).zip(text.bytes()) {
            *byte = c;
        }
        Self(bytes)
    }

    /// The message in two words, as it lies in a thread and in a ring slot.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        let [low, high] = [0, 8].map(|at| core::array::from_fn(|i| self.0[at + i]));
        [u64::from_le_bytes(low), u64::from_le_bytes(high)]
    }

    /// The message from its two words.
    #[must_use]
    pub fn from_words(words: [u64; 2]) -> Self {
        let [low, high] = words.map(u64::to_le_bytes);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low);
        bytes[8..].copy_from_slice(&high);
        Self(bytes)
    }
}

impl fmt::Display for WaitMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take_while(|&&byte| byte != 0).try_for_each(|&byte| {
            let is_shown = byte == b' ' || byte.is_ascii_graphic();
            fmt::Write::write_char(f, if is_shown { char::from(byte) } else { '?' })
        })
    }
}

impl fmt::Debug for WaitMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WaitMessage({self})")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_wait_message_is_cut_to_15_bytes_and_survives_its_words() {
        for (text, kept) in [
            ("vmwait", "vmwait"),
            ("", ""),
            ("a message of more bytes", "a message of mo"),
            ("a\nb", "a?b"),
        ] {
            let message = WaitMessage::new(text);
            assert_eq!(message.to_string(), kept);
            assert_eq!(WaitMessage::from_words(message.words()), message);
        }
    }
}
