//! Numbers that are shown in hexadecimal.

use std::fmt;

use serde::{Serialize, Serializer};
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};

/// An address, or another word shown in hexadecimal: `0x` and lower-case digits, in JSON a string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Formatted as a string first, so a width pads it.
        f.pad(&format!("{:#x}", self.0))
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<GuestVirt> for Hex {
    fn from(at: GuestVirt) -> Self {
        Self(at.get())
    }
}

impl From<GuestPhys> for Hex {
    fn from(at: GuestPhys) -> Self {
        Self(at.get())
    }
}

impl<T> From<KPtr<T>> for Hex {
    fn from(at: KPtr<T>) -> Self {
        Self(at.addr().get())
    }
}
