//! A 16550 at COM1 without an interrupt line. What the guest sends ends in a [`Console`].

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

/// First port of COM1.
pub(super) const COM1: u16 = 0x3f8;
/// Last port of COM1.
pub(super) const COM1_LAST: u16 = COM1 + 7;

/// Bytes that a console keeps for its reader. What a guest sends beyond is lost: a guest must not
/// eat the host's memory.
const CONSOLE_BYTES: usize = 4 << 20;

/// Collects what the guest sends. Clones are the same console.
#[derive(Clone, Debug, Default)]
pub(crate) struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// What was sent since the last call.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = CONSOLE_BYTES.saturating_sub(buffer.len());
        buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The chip.
pub(super) struct Uart(Serial<NoInterrupt, NoEvents, Console>);

impl Uart {
    pub(super) fn new(console: Console) -> Self {
        Self(Serial::new(NoInterrupt, console))
    }

    /// Writes register `offset`, 0 to 7.
    pub(super) fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.0.write(offset, value) {
            log::debug!("COM1 register {offset}: {error:?}");
        }
    }

    /// Reads register `offset`, 0 to 7.
    pub(super) fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }
}

impl std::fmt::Debug for Uart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uart(COM1)")
    }
}
