//! Terms of the memory system that requests also use: which map, how to allocate, the result, and
//! what a thread sleeps for.
//!
//! They are FreeBSD's and do not depend on the control ring, which exports them again
//! ([`crate::control`]).

use core::fmt;

use bitflags::bitflags;

use crate::codes::codes;

bitflags! {
    /// Flags of `kmem_malloc`, with malloc(9)'s values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct MallocFlags: u64 {
        /// Do not sleep.
        const NOWAIT = 0x1;
        /// May sleep. No flag at all means the same.
        const WAITOK = 0x2;
        /// The memory is zero-filled.
        const ZERO = 0x100;
        /// May dig into the reserve.
        const USE_RESERVE = 0x400;
    }
}

/// A map: below [`MapId::NAMED_MAX`], the number of a map that is created at boot; otherwise the
/// address of a `VmMap` that `kmem_suballoc` created. The kernel rejects an address that does not
/// belong to one of its maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapId(pub u64);

/// Its name, or its address in hexadecimal.
impl fmt::Display for MapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMED.iter().find(|(_, map)| map == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Debug for MapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MapId({self})")
    }
}

impl MapId {
    /// kernel_map.
    pub const KERNEL: Self = Self(0);
    /// kmem_map.
    pub const KMEM: Self = Self(1);
    /// exec_map.
    pub const EXEC: Self = Self(2);
    /// pipe_map.
    pub const PIPE: Self = Self(3);
    /// buffer_map.
    pub const BUFFER: Self = Self(4);
    /// The parent of buffer_map and pager_map.
    pub const CLEAN: Self = Self(5);
    /// pager_map.
    pub const PAGER: Self = Self(6);

    /// Numbers of maps that are made at boot are below this.
    pub const NAMED_MAX: u64 = 64;

    /// The maps that exist at boot, by number, with their names.
    pub const NAMED: [(&'static str, Self); 7] = [
        ("kernel_map", Self::KERNEL),
        ("kmem_map", Self::KMEM),
        ("exec_map", Self::EXEC),
        ("pipe_map", Self::PIPE),
        ("buffer_map", Self::BUFFER),
        ("clean_map", Self::CLEAN),
        ("pager_map", Self::PAGER),
    ];
}

codes! {
    /// FreeBSD's results of map operations (`vm_param.h`), success left out.
    pub enum KernReturn: u32 {
        /// The address is not in the map or not mapped.
        InvalidAddress = 1 => "KERN_INVALID_ADDRESS",
        /// The protection forbids it.
        ProtectionFailure = 2 => "KERN_PROTECTION_FAILURE",
        /// No hole is large enough, or the range is taken.
        NoSpace = 3 => "KERN_NO_SPACE",
        /// An argument breaks the function's contract.
        InvalidArgument = 4 => "KERN_INVALID_ARGUMENT",
        /// It failed.
        Failure = 5 => "KERN_FAILURE",
        /// Something ran out.
        ResourceShortage = 6 => "KERN_RESOURCE_SHORTAGE",
        /// The caller is not the receiver.
        NotReceiver = 7 => "KERN_NOT_RECEIVER",
        /// The caller may not.
        NoAccess = 8 => "KERN_NO_ACCESS",
    }
}

impl fmt::Display for KernReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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
    fn a_map_is_shown_by_its_name_or_its_address() {
        let shown = |map: MapId| std::format!("{map:?}");
        assert_eq!(shown(MapId::KMEM), "MapId(kmem_map)");
        assert_eq!(shown(MapId(0xffff_ff80_0000_1000)), "MapId(0xffffff8000001000)");
    }

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
