//! The types of the arguments of operations, besides numbers, addresses and the types of
//! [`crate::kmem`], and how an argument is encoded.

use core::fmt;

use super::message::MAX_THREADS;
use crate::addr::GuestVirt;
use crate::codes::codes;
use crate::kmem::{MallocFlags, MapId};
use crate::layout::Protection;

codes! {
    /// The lock of a submap (FreeBSD's `system_map`).
    pub enum MapKind: u8 {
        /// An sx lock: `kmem_alloc_wait` may be used, `kmem_malloc` may not.
        User = 0,
        /// A mutex, as for mbuf maps: `kmem_malloc` may be used, `kmem_alloc_wait` may not.
        System = 1,
    }
}

impl fmt::Display for MapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::System => "system",
        })
    }
}

codes! {
    /// The function with which [`Workload::Pairs`](super::Workload::Pairs) allocates; it frees with
    /// `kmem_free`.
    pub enum Allocator: u8 {
        /// `kmem_malloc` with M_NOWAIT.
        Malloc = 0,
        /// `kmem_alloc`.
        Alloc = 1,
    }
}

/// A type that an operation can take: one word of the request's slot.
pub(super) trait Argument: Copy {
    /// The word that encodes this value.
    fn to_word(self) -> u64;

    /// The value that `word` encodes, or `None` when no value has that word.
    fn from_word(word: u64) -> Option<Self>;

    /// Writes it as C would.
    fn show(self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

macro_rules! arguments {
    ($($type:ty: $to:expr, $from:expr, $show:expr;)+) => {$(
        impl Argument for $type {
            fn to_word(self) -> u64 {
                $to(self)
            }

            fn from_word(word: u64) -> Option<Self> {
                $from(word)
            }

            fn show(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $show(self, f)
            }
        }
    )+};
}

arguments! {
    u64: |n| n, Some, number;
    MapId: |map: Self| map.0, |word| Some(Self(word)), |map: Self, f| fmt::Display::fmt(&map, f);
    GuestVirt: Self::get, |word| Some(Self::new(word)), |addr: Self, f| fmt::Display::fmt(&addr, f);
    MallocFlags: |flags: Self| flags.bits(), Self::from_bits, flags;
    Protection: |allows: Self| allows.bits().into(),
        |word| Self::from_bits(u8::try_from(word).ok()?),
        |allows: Self, f| fmt::Display::fmt(&allows, f);
    MapKind: |kind: Self| kind.code().into(), |word| Self::from_code(u8::try_from(word).ok()?),
        |kind: Self, f| fmt::Display::fmt(&kind, f);
    Allocator: |by: Self| by.code().into(), |word| Self::from_code(u8::try_from(word).ok()?),
        |by: Self, f| fmt::Debug::fmt(&by, f);
}

/// Sizes in decimal. What is as large as an address wrapped somewhere, or is one.
fn number(n: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if n < 1 << 47 { write!(f, "{n}") } else { write!(f, "{n:#x}") }
}

/// The names of malloc(9).
fn flags(flags: MallocFlags, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if flags.is_empty() {
        return f.write_str("0");
    }
    for (at, (name, _)) in flags.iter_names().enumerate() {
        write!(f, "{}M_{name}", if at == 0 { "" } else { "|" })?;
    }
    Ok(())
}

/// The number of a thread.
impl Argument for u16 {
    fn to_word(self) -> u64 {
        self.into()
    }

    fn from_word(word: u64) -> Option<Self> {
        Self::try_from(word).ok().filter(|&thread| thread < MAX_THREADS)
    }

    fn show(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{self}")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString as _;

    use super::super::{Op, Workload};
    use super::*;

    #[test]
    fn an_operation_is_shown_as_c_would_call_it() {
        let addr = GuestVirt::new(0xffff_ff80_0000_1000);
        let (map, flags) = (MapId::KMEM, MallocFlags::NOWAIT | MallocFlags::ZERO);
        for (op, shown) in [
            (Op::Nop, "nop()"),
            (
                Op::KmemMalloc { map, size: 4096, flags },
                "kmem_malloc(kmem_map, 4096, M_NOWAIT|M_ZERO)",
            ),
            (
                Op::KmemMalloc { map, size: u64::MAX, flags: MallocFlags::empty() },
                "kmem_malloc(kmem_map, 0xffffffffffffffff, 0)",
            ),
            (
                Op::KmemSuballoc { parent: MapId(addr.get()), size: 8192, kind: MapKind::System },
                "kmem_suballoc(0xffffff8000001000, 8192, system)",
            ),
            (Op::Read { addr }, "read(0xffffff8000001000)"),
            (Op::Join { thread: 3 }, "Join(t3)"),
            (
                Op::Work(Workload::SpinFree { mailbox: addr, map }),
                "SpinFree(0xffffff8000001000, kmem_map)",
            ),
        ] {
            assert_eq!(op.to_string(), shown);
        }
    }
}
