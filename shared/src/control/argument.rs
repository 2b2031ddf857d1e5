//! What operations take as arguments, besides numbers, addresses and what [`crate::kmem`] names.

/// The lock of a submap (FreeBSD's `system_map`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// An sx lock: `kmem_alloc_wait` may be used, `kmem_malloc` may not.
    User,
    /// A mutex, as for mbuf maps: `kmem_malloc` may be used, `kmem_alloc_wait` may not.
    System,
}

/// What [`Op::Pairs`](super::Op::Pairs) allocates with; it frees with `kmem_free`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// `kmem_malloc` with M_NOWAIT.
    Malloc,
    /// `kmem_alloc`.
    Alloc,
}
