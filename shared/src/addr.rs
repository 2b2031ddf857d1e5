//! Typed addresses and page arithmetic.

use core::fmt;
use core::marker::PhantomData;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Base-2 logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bits of an address below the page number.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;
/// Bytes that one page-directory entry maps (FreeBSD's `NBPDR`).
pub const NBPDR: u64 = 2 << 20;

/// Rounds `x` down to a page boundary.
#[must_use]
pub const fn trunc_page(x: u64) -> u64 {
    x & !PAGE_MASK
}

/// Rounds `x` up to a page boundary, or `None` where FreeBSD's unsigned arithmetic would wrap to 0.
#[must_use]
pub const fn round_page(x: u64) -> Option<u64> {
    match x.checked_add(PAGE_MASK) {
        Some(y) => Some(trunc_page(y)),
        None => None,
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this numeric value.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The numeric value.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// This address plus `bytes`, or `None` past the end of the address space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }

            /// This address plus `bytes`; the caller knows that the sum exists.
            #[must_use]
            pub const fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }

            /// Bytes from `start` to this address; the caller knows that `start` is not above it.
            #[must_use]
            pub const fn since(self, start: Self) -> u64 {
                self.0 - start.0
            }

            /// The start of the page that holds this address.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(trunc_page(self.0))
            }

            /// Bytes from the start of the page to this address.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & PAGE_MASK
            }

            /// Whether this address starts a page.
            #[must_use]
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An address in the guest's physical memory.
    GuestPhys
}

address! {
    /// An address in the guest kernel's virtual address space.
    GuestVirt
}

impl GuestPhys {
    /// The number of the page that holds this address.
    #[must_use]
    pub const fn pfn(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// The first address of page number `pfn`.
    #[must_use]
    pub const fn from_pfn(pfn: u64) -> Self {
        Self(pfn << PAGE_SHIFT)
    }
}

impl GuestVirt {
    /// Whether bits 48 to 63 repeat bit 47, as x86_64 demands.
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        ((self.0 as i64) << 16 >> 16) as u64 == self.0
    }
}

/// A pointer of the guest kernel to a structure `T` of this crate. Zero is null.
///
/// Kernel structures live in the direct map, so the physical address follows from the pointer by
/// arithmetic ([`crate::kva::dmap_to_phys`]). The host still follows it through the page tables,
/// because it trusts nothing.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct KPtr<T>(u64, PhantomData<fn() -> T>);

impl<T> KPtr<T> {
    /// The null pointer.
    pub const NULL: Self = Self(0, PhantomData);

    /// A pointer to the `T` at `va`.
    #[must_use]
    pub const fn new(va: GuestVirt) -> Self {
        Self(va.get(), PhantomData)
    }

    /// The address that it points to; 0 when it is null.
    #[must_use]
    pub const fn addr(self) -> GuestVirt {
        GuestVirt::new(self.0)
    }

    /// Whether it is null.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The pointer, or `None` when it is null.
    #[must_use]
    pub const fn non_null(self) -> Option<Self> {
        if self.is_null() { None } else { Some(self) }
    }
}

impl<T> Clone for KPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for KPtr<T> {}

impl<T> PartialEq for KPtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for KPtr<T> {}

impl<T> Default for KPtr<T> {
    fn default() -> Self {
        Self::NULL
    }
}

impl<T> fmt::Debug for KPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KPtr({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_page_refuses_what_would_wrap() {
        assert_eq!(round_page(0), Some(0));
        assert_eq!(round_page(1), Some(PAGE_SIZE));
        assert_eq!(round_page(PAGE_SIZE), Some(PAGE_SIZE));
        assert_eq!(round_page(u64::MAX - PAGE_MASK), Some(u64::MAX - PAGE_MASK));
        assert_eq!(round_page(u64::MAX - PAGE_MASK + 1), None);
        assert_eq!(round_page(u64::MAX), None);
    }

    #[test]
    fn canonical_addresses_repeat_bit_47() {
        assert!(GuestVirt::new(0x0000_7fff_ffff_ffff).is_canonical());
        assert!(!GuestVirt::new(0x0000_8000_0000_0000).is_canonical());
        assert!(GuestVirt::new(0xffff_8000_0000_0000).is_canonical());
    }
}
