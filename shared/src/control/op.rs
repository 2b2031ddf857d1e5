//! What can be asked of the kernel, and what it can answer, as types and as ring slots.
//!
//! A request slot is `[tag | op << 32 | thread << 48, a0 .. a6]`, a response slot `[tag | kind << 32, cycles, v0 .. v5]`.
//! Decoding checks everything: the kernel must survive a confused host, and the host a confused kernel.

use core::fmt;

use bitflags::bitflags;

use super::ring::Slot;
use crate::addr::GuestVirt;

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

/// A map, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapId(pub u32);

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

    /// The maps that exist at boot, by number, with their names.
    pub const NAMED: [(&'static str, Self); 5] = [
        ("kernel_map", Self::KERNEL),
        ("kmem_map", Self::KMEM),
        ("exec_map", Self::EXEC),
        ("pipe_map", Self::PIPE),
        ("buffer_map", Self::BUFFER),
    ];
}

/// FreeBSD's results of map operations (`vm_param.h`), success left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum KernReturn {
    /// The address is not in the map or not mapped.
    InvalidAddress = 1,
    /// The protection forbids it.
    ProtectionFailure = 2,
    /// No hole is large enough, or the range is taken.
    NoSpace = 3,
    /// An argument breaks the function's contract.
    InvalidArgument = 4,
    /// It failed.
    Failure = 5,
    /// Something ran out.
    ResourceShortage = 6,
    /// The caller is not the receiver.
    NotReceiver = 7,
    /// The caller may not.
    NoAccess = 8,
}

impl KernReturn {
    /// Every result.
    pub const ALL: [Self; 8] = [
        Self::InvalidAddress,
        Self::ProtectionFailure,
        Self::NoSpace,
        Self::InvalidArgument,
        Self::Failure,
        Self::ResourceShortage,
        Self::NotReceiver,
        Self::NoAccess,
    ];

    /// FreeBSD's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidAddress => "KERN_INVALID_ADDRESS",
            Self::ProtectionFailure => "KERN_PROTECTION_FAILURE",
            Self::NoSpace => "KERN_NO_SPACE",
            Self::InvalidArgument => "KERN_INVALID_ARGUMENT",
            Self::Failure => "KERN_FAILURE",
            Self::ResourceShortage => "KERN_RESOURCE_SHORTAGE",
            Self::NotReceiver => "KERN_NOT_RECEIVER",
            Self::NoAccess => "KERN_NO_ACCESS",
        }
    }

    /// The result with this FreeBSD name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// The result with this FreeBSD number.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|&k| k as u64 == code)
    }
}

impl fmt::Display for KernReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One operation. Sizes are bytes, as the caller wrote them: rounding is the kernel's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Nothing: measures the ring. Answer: ok.
    Nop,
    /// `kmem_alloc(map, size)`. Answer: an address or null.
    KmemAlloc {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
    },
    /// `kmem_alloc_nofault(map, size)`. Answer: an address or null.
    KmemAllocNofault {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
    },
    /// `kmem_malloc(map, size, flags)`. Answer: an address or null.
    KmemMalloc {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
        /// M_* flags.
        flags: MallocFlags,
    },
    /// `kmem_free(map, addr, size)`. Answer: ok.
    KmemFree {
        /// The map.
        map: MapId,
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// Maps `count` fresh wired pages at `addr`. Answer: ok, or an error when there are not that many pages.
    PmapQenter {
        /// First address.
        addr: GuestVirt,
        /// Pages.
        count: u64,
    },
    /// Undoes [`Op::PmapQenter`]. Answer: ok.
    PmapQremove {
        /// First address.
        addr: GuestVirt,
        /// Pages.
        count: u64,
    },
    /// Reads 8 bytes. Answer: their value.
    Read {
        /// Their address.
        addr: GuestVirt,
    },
    /// Writes 8 bytes. Answer: ok.
    Write {
        /// Their address.
        addr: GuestVirt,
        /// What to write.
        value: u64,
    },
    /// Writes one byte of each page (the one that stands there already). Answer: ok.
    Touch {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// Writes [`crate::pattern`]. Answer: ok.
    Fill {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
        /// The pattern's seed.
        seed: u64,
    },
    /// Checks for [`crate::pattern`]. Answer: ok or a mismatch.
    Verify {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
        /// The pattern's seed.
        seed: u64,
    },
    /// Checks for zeros. Answer: ok or a mismatch.
    VerifyZero {
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// The physical address by the kernel's own walk of the page tables. Answer: an address or null.
    Vtop {
        /// The virtual address.
        addr: GuestVirt,
    },
    /// Lets time pass. Answer: ok.
    Sleep {
        /// Microseconds.
        micros: u64,
    },
    /// Waits until nothing is runnable but idle work, and idle work is done. Answer: ok.
    Settle,
}

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It returned nothing, and went well.
    Ok,
    /// It returned a number or an address.
    Value(u64),
    /// It returned null.
    Null,
    /// It failed.
    Error(KernReturn),
    /// A verification found a wrong 8-byte word (or the part of it inside the range, low bytes first).
    Mismatch {
        /// Address of the first wrong byte's word.
        addr: GuestVirt,
        /// What stands there.
        got: u64,
        /// What should.
        want: u64,
    },
}

/// An operation with its address: which thread does it, and by which tag the answer comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Returned with the response.
    pub tag: u32,
    /// The kernel thread, 0 to 63.
    pub thread: u16,
    /// What to do.
    pub op: Op,
}

