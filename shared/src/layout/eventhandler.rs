//! Event handlers (`eventhandler.h`): the lists, by name, and their entries.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::addr::KPtr;
use crate::field::{Field, Flag};

/// The handlers of one event. Created at the first registration, never destroyed.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EventhandlerList {
    /// The event's name, at most 15 bytes, in two words, as in [`crate::kmem::WaitMessage`].
    pub name: [Field<u64>; 2],
    /// The first handler, or null.
    pub first: Field<KPtr<EventhandlerEntry>>,
    /// The next list, or null.
    pub next_list: Field<KPtr<EventhandlerList>>,
    /// Invocations in progress. While there are any, no entry leaves the list.
    pub runcount: Field<u64>,
    #[doc(hidden)]
    pub _pad: [Field<u64>; 3],
}

const _: () = assert!(size_of::<EventhandlerList>() == 64);

/// A handler on its list, in ascending order of priority and, among equals, in the order of
/// registration.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EventhandlerEntry {
    /// The next handler, or null.
    pub next: Field<KPtr<EventhandlerEntry>>,
    /// Address of the function.
    pub func: Field<u64>,
    /// Its argument.
    pub arg: Field<u64>,
    /// Lower runs first; [`EventhandlerEntry::DEAD`] when it has been deregistered while the list
    /// was running.
    pub priority: Field<u32>,
    /// Set when it runs only once: it is marked dead before it is called, so no other CPU calls it
    /// too.
    pub once: Field<Flag>,
}

impl EventhandlerEntry {
    /// [`EventhandlerEntry::priority`] of a handler that no longer runs (FreeBSD's -1).
    pub const DEAD: u32 = u32::MAX;
}

const _: () = assert!(size_of::<EventhandlerEntry>() == 32);

/// An operation kept until the vm_lowmem event fires.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct StoredOp {
    /// The operation, as a request's ring slot.
    pub slot: [Field<u64>; 8],
    /// Address of the function that performs it.
    pub run: Field<u64>,
    /// The handler that calls that function.
    pub handler: Field<KPtr<EventhandlerEntry>>,
    /// The list that holds the handler.
    pub list: Field<KPtr<EventhandlerList>>,
    #[doc(hidden)]
    pub _pad: [Field<u64>; 5],
}

const _: () = assert!(size_of::<StoredOp>() == 128);
