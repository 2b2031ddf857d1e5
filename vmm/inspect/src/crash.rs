//! How a kernel died, in words: the crash record, checked, with its addresses resolved to names.

use std::fmt;

use thiserror::Error;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::MAX_THREADS;
use vmkern_abi::crash::{CrashKind, CrashRecord, FRAMES_MAX, MESSAGE_MAX};

use crate::cpu::Registers;
use crate::symbols::{AddressKind, Frame, Symbols};
use crate::text::one_line;

/// The guest reported its death, but left no valid record. Holds the kind that the record names.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[error("the guest died and left no crash record (kind {0})")]
pub struct NoCrashRecord(pub u32);

crate::debug_as_printed!(NoCrashRecord);

/// A place in the kernel, with its name where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The address.
    pub address: GuestVirt,
    /// The function and the line, innermost inlined function first. Empty if the symbols do not
    /// cover the address.
    pub frames: Vec<Frame>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        for (depth, frame) in self.frames.iter().enumerate() {
            write!(f, "{}{frame}", if depth == 0 { " (" } else { " in " })?;
        }
        f.write_str(if self.frames.is_empty() { "" } else { ")" })
    }
}

/// How a kernel died.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crash {
    /// The way it died.
    pub kind: CrashKind,
    /// The kernel's own message.
    pub message: String,
    /// The CPU.
    pub cpu: u32,
    /// Number of the kernel thread, if one ran.
    pub thread: Option<u32>,
    /// The thread's name: `tN` for a thread that requests can name, otherwise the kernel's own
    /// name.
    pub thread_name: Option<String>,
    /// Whether it happened in an interrupt handler, which only interrupted that thread.
    pub in_interrupt: bool,
    /// The exception's vector, if it was an exception.
    pub vector: Option<u32>,
    /// The exception's error code.
    pub error_code: u64,
    /// Where it happened; 0 for a panic, whose place the backtrace shows.
    pub rip: GuestVirt,
    /// The address that faulted last.
    pub cr2: GuestVirt,
    /// Registers there; all 0 for a panic.
    pub registers: Box<Registers>,
    /// The calls that led there, innermost first. An address inside inlined functions yields one
    /// frame for each of them.
    pub backtrace: Vec<Frame>,
}

impl Crash {
    /// Reads `record`. The guest may have written nonsense: counts are capped and text is made
    /// valid UTF-8.
    ///
    /// # Errors
    /// [`NoCrashRecord`] when its kind is unknown.
    pub fn from_record(record: &CrashRecord, symbols: &Symbols) -> Result<Self, NoCrashRecord> {
        // 1. Is it a record at all: is its kind known?
        let code = record.kind.get();
        let kind = code.known().ok_or(NoCrashRecord(code.raw()))?;
        // 2. Its text and frames, capped at what the record has room for.
        let absent = |value: u32| (value != u32::MAX).then_some(value);
        let count = |value: u32, max: usize| usize::try_from(value).unwrap_or(max).min(max);
        let message: Vec<u8> = record
            .message
            .iter()
            .take(count(record.message_len.get(), MESSAGE_MAX))
            .map(|byte| byte.get())
            .collect();
        let frames = record
            .frames
            .iter()
            .take(count(record.frames_len.get(), FRAMES_MAX))
            .map(|frame| frame.get());
        // 3. The registers.
        let mut registers = Registers {
            rip: record.rip.get(),
            rflags: record.rflags.get(),
            cr2: record.cr2.get(),
            cr3: record.cr3.get(),
            ..Registers::default()
        };
        for (register, field) in registers.gpr.iter_mut().zip(&record.gpr) {
            *register = field.get();
        }
        // 4. The first frame is where the CPU stood if it equals RIP; a panic has return addresses
        //    only.
        let innermost = match record.frames[0].get() {
            first if first == record.rip.get() => AddressKind::Stopped,
            _ => AddressKind::Called,
        };
        Ok(Self {
            kind,
            message: one_line(&message),
            cpu: record.cpu.get(),
            thread: absent(record.thread.get()),
            thread_name: absent(record.thread.get()).map(thread_name),
            in_interrupt: record.in_interrupt.is_set(),
            vector: absent(record.vector.get()),
            error_code: record.error_code.get(),
            rip: record.rip.get(),
            cr2: record.cr2.get(),
            registers: Box::new(registers),
            backtrace: symbols.backtrace(frames, innermost),
        })
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The kernel's words name every other kind themselves.
        let what = if self.kind == CrashKind::Panic { "panic: " } else { "" };
        write!(f, "{what}{}", self.message)?;
        write!(f, "\ncpu {}", self.cpu)?;
        if let Some(thread) = &self.thread_name {
            let handler = if self.in_interrupt { "interrupt handler on " } else { "" };
            write!(f, "  {handler}thread {thread}")?;
        }
        if let Some(vector) = self.vector {
            write!(f, "  vector {vector}  error code {:#x}", self.error_code)?;
        }
        if self.rip.get() != 0 {
            write!(f, "\n{}", self.registers)?;
        }
        let mut depth = 0;
        for same in self
            .backtrace
            .chunk_by(|a, b| a.function == b.function && a.offset == b.offset && a.line == b.line)
        {
            write!(f, "\n#{depth:<2} {}", same[0])?;
            if same.len() > 1 {
                write!(f, "\n    and {} more of the same", same.len() - 1)?;
            }
            depth += same.len();
        }
        Ok(())
    }
}

/// The name of thread `tid`, as far as it follows from the number.
fn thread_name(tid: u32) -> String {
    if tid < u32::from(MAX_THREADS) { format!("t{tid}") } else { format!("number {tid}") }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::field::Code;
    use zerocopy::FromBytes;

    use super::*;

    fn record() -> Box<CrashRecord> {
        Box::new(
            CrashRecord::read_from_bytes(&vec![0; size_of::<CrashRecord>()])
                .expect("zeros are a record"),
        )
    }

    #[test]
    fn lengths_that_lie_are_capped() {
        let record = record();
        record.kind.put(CrashKind::Panic);
        record.message_len.set(u32::MAX);
        record.frames_len.set(u32::MAX);
        record.message.iter().for_each(|byte| byte.set(0xff));
        record.thread.set(u32::MAX);
        let crash = Crash::from_record(&record, &Symbols::none()).expect("the kind is valid");
        assert_eq!(crash.message.chars().count(), MESSAGE_MAX);
        assert_eq!(crash.backtrace.len(), FRAMES_MAX);
        assert_eq!(crash.thread, None);
    }

    #[test]
    fn a_thread_that_requests_name_is_told_as_they_name_it() {
        let record = record();
        record.kind.put(CrashKind::Panic);
        for (tid, name) in
            [(0, Some("t0")), (63, Some("t63")), (65, Some("number 65")), (u32::MAX, None)]
        {
            record.thread.set(tid);
            let crash = Crash::from_record(&record, &Symbols::none()).expect("the kind is valid");
            assert_eq!(crash.thread_name.as_deref(), name);
        }
    }

    #[test]
    fn a_kind_that_is_none_is_refused() {
        let record = record();
        for kind in [0, 6, u32::MAX] {
            record.kind.set(Code::from_raw(kind));
            assert_eq!(Crash::from_record(&record, &Symbols::none()), Err(NoCrashRecord(kind)));
        }
    }
}
