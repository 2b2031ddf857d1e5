//! A fresh guest for each test, and the invariants at its end.

use vmkern::{Guest, GuestBuilder};

use crate::{MEMORY, invariants, launch, launch_unchecked};

/// Runs `test` in a fresh guest of [`MEMORY`] bytes. If the guest lives then, it must be whole and
/// nobody blocked.
///
/// # Panics
/// When it is not, or cannot be launched.
pub fn in_guest(test: impl FnOnce(&mut Guest)) {
    in_guest_of(Guest::builder().memory(MEMORY), test);
}

/// Runs `test` as [`in_guest`] does, in a guest of `builder`'s.
///
/// # Panics
/// As for [`in_guest`].
pub fn in_guest_of(builder: GuestBuilder, test: impl FnOnce(&mut Guest)) {
    let mut guest = launch(builder);
    test(&mut guest);
    if guest.death().is_none() {
        let blocked: Vec<_> = guest.blocked().collect();
        assert_eq!(blocked, [], "threads that are still blocked");
        assert_whole(&guest);
    }
}

/// Runs `test` in a guest with little memory and a kmem_map that is larger than it, so that pages
/// are short before address space is.
///
/// # Panics
/// As for [`in_guest`].
pub fn in_small_guest(test: impl FnOnce(&mut Guest)) {
    in_guest_of(small(), test);
}

/// Runs `test` as [`in_small_guest`] does, in a guest of `vcpus` CPUs.
///
/// # Panics
/// As for [`in_guest`].
pub fn in_small_guest_of(vcpus: u32, test: impl FnOnce(&mut Guest)) {
    in_guest_of(small().vcpus(vcpus), test);
}

/// Runs `test`, which ends with threads asleep for good, in the same guest as [`in_small_guest`].
///
/// # Panics
/// When nobody is blocked in the end.
pub fn in_small_guest_left_blocked(test: impl FnOnce(&mut Guest)) {
    let mut guest = launch(small());
    test(&mut guest);
    assert!(guest.blocked().next().is_some(), "nobody is blocked");
    assert_whole(&guest);
}

/// Checks the invariants between operations, half-made work of sleeping threads allowed.
///
/// # Panics
/// With what does not hold.
pub fn assert_whole(guest: &Guest) {
    invariants::check(guest).unwrap_or_else(|broken| panic!("{broken}"));
}

/// Runs `test`, which does damage that FreeBSD of 2008 does not prevent, and checks that the damage
/// shows.
///
/// # Panics
/// When the guest is whole afterwards.
pub fn in_guest_to_be_damaged(test: impl FnOnce(&mut Guest)) {
    let mut guest = launch_unchecked(Guest::builder().memory(MEMORY));
    test(&mut guest);
    assert_ne!(invariants::check(&guest), Ok(()), "the damage does not show");
}

/// A guest of [`MEMORY`] bytes with a kmem_map of `bytes`, at least a page.
pub fn with_kmem_map(bytes: u64) -> GuestBuilder {
    Guest::builder().memory(MEMORY).tunable("vm.kmem_size", bytes)
}

/// 16 MiB of memory, 24 MiB of kmem_map.
fn small() -> GuestBuilder {
    with_kmem_map(24 << 20).memory(16 << 20)
}
