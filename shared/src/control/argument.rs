//! What operations take as arguments, besides numbers and addresses.

use bitflags::bitflags;

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

/// A map: below [`MapId::NAMED_MAX`] the number of one that is made at boot, else the address of a
/// `VmMap` that `kmem_suballoc` made. The kernel believes no address that is not that of a map of
/// its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapId(pub u64);

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
