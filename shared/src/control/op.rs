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

/// A map: below [`MapId::NAMED_MAX`] the number of one that is made at boot, else the address of a `VmMap` that
/// `kmem_suballoc` made. The kernel believes no address that is not that of a map of its own.
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

    /// Numbers of maps that are made at boot are below this.
    pub const NAMED_MAX: u64 = 64;

    /// The maps that exist at boot, by number, with their names.
    pub const NAMED: [(&'static str, Self); 5] = [
        ("kernel_map", Self::KERNEL),
        ("kmem_map", Self::KMEM),
        ("exec_map", Self::EXEC),
        ("pipe_map", Self::PIPE),
        ("buffer_map", Self::BUFFER),
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

/// Where an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// On kernel thread 0 to 63, made at its first use.
    Thread(u16),
    /// In an interrupt handler, where sleeping is forbidden.
    Interrupt,
    /// In a handler of the vm_lowmem event, once, when it next fires. The answer comes at once: ok.
    Lowmem,
}

impl Context {
    const INTERRUPT: u16 = 0xffff;
    const LOWMEM: u16 = 0xfffe;

    const fn code(self) -> u16 {
        match self {
            Self::Thread(thread) => thread,
            Self::Interrupt => Self::INTERRUPT,
            Self::Lowmem => Self::LOWMEM,
        }
    }

    const fn from_code(code: u16) -> Option<Self> {
        match code {
            0..MAX_THREADS => Some(Self::Thread(code)),
            Self::INTERRUPT => Some(Self::Interrupt),
            Self::LOWMEM => Some(Self::Lowmem),
            _ => None,
        }
    }
}

/// Threads that operations can run on.
pub const MAX_THREADS: u16 = 64;

/// What a sleeping thread waits for: FreeBSD's wait message, at most 15 bytes, cut where it is longer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WaitMessage([u8; 16]);

impl WaitMessage {
    /// The message `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 16];
        for (byte, c) in bytes.iter_mut().take(15).zip(text.bytes()) {
            *byte = c;
        }
        Self(bytes)
    }

    /// The message in two words, as it lies in a thread and in a ring slot.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        let [low, high] = [0, 8].map(|at| core::array::from_fn(|i| self.0[at + i]));
        [u64::from_le_bytes(low), u64::from_le_bytes(high)]
    }

    /// The message from its two words.
    #[must_use]
    pub fn from_words(words: [u64; 2]) -> Self {
        let [low, high] = words.map(u64::to_le_bytes);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low);
        bytes[8..].copy_from_slice(&high);
        Self(bytes)
    }
}

impl fmt::Display for WaitMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take_while(|&&byte| byte != 0).try_for_each(|&byte| {
            let is_shown = byte == b' ' || byte.is_ascii_graphic();
            fmt::Write::write_char(f, if is_shown { char::from(byte) } else { '?' })
        })
    }
}

impl fmt::Debug for WaitMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WaitMessage({self})")
    }
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
    /// `kmem_suballoc(parent, &min, &max, size)`. Answer: the new map as a [`MapId`], or a panic of the kernel.
    KmemSuballoc {
        /// The map to take the range from.
        parent: MapId,
        /// Bytes.
        size: u64,
        /// Which lock the new map uses, and so what may be done with it.
        kind: MapKind,
    },
    /// `kmem_alloc_wait(map, size)`. May sleep. Answer: an address or null.
    KmemAllocWait {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
    },
    /// `kmem_free_wakeup(map, addr, size)`. Answer: ok.
    KmemFreeWakeup {
        /// The map.
        map: MapId,
        /// First address.
        addr: GuestVirt,
        /// Bytes.
        size: u64,
    },
    /// `uma_reclaim()`. Answer: ok.
    UmaReclaim,
    /// Waits until the operation of another thread has finished. Answer: that operation's answer, or that it is still
    /// blocked.
    Join {
        /// The other thread.
        thread: u16,
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
    /// Allocates and frees `size` bytes, `count` times one after the other: what the functions themselves cost. Answer: ok,
    /// or null when an allocation failed.
    Pairs {
        /// The map.
        map: MapId,
        /// Bytes.
        size: u64,
        /// Pairs.
        count: u64,
        /// By which function.
        allocator: Allocator,
    },
    /// One thread's part of a random mix of all functions, with every live word verified before it is freed; in the end
    /// all is free again. Answer: the number of operations, at least those asked for, or a mismatch, after which what
    /// the thread has stays allocated.
    Stress {
        /// Decides everything.
        seed: u64,
        /// Operations after which the thread frees what it has.
        operations: u64,
        /// Threads that share the maps: each fills its part of them.
        parties: u64,
        /// A map for `kmem_alloc_wait`, besides exec_map, from which each party takes at most one block.
        pageable: MapId,
        /// A system map for `kmem_malloc`, besides kmem_map.
        system: MapId,
    },
    /// Reads, again and again, what [`Op::SpinFree`] on another CPU frees under it. Answer: the rounds that it took, or a
    /// mismatch: what could be read although the free had returned, or was wrong before it.
    SpinRead {
        /// A page of zeros in which the two meet.
        mailbox: GuestVirt,
        /// Rounds in which the two ran on different CPUs.
        rounds: u64,
    },
    /// The other side of [`Op::SpinRead`]: allocates a page, waits until the reader reads it, frees it. Answer: ok.
    SpinFree {
        /// The page in which the two meet.
        mailbox: GuestVirt,
        /// A system map.
        map: MapId,
    },
}

