//! A fresh guest for each test of `vm_kern.c`, and the invariants at its end.

use vmkern::{Guest, GuestBuilder};

use crate::kern::KernGuest;
use crate::{MEMORY, launch};

/// Runs `test` in a fresh guest of [`MEMORY`] bytes. If the guest lives then, it must be whole and
/// nobody blocked.
///
/// # Panics
/// When it is not, or cannot be launched.
#[track_caller]
pub fn in_guest(test: impl FnOnce(&mut KernGuest)) {
    in_guest_of(Guest::builder().memory(MEMORY), test);
}

/// Runs `test` as [`in_guest`] does, in a guest of `builder`'s.
///
/// # Panics
/// As for [`in_guest`].
#[track_caller]
pub fn in_guest_of(builder: GuestBuilder, test: impl FnOnce(&mut KernGuest)) {
    let mut guest = KernGuest::from(launch(builder));
    test(&mut guest);
    // Dropping it sees whether anybody is blocked.
    if guest.death().is_none() {
        guest.assert_whole();
    }
}

/// Runs `test` in a guest with little memory and a kmem_map that is larger than it, so that pages
/// are short before address space is.
///
/// # Panics
/// As for [`in_guest`].
#[track_caller]
pub fn in_small_guest(test: impl FnOnce(&mut KernGuest)) {
    in_guest_of(small(), test);
}

/// Runs `test` as [`in_small_guest`] does, in a guest of `vcpus` CPUs.
///
/// # Panics
/// As for [`in_guest`].
#[track_caller]
pub fn in_small_guest_of(vcpus: u32, test: impl FnOnce(&mut KernGuest)) {
    in_guest_of(small().vcpus(vcpus), test);
}

/// Runs `test`, which ends with threads asleep for good, in the same guest as [`in_small_guest`].
///
/// # Panics
/// When nobody is blocked in the end, or the guest is not whole.
#[track_caller]
pub fn in_small_guest_left_blocked(test: impl FnOnce(&mut KernGuest)) {
    let mut guest = KernGuest::from(launch(small()));
    test(&mut guest);
    guest.assert_whole();
    let blocked: Vec<_> = guest.blocked().collect();
    assert_ne!(blocked, [], "nobody is blocked");
    for (thread, waits_for) in blocked {
        guest.expect_blocked(thread, &waits_for.to_string());
    }
}

/// Runs `test`, which does damage that FreeBSD of 2008 does not prevent, and checks that the damage
/// shows.
///
/// # Panics
/// When the guest is whole afterwards.
#[track_caller]
pub fn in_guest_to_be_damaged(test: impl FnOnce(&mut KernGuest)) {
    let mut guest = KernGuest::from(launch(Guest::builder().memory(MEMORY)));
    test(&mut guest);
    let guest = guest.into_unchecked();
    let report = guest.check().expect("the guest can be checked");
    assert!(!report.is_clean(), "the damage does not show");
}

/// A guest of [`MEMORY`] bytes with a kmem_map of `bytes`, at least a page.
pub fn with_kmem_map(bytes: u64) -> GuestBuilder {
    Guest::builder().memory(MEMORY).tunable("vm.kmem_size", bytes)
}

/// 16 MiB of memory, 24 MiB of kmem_map.
fn small() -> GuestBuilder {
    with_kmem_map(24 << 20).memory(16 << 20)
}
