//! `vm_map` and `vm_map_entry`.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::object::VmObject;
use crate::addr::{GuestVirt, KPtr};
use crate::field::Field;
use crate::flags_word;

bitflags! {
    /// Flags of a map entry (`MAP_ENTRY_*`), with FreeBSD's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct EntryFlags: u32 {
        /// The object is a map.
        const IS_SUB_MAP = 0x0002;
        /// A fault inside is a panic.
        const NOFAULT = 0x0010;
        /// Being wired or unwired: neither clipped away, merged nor deleted.
        const IN_TRANSITION = 0x0100;
        /// Somebody waits for the end of the transition.
        const NEEDS_WAKEUP = 0x0200;
    }
}

bitflags! {
    /// What may be done to a page (`VM_PROT_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Protection: u8 {
        /// Read.
        const READ = 1;
        /// Write.
        const WRITE = 2;
        /// Execute.
        const EXECUTE = 4;
    }
}

flags_word!(EntryFlags, u32);
flags_word!(Protection, u8);

/// A range of a map: `[start, end)`, page aligned, all of one kind. Guarded by the map's lock.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmMapEntry {
    /// The entry below, or the map's header.
    pub prev: Field<KPtr<VmMapEntry>>,
    /// The entry above, or the map's header.
    pub next: Field<KPtr<VmMapEntry>>,
    /// First address.
    pub start: Field<GuestVirt>,
    /// First address past the range.
    pub end: Field<GuestVirt>,
    /// The object behind the range, or with [`EntryFlags::IS_SUB_MAP`] the submap (a `KPtr<VmMap>`), or null.
    pub object: Field<KPtr<VmObject>>,
    /// Byte in the object that stands at `start`.
    pub offset: Field<u64>,
    /// Flags.
    pub eflags: Field<EntryFlags>,
    /// How often it is wired.
    pub wired_count: Field<u32>,
    /// What is allowed.
    pub protection: Field<Protection>,
    /// What can be allowed.
    pub max_protection: Field<Protection>,
    /// SHARE 0, COPY 1, NONE 2.
    pub inheritance: Field<u8>,
    #[doc(hidden)]
    pub _pad: [Field<u8>; 5],
}

const _: () = assert!(size_of::<VmMapEntry>() == 64);