/// What [`Op::Pairs`] allocates with; it frees with `kmem_free`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// `kmem_malloc` with M_NOWAIT.
    Malloc,
    /// `kmem_alloc`.
    Alloc,
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
    /// The thread sleeps, nothing in the guest is runnable, and no time-out of a thread with a request is pending. The
    /// answer proper comes to [`Op::Join`].
    Blocked {
        /// What it waits for.
        waits_for: WaitMessage,
    },
}

/// An operation with its address: which thread does it, and by which tag the answer comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Returned with the response.
    pub tag: u32,
    /// Where to do it.
    pub context: Context,
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
            Op::KmemAlloc { map, size } => (1, [map.0, size, 0]),
            Op::KmemAllocNofault { map, size } => (2, [map.0, size, 0]),
            Op::KmemMalloc { map, size, flags } => (3, [map.0, size, flags.bits()]),
            Op::KmemFree { map, addr, size } => (4, [map.0, addr.get(), size]),
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
            Op::KmemSuballoc { parent, size, kind } => {
                (16, [parent.0, size, if kind == MapKind::System { 1 } else { 0 }])
            }
            Op::KmemAllocWait { map, size } => (17, [map.0, size, 0]),
            Op::KmemFreeWakeup { map, addr, size } => (18, [map.0, addr.get(), size]),
            Op::UmaReclaim => (19, [0; 3]),
            Op::Join { thread } => (20, [thread.into(), 0, 0]),
            Op::Pairs { map, size, count, .. } => (21, [map.0, size, count]),
            Op::Stress { seed, operations, parties, .. } => (22, [seed, operations, parties]),
            Op::SpinRead { mailbox, rounds } => (23, [mailbox.get(), rounds, 0]),
            Op::SpinFree { mailbox, map } => (24, [mailbox.get(), map.0, 0]),
        };
        let rest = match self.op {
            Op::Pairs { allocator, .. } => [u64::from(allocator == Allocator::Alloc), 0],
            Op::Stress { pageable, system, .. } => [pageable.0, system.0],
            _ => [0; 2],
        };
        let head = u64::from(self.tag) | code << 32 | u64::from(self.context.code()) << 48;
        [head, a[0], a[1], a[2], rest[0], rest[1], 0, 0]
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// When it is no request, or names what cannot be (an unknown flag).
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the word on purpose")]
    pub fn decode(slot: &Slot) -> Result<Self, WireError> {
        let [head, a0, a1, a2, a3, a4, ..] = *slot;
        let error = WireError { head };
        let map = MapId(a0);
        let (v0, v1) = (GuestVirt::new(a0), GuestVirt::new(a1));
        let op = match (head >> 32) as u16 {
            0 => Op::Nop,
            1 => Op::KmemAlloc { map, size: a1 },
            2 => Op::KmemAllocNofault { map, size: a1 },
            3 => Op::KmemMalloc { map, size: a1, flags: MallocFlags::from_bits(a2).ok_or(error)? },
            4 => Op::KmemFree { map, addr: v1, size: a2 },
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
            16 => Op::KmemSuballoc { parent: map, size: a1, kind: kind(a2).ok_or(error)? },
            17 => Op::KmemAllocWait { map, size: a1 },
            18 => Op::KmemFreeWakeup { map, addr: v1, size: a2 },
            19 => Op::UmaReclaim,
            21 => Op::Pairs { map, size: a1, count: a2, allocator: allocator(a3).ok_or(error)? },
            20 => Op::Join { thread: u16::try_from(a0).ok().filter(|&t| t < MAX_THREADS).ok_or(error)? },
            22 => Op::Stress { seed: a0, operations: a1, parties: a2, pageable: MapId(a3), system: MapId(a4) },
            23 => Op::SpinRead { mailbox: v0, rounds: a1 },
            24 => Op::SpinFree { mailbox: v0, map: MapId(a1) },
            _ => return Err(error),
        };
        let context = Context::from_code((head >> 48) as u16).ok_or(error)?;
        Ok(Self { tag: head as u32, context, op })
    }
}

