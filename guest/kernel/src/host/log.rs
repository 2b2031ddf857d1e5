//! The kernel's log: into the control region where there is one, else to the first serial port.
//!
//! CPUs write one after the other, a line at a time.

use core::fmt::{self, Write};

use super::region;
use crate::arch::instr::{inb, outb};
use crate::masked_cell::MaskedCell;

/// COM1.
const PORT: u16 = 0x3f8;

/// Where log text goes.
#[derive(Debug)]
struct Log;

/// The one writer.
static LOG: MaskedCell<Log> = MaskedCell::new(Log);

/// Writes a line. Not from inside of a `Display` that another line is made with.
///
/// # Errors
/// When a `Display` of an argument fails: the rest of the line is lost.
pub fn line(args: fmt::Arguments<'_>) -> fmt::Result {
    LOG.with(|log| writeln!(log, "{args}"))
}

/// Writes a line of a CPU that dies, whoever may be writing: that one may be the CPU itself.
///
/// # Errors
/// As for [`line`].
pub fn last_words(args: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(Log, "{args}")
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

/// Writes to the serial port, byte by byte as it becomes ready. A port that never does is given up.
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
        // The log cannot fail; a failing `Display` of an argument loses the rest of the line only.
        let _ = $crate::host::log::line(format_args!($($arg)*));
    }};
}
