//! The kernel's log: into the control region where there is one, else to the first serial port.

use core::fmt::{self, Write};

use super::region;
use crate::arch::instr::{inb, outb};

/// COM1.
const PORT: u16 = 0x3f8;

/// Where log text goes.
#[derive(Clone, Copy, Debug)]
pub struct Log;

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
        use core::fmt::Write as _;
        // The log cannot fail; a failing `Display` of an argument loses the rest of the line only.
        let _ = writeln!($crate::host::log::Log, $($arg)*);
    }};
}