const fn kind(code: u64) -> Option<MapKind> {
    match code {
        0 => Some(MapKind::User),
        1 => Some(MapKind::System),
        _ => None,
    }
}

const fn allocator(code: u64) -> Option<Allocator> {
    match code {
        0 => Some(Allocator::Malloc),
        1 => Some(Allocator::Alloc),
        _ => None,
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
            Outcome::Blocked { waits_for } => {
                let [low, high] = waits_for.words();
                (6, [low, high, 0])
            }
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
            6 => Outcome::Blocked { waits_for: WaitMessage::from_words([v0, v1]) },
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
            Op::KmemSuballoc { parent: MapId::KERNEL, size: 15, kind: MapKind::System },
            Op::KmemSuballoc { parent: MapId(0xffff_ff00_0000_1000), size: 16, kind: MapKind::User },
            Op::KmemAllocWait { map, size: 17 },
            Op::KmemFreeWakeup { map, addr, size: 18 },
            Op::UmaReclaim,
            Op::Join { thread: 63 },
            Op::Pairs { map, size: 19, count: 20, allocator: Allocator::Malloc },
            Op::Pairs { map, size: 21, count: 22, allocator: Allocator::Alloc },
            Op::Stress { seed: 19, operations: 20, parties: 21, pageable: map, system: MapId::EXEC },
            Op::SpinRead { mailbox: addr, rounds: 22 },
            Op::SpinFree { mailbox: addr, map },
        ];
        for (tag, op) in (u32::MAX - 30..).zip(ops) {
            for context in [Context::Thread(0), Context::Thread(63), Context::Interrupt, Context::Lowmem] {
                let request = Request { tag, context, op };
                assert_eq!(Request::decode(&request.encode()), Ok(request));
            }
        }
    }

    #[test]
    fn every_outcome_survives_the_ring() {
        let mismatch = Outcome::Mismatch { addr: GuestVirt::new(1), got: 2, want: 3 };
        let blocked = Outcome::Blocked { waits_for: WaitMessage::new("vmmaps") };
        let plain = [Outcome::Ok, Outcome::Value(u64::MAX), Outcome::Null, mismatch, blocked];
        for outcome in plain.into_iter().chain(KernReturn::ALL.map(Outcome::Error)) {
            let response = Response { tag: 7, cycles: 8, outcome };
            assert_eq!(Response::decode(&response.encode()), Ok(response));
        }
    }

    #[test]
    fn a_slot_that_is_no_message_is_refused() {
        assert!(Request::decode(&[77 << 32, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[64 << 48, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[20 << 32, 64, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[3 << 32, 1, 4096, 0x8000, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[21 << 32, 1, 4096, 1, 2, 0, 0, 0]).is_err());
        assert!(Response::decode(&[0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Response::decode(&[4 << 32, 0, 99, 0, 0, 0, 0, 0]).is_err());
    }
}

#[cfg(test)]
mod wait_message_tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_wait_message_is_cut_to_15_bytes_and_survives_its_words() {
        for (text, kept) in
            [("vmwait", "vmwait"), ("", ""), ("a message of more bytes", "a message of mo"), ("a\nb", "a?b")]
        {
            let message = WaitMessage::new(text);
            assert_eq!(message.to_string(), kept);
            assert_eq!(WaitMessage::from_words(message.words()), message);
        }
    }
}