/// The answer to the [`Request`] with the same tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Response {
    /// The request's tag.
    pub tag: u32,
    /// TSC cycles from the operation's start to its end, measured by the kernel.
    pub cycles: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// A slot that is no message of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The slot's first word.
    pub head: u64,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ring slot with first word {:#x} is no message of ABI version {}", self.head, crate::ABI_VERSION)
    }
}

impl core::error::Error for WireError {}

impl Request {
    /// The slot that says this.
    #[must_use]
    pub fn encode(&self) -> Slot {
        let (code, a): (u64, [u64; 3]) = match self.op {
            Op::Nop => (0, [0; 3]),
            Op::KmemAlloc { map, size } => (1, [map.0.into(), size, 0]),
            Op::KmemAllocNofault { map, size } => (2, [map.0.into(), size, 0]),
            Op::KmemMalloc { map, size, flags } => (3, [map.0.into(), size, flags.bits()]),
            Op::KmemFree { map, addr, size } => (4, [map.0.into(), addr.get(), size]),
            Op::PmapQenter { addr, count } => (5, [addr.get(), count, 0]),
            Op::PmapQremove { addr, count } => (6, [addr.get(), count, 0]),
            Op::Read { addr } => (7, [addr.get(), 0, 0]),
            Op::Write { addr, value } => (8, [addr.get(), value, 0]),
            Op::Touch { addr, size } => (9, [addr.get(), size, 0]),
            Op::Fill { addr, size, seed } => (10, [addr.get(), size, seed]),
            Op::Verify { addr, size, seed } => (11, [addr.get(), size, seed]),
            Op::VerifyZero { addr, size } => (12, [addr.get(), size, 0]),
            Op::Vtop { addr } => (13, [addr.get(), 0, 0]),
            Op::Sleep { micros } => (14, [micros, 0, 0]),
            Op::Settle => (15, [0; 3]),
        };
        let head = u64::from(self.tag) | code << 32 | u64::from(self.thread) << 48;
        [head, a[0], a[1], a[2], 0, 0, 0, 0]
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// When it is no request, or names what cannot be (a map number of more than 32 bits, an unknown flag).
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the word on purpose")]
    pub fn decode(slot: &Slot) -> Result<Self, WireError> {
        let [head, a0, a1, a2, ..] = *slot;
        let error = WireError { head };
        let map = || u32::try_from(a0).map(MapId).map_err(|_| error);
        let (v0, v1) = (GuestVirt::new(a0), GuestVirt::new(a1));
        let op = match (head >> 32) as u16 {
            0 => Op::Nop,
            1 => Op::KmemAlloc { map: map()?, size: a1 },
            2 => Op::KmemAllocNofault { map: map()?, size: a1 },
            3 => Op::KmemMalloc { map: map()?, size: a1, flags: MallocFlags::from_bits(a2).ok_or(error)? },
            4 => Op::KmemFree { map: map()?, addr: v1, size: a2 },
            5 => Op::PmapQenter { addr: v0, count: a1 },
            6 => Op::PmapQremove { addr: v0, count: a1 },
            7 => Op::Read { addr: v0 },
            8 => Op::Write { addr: v0, value: a1 },
            9 => Op::Touch { addr: v0, size: a1 },
            10 => Op::Fill { addr: v0, size: a1, seed: a2 },
            11 => Op::Verify { addr: v0, size: a1, seed: a2 },
            12 => Op::VerifyZero { addr: v0, size: a1 },
            13 => Op::Vtop { addr: v0 },
            14 => Op::Sleep { micros: a0 },
            15 => Op::Settle,
            _ => return Err(error),
        };
        Ok(Self { tag: head as u32, thread: (head >> 48) as u16, op })
    }
}

impl Response {
    /// The slot that says this.
    #[must_use]
    pub fn encode(&self) -> Slot {
        let (kind, v): (u64, [u64; 3]) = match self.outcome {
            Outcome::Ok => (1, [0; 3]),
            Outcome::Value(value) => (2, [value, 0, 0]),
            Outcome::Null => (3, [0; 3]),
            Outcome::Error(code) => (4, [code as u64, 0, 0]),
            Outcome::Mismatch { addr, got, want } => (5, [addr.get(), got, want]),
        };
        [u64::from(self.tag) | kind << 32, self.cycles, v[0], v[1], v[2], 0, 0, 0]
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// When it is no response.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the word on purpose")]
    pub fn decode(slot: &Slot) -> Result<Self, WireError> {
        let [head, cycles, v0, v1, v2, ..] = *slot;
        let error = WireError { head };
        let outcome = match head >> 32 {
            1 => Outcome::Ok,
            2 => Outcome::Value(v0),
            3 => Outcome::Null,
            4 => Outcome::Error(KernReturn::from_code(v0).ok_or(error)?),
            5 => Outcome::Mismatch { addr: GuestVirt::new(v0), got: v1, want: v2 },
            _ => return Err(error),
        };
        Ok(Self { tag: head as u32, cycles, outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_survives_the_ring() {
        let (map, addr) = (MapId::KMEM, GuestVirt::new(0xffff_ff80_0000_1000));
        let ops = [
            Op::Nop,
            Op::KmemAlloc { map, size: 1 },
            Op::KmemAllocNofault { map, size: 2 },
            Op::KmemMalloc { map, size: 3, flags: MallocFlags::NOWAIT | MallocFlags::ZERO },
            Op::KmemFree { map, addr, size: 4 },
            Op::PmapQenter { addr, count: 5 },
            Op::PmapQremove { addr, count: 6 },
            Op::Read { addr },
            Op::Write { addr, value: 7 },
            Op::Touch { addr, size: 8 },
            Op::Fill { addr, size: 9, seed: 10 },
            Op::Verify { addr, size: 11, seed: 12 },
            Op::VerifyZero { addr, size: 13 },
            Op::Vtop { addr },
            Op::Sleep { micros: 14 },
            Op::Settle,
        ];
        for (tag, op) in (u32::MAX - 20..).zip(ops) {
            let request = Request { tag, thread: 63, op };
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn every_outcome_survives_the_ring() {
        let mismatch = Outcome::Mismatch { addr: GuestVirt::new(1), got: 2, want: 3 };
        let plain = [Outcome::Ok, Outcome::Value(u64::MAX), Outcome::Null, mismatch];
        for outcome in plain.into_iter().chain(KernReturn::ALL.map(Outcome::Error)) {
            let response = Response { tag: 7, cycles: 8, outcome };
            assert_eq!(Response::decode(&response.encode()), Ok(response));
        }
    }

    #[test]
    fn a_slot_that_is_no_message_is_refused() {
        assert!(Request::decode(&[77 << 32, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[3 << 32, 1, 4096, 0x8000, 0, 0, 0, 0]).is_err());
        assert!(Response::decode(&[0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Response::decode(&[4 << 32, 0, 99, 0, 0, 0, 0, 0]).is_err());
    }
}
