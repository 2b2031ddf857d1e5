//! Mistakes on purpose, each behind a cargo feature that is off in every build but those of
//! `scripts/seeded.sh`: it builds a kernel with one of them, and a sweep over all failures must
//! find it. They are of the three kinds that error paths have most often.

/// The path on which `kmem_malloc` undoes an allocation keeps a page.
pub(crate) const KEEPS_A_PAGE: bool = cfg!(feature = "bug-leak");

/// `kmem_malloc` returns without a range and leaves the map locked.
pub(crate) const LEAVES_A_LOCK: bool = cfg!(feature = "bug-lock");

/// A fault that waits for a page wakes nobody who could free one.
pub(crate) const WAKES_NOBODY: bool = cfg!(feature = "bug-wakeup");
