//! The kernel's log: into the control region if there is one, otherwise to the first serial port.
//!
//! CPUs write one after the other, a line at a time. If the host keeps all of the log
//! ([`vmkern_abi::log`]), a line waits until there is room for it, unless its thread has interrupts
//! deferred: it may own a lock, or be a handler, for which others wait. Then the line is dropped
//! and counted. The thread stays runnable while it waits, in virtual time as in real time.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use vmkern_abi::control::LOG_PORT;
use vmkern_abi::log::{LOG_BYTES, LogRing};

use super::region;
use crate::arch::instr::{inb, outb, rdtsc};
use crate::arch::percpu::PerCpu;
use crate::arch::tlb;
use crate::masked_cell::MaskedCell;

/// COM1.
const PORT: u16 = 0x3f8;

/// Where log text goes.
#[derive(Debug)]
struct Log;

/// The one writer.
static LOG: MaskedCell<Log> = MaskedCell::new(Log);

/// How long a CPU that dies waits for room, in cycles: a keeper that does not read in this time is
/// considered dead.
const PATIENCE: u64 = 1 << 29;

/// The outcome for a line.
enum Fate {
    /// It was written, or a `Display` of it failed.
    Written(fmt::Result),
    /// There was no room, and it was dropped.
    Dropped,
    /// There is no room, and its thread may wait for some.
    NoRoom,
}

/// Writes a line. It must not be called from a `Display` implementation that formats another line.
///
/// # Errors
/// When a `Display` of an argument fails: the rest of the line is lost.
pub fn line(args: fmt::Arguments<'_>) -> fmt::Result {
    let Some(region) = region::get() else { return LOG.with(|log| writeln!(log, "{args}")) };
    let ring = &region.log;
    let mut spins = 0;
    loop {
        let fate = LOG.with(|log| {
            if has_room_for(ring, args) {
                Fate::Written(writeln!(log, "{args}"))
            } else if PerCpu::current().mask_depth().load(Ordering::Relaxed) > 1 {
                // Interrupts were deferred before this cell deferred them.
                ring.drop_line();
                Fate::Dropped
            } else {
                Fate::NoRoom
            }
        });
        match fate {
            Fate::Written(result) => {
                wake_keeper(ring);
                return result;
            }
            Fate::Dropped => return Ok(()),
            Fate::NoRoom => tlb::spin(spins),
        }
        spins += 1;
    }
}

/// Whether there is room for a line. A line longer than the ring always has room: its beginning is
/// lost.
fn has_room_for(ring: &LogRing, args: fmt::Arguments<'_>) -> bool {
    if !ring.is_kept() {
        return true;
    }
    let mut length = Length(0);
    let _ = writeln!(length, "{args}");
    ring.has_room(length.0.min(LOG_BYTES as u64 - 1))
}

/// Counts the bytes written to it.
struct Length(u64);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len() as u64;
        Ok(())
    }
}

/// Wakes the host to take the new bytes.
fn wake_keeper(ring: &LogRing) {
    if ring.keeper.must_wake() {
        // SAFETY: the device behind the port touches no memory.
        unsafe { outb(LOG_PORT, 0) };
    }
}

/// Writes a line of a CPU that dies, even if a writer is active, which may be that CPU itself. It
/// also waits for room, because that delays nothing any more, but not for ever.
///
/// # Errors
/// As for [`line`].
pub fn last_words(args: fmt::Arguments<'_>) -> fmt::Result {
    let Some(region) = region::get() else { return writeln!(Log, "{args}") };
    let (start, mut spins) = (rdtsc(), 0);
    while !has_room_for(&region.log, args) && rdtsc().wrapping_sub(start) < PATIENCE {
        tlb::spin(spins);
        spins += 1;
    }
    let result = writeln!(Log, "{args}");
    wake_keeper(&region.log);
    result
}

impl Write for Log {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match region::get() {
            Some(region) => region.log.write(text.as_bytes()),
            None => serial(text.as_bytes()),
        }
        Ok(())
    }
}

/// Writes to the serial port, byte by byte as it becomes ready. It gives up on a port that never
/// becomes ready.
fn serial(text: &[u8]) {
    const TRANSMITTER_EMPTY: u8 = 1 << 5;
    for &byte in text {
        // SAFETY: a 16550 touches no memory.
        unsafe {
            for _ in 0..1000 {
                if inb(PORT + 5) & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            outb(PORT, byte);
        }
    }
}

/// Writes a line to the kernel's log.
#[macro_export]
macro_rules! log {
    ($($arg:tt)*) => {{
        // The log cannot fail; a failing `Display` of an argument only loses the rest of the line.
        let _ = $crate::host::log::line(format_args!($($arg)*));
    }};
}
