//! Crashes, with a record for the host.
//!
//! The record goes into the control region, or as text to the log if there is none; then the kernel
//! leaves through the exit port. A crash inside a crash only leaves. A CPU that crashes while
//! another one does lets that one finish, and stops.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

use vmkern_abi::control::ExitCode;
use vmkern_abi::crash::{CrashKind, CrashRecord, FRAMES_MAX, MESSAGE_MAX};

use super::backtrace::Backtrace;
use super::exit::leave;
use super::{log, region};
use crate::arch::percpu::PerCpu;
use crate::arch::trap::TrapFrame;
use crate::fault::Why;

/// The cause of a crash.
pub enum Cause<'a> {
    /// `panic()`.
    Panic(fmt::Arguments<'a>),
    /// An exception.
    Trap {
        /// Its kind.
        kind: CrashKind,
        /// The context it interrupted.
        frame: &'a TrapFrame,
        /// Why a page fault is fatal.
        why: Why,
    },
}

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Panic(args) => f.write_fmt(args),
            Self::Trap { kind: CrashKind::PageFault, frame, ref why } => {
                let error = PageFaultError(frame.error_code);
                write!(f, "page fault: {error} at {:#x}, rip {:#x}{why}", frame.cr2, frame.rip)
            }
            Self::Trap { kind: CrashKind::StackOverflow, frame, .. } => {
                write!(
                    f,
                    "stack overflow: rsp {:#x}, access to {:#x}, rip {:#x}",
                    frame.rsp, frame.cr2, frame.rip
                )
            }
            Self::Trap { kind: CrashKind::Nucleus, frame, .. } => {
                let (vector, rip, cr2, rsp) = (frame.vector, frame.rip, frame.cr2, frame.rsp);
                write!(
                    f,
                    "fault in the nucleus: vector {vector}, rip {rip:#x}, \
                     cr2 {cr2:#x}, rsp {rsp:#x}"
                )
            }
            Self::Trap { frame, .. } => {
                let (vector, error) = (frame.vector, frame.error_code);
                write!(
                    f,
                    "unexpected trap {vector} ({}), error code {error:#x}, rip {:#x}",
                    name(vector),
                    frame.rip
                )
            }
        }
    }
}

/// The error code of a page fault (SDM volume 3, section 4.7), in words.
struct PageFaultError(u64);

impl fmt::Display for PageFaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.0 {
            e if e & 1 << 4 != 0 => "instruction fetch",
            e if e & 1 << 1 != 0 => "write",
            _ => "read",
        };
        let why = match self.0 {
            e if e & 1 << 3 != 0 => "reserved bit set",
            e if e & 1 != 0 => "protection violation",
            _ => "not present",
        };
        write!(f, "{access} ({why})")
    }
}

/// The mnemonic of an exception.
fn name(vector: u64) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "reserved", "#TS", "#NP",
        "#SS", "#GP", "#PF", "reserved", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];
    match NAMES.get(usize::try_from(vector).unwrap_or(usize::MAX)) {
        Some(name) => name,
        None => "interrupt",
    }
}

/// Records why the kernel dies, and leaves through the exit port.
pub fn die(cause: &Cause<'_>) -> ! {
    /// Number of the CPU that dies, plus 1.
    static DYING: AtomicU32 = AtomicU32::new(0);
    let me = PerCpu::current().number() + 1;
    match DYING.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            let _ = log::last_words(format_args!("panic: {cause}"));
            match region::get() {
                Some(region) => record(&region.crash, cause),
                None => print_backtrace(cause),
            }
        }
        Err(other) if other == me => {}
        // Leaving now would end the guest in the middle of the other's record.
        Err(_) => loop {
            core::hint::spin_loop();
        },
    }
    leave(ExitCode::Crash)
}

fn record(record: &CrashRecord, cause: &Cause<'_>) {
    // 1. Where it happened, and the frame if it was a trap.
    record.cpu.set(PerCpu::current().number());
    record.thread.set(crate::memory::current_tid().unwrap_or(u32::MAX));
    record.in_interrupt.set(crate::memory::vm().is_some_and(|vm| vm.in_interrupt()).into());
    record.vector.set(u32::MAX);
    if let Cause::Trap { frame, .. } = cause {
        record.vector.set(u32::try_from(frame.vector).unwrap_or(u32::MAX));
        record.error_code.set(frame.error_code);
        record.rip.set(frame.rip);
        record.rflags.set(frame.rflags);
        record.cr2.set(frame.cr2);
        for (field, value) in record.gpr.iter().zip(frame.gpr()) {
            field.set(value);
        }
    }
    record.cr3.set(crate::direct_map::pml4().get());
    // 2. The message and the backtrace, as far as there is room for them.
    let mut message = Message { record, len: 0 };
    let _ = write!(message, "{cause}");
    let len = message.len;
    record.message_len.set(u32::try_from(len).unwrap_or(0));
    let mut frames = 0u32;
    for (slot, address) in record.frames.iter().zip(backtrace_of(cause)) {
        slot.set(address);
        frames += 1;
    }
    record.frames_len.set(frames);
    // 3. The kind comes last: it says that the record is complete.
    let kind = match cause {
        Cause::Panic(_) => CrashKind::Panic,
        Cause::Trap { kind, .. } => *kind,
    };
    core::sync::atomic::fence(Ordering::SeqCst);
    record.kind.put(kind);
}

fn print_backtrace(cause: &Cause<'_>) {
    for address in backtrace_of(cause).take(FRAMES_MAX) {
        let _ = log::last_words(format_args!("  at {address:#x}"));
    }
}

/// Writes into a record's message, and cuts the text that does not fit.
struct Message<'a> {
    record: &'a CrashRecord,
    len: usize,
}

impl Write for Message<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let mut utf8 = [0; 4];
            let bytes = c.encode_utf8(&mut utf8).as_bytes();
            if self.len + bytes.len() > MESSAGE_MAX {
                return Err(fmt::Error);
            }
            for &byte in bytes {
                self.record.message[self.len].set(byte);
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// The return addresses of the code that `cause` stopped.
fn backtrace_of(cause: &Cause<'_>) -> Backtrace {
    match cause {
        Cause::Panic(_) => Backtrace::here(),
        Cause::Trap { frame, .. } => Backtrace::of_trap(frame),
    }
}
