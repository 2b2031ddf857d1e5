//! Requests and responses as ring slots.
//!
//! A request slot is `[tag | op << 32 | thread << 48, a0 .. a6]`, a response slot `[tag | kind <<
//! 32, cycles, v0 .. v5]`. Decoding checks everything: the kernel must survive a faulty host, and
//! the host a faulty kernel.

use core::fmt;

use super::message::{Context, MAX_THREADS, Request, Response};
use super::op::Op;
use super::outcome::Outcome;
use super::ring::Slot;
use crate::addr::GuestVirt;
use crate::kmem::{KernReturn, WaitMessage};

/// A slot that is not a message of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The slot's first word.
    pub head: u64,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring slot with first word {:#x} is not a message of ABI version {}",
            self.head,
            crate::ABI_VERSION
        )
    }
}

impl core::error::Error for WireError {}

impl Request {
    /// The slot that says this.
    #[must_use]
    pub fn encode(&self) -> Slot {
        let (code, [a0, a1, a2, a3, a4]) = self.op.to_wire();
        let (code, context) = (u64::from(code), u64::from(self.context.code()));
        let head = u64::from(self.tag) | code << 32 | context << 48;
        [head, a0, a1, a2, a3, a4, 0, 0]
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// When it is not a request, or an argument is not valid (an unknown flag).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields are cut out of the word on purpose"
    )]
    pub fn decode(slot: &Slot) -> Result<Self, WireError> {
        let [head, a0, a1, a2, a3, a4, ..] = *slot;
        let error = WireError { head };
        let op = Op::from_wire((head >> 32) as u16, &[a0, a1, a2, a3, a4]).ok_or(error)?;
        let context = Context::from_code((head >> 48) as u16).ok_or(error)?;
        Ok(Self { tag: head as u32, context, op })
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
            Outcome::Error(code) => (4, [code.code().into(), 0, 0]),
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
    /// When it is not a response.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields are cut out of the word on purpose"
    )]
    pub fn decode(slot: &Slot) -> Result<Self, WireError> {
        let [head, cycles, v0, v1, v2, ..] = *slot;
        let error = WireError { head };
        let outcome = match head >> 32 {
            1 => Outcome::Ok,
            2 => Outcome::Value(v0),
            3 => Outcome::Null,
            4 => {
                Outcome::Error(u32::try_from(v0).ok().and_then(KernReturn::from_code).ok_or(error)?)
            }
            5 => Outcome::Mismatch { addr: GuestVirt::new(v0), got: v1, want: v2 },
            6 => Outcome::Blocked { waits_for: WaitMessage::from_words([v0, v1]) },
            _ => return Err(error),
        };
        Ok(Self { tag: head as u32, cycles, outcome })
    }
}

impl Context {
    const INTERRUPT: u16 = 0xffff;
    const LOWMEM: u16 = 0xfffe;
    const REST: u16 = 0xfffd;
    /// Added to the number of a thread whose operation is started without waiting.
    const START: u16 = 0x100;
    const START_END: u16 = Self::START + MAX_THREADS;

    const fn code(self) -> u16 {
        match self {
            Self::Thread(thread) => thread,
            Self::Start(thread) => Self::START + thread,
            Self::Interrupt => Self::INTERRUPT,
            Self::Lowmem => Self::LOWMEM,
            Self::Rest => Self::REST,
        }
    }

    const fn from_code(code: u16) -> Option<Self> {
        match code {
            0..MAX_THREADS => Some(Self::Thread(code)),
            Self::START..Self::START_END => Some(Self::Start(code - Self::START)),
            Self::INTERRUPT => Some(Self::Interrupt),
            Self::LOWMEM => Some(Self::Lowmem),
            Self::REST => Some(Self::Rest),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::argument::{Allocator, MapKind};
    use super::super::work::Workload;
    use super::*;
    use crate::kmem::{MallocFlags, MapId};
    use crate::layout::Protection;

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
            Op::KmemSuballoc {
                parent: MapId(0xffff_ff00_0000_1000),
                size: 16,
                kind: MapKind::User,
            },
            Op::KmemAllocWait { map, size: 17 },
            Op::KmemFreeWakeup { map, addr, size: 18 },
            Op::Protect { map, addr, size: 19, protection: Protection::READ },
            Op::UmaReclaim,
            Op::Join { thread: 63 },
            Op::Work(Workload::Pairs { map, size: 19, count: 20, allocator: Allocator::Malloc }),
            Op::Work(Workload::Pairs { map, size: 21, count: 22, allocator: Allocator::Alloc }),
            Op::Work(Workload::Stress {
                seed: 19,
                operations: 20,
                parties: 21,
                pageable: map,
                system: MapId::EXEC,
            }),
            Op::Work(Workload::SpinRead { mailbox: addr, rounds: 22 }),
            Op::Work(Workload::SpinFree { mailbox: addr, map }),
        ];
        let codes = ops.iter().fold(0_u64, |codes, op| codes | 1 << op.to_wire().0);
        for row in Op::TABLE.iter().chain(Workload::TABLE) {
            assert_ne!(codes & 1 << row.code, 0, "no {} here", row.name);
        }
        for (tag, op) in (u32::MAX - 30..).zip(ops) {
            let threads =
                [Context::Thread(0), Context::Thread(63), Context::Start(0), Context::Start(63)];
            for context in
                threads.into_iter().chain([Context::Interrupt, Context::Lowmem, Context::Rest])
            {
                let request = Request { tag, context, op };
                assert_eq!(Request::decode(&request.encode()), Ok(request));
            }
        }
    }

    #[test]
    fn every_operation_has_a_code_of_its_own() {
        let mut seen = 0_u64;
        for row in Op::TABLE.iter().chain(Workload::TABLE) {
            assert_eq!(seen & 1 << row.code, 0, "{}", row.name);
            assert!(!row.says.is_empty() && row.arguments.len() <= 5, "{}", row.name);
            seen |= 1 << row.code;
        }
        assert!((seen + 1).is_power_of_two(), "the codes are in a row");
        let malloc = Op::TABLE.iter().find(|row| row.name == "KmemMalloc").expect("a row");
        let arguments = [("map", "MapId"), ("size", "u64"), ("flags", "MallocFlags")];
        assert_eq!((malloc.code, malloc.arguments), (3, &arguments[..]));
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
        assert!(Request::decode(&[(0x100 + 64) << 48, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[20 << 32, 64, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[3 << 32, 1, 4096, 0x8000, 0, 0, 0, 0]).is_err());
        assert!(Request::decode(&[21 << 32, 1, 4096, 1, 2, 0, 0, 0]).is_err());
        assert!(Response::decode(&[0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Response::decode(&[4 << 32, 0, 99, 0, 0, 0, 0, 0]).is_err());
    }
}
