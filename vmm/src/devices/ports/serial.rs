//! A 16550 at COM1 without an interrupt line. What the guest sends ends in a [`Console`].

use std::convert::Infallible;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use crate::devices::{Device, Offset};
use crate::kvm::io::Demand;

/// The ports of COM1, one for each register.
pub(in crate::devices) const COM1: RangeInclusive<u16> = 0x3f8..=0x3ff;

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

/// The chip. One vCPU at a time reaches its registers.
pub(in crate::devices) struct Uart(Mutex<Serial<NoInterrupt, NoEvents, Console>>);

impl Uart {
    /// One whose line ends in `console`.
    pub(in crate::devices) fn new(console: Console) -> Self {
        Self(Mutex::new(Serial::new(NoInterrupt, console)))
    }

    /// The register at `offset`, 0 to 7.
    fn register(Offset(offset): Offset) -> u8 {
        let [register, ..] = offset.to_le_bytes();
        register
    }
}

impl Device for Uart {
    fn read(&self, offset: Offset, data: &mut [u8]) {
        let register = Self::register(offset);
        let mut chip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        data.iter_mut().for_each(|byte| *byte = chip.read(register));
    }

    fn write(&self, offset: Offset, data: &[u8]) -> Demand {
        let register = Self::register(offset);
        let mut chip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in data {
            if let Err(error) = chip.write(register, byte) {
                log::debug!("COM1 register {register}: {error:?}");
            }
        }
        Demand::Nothing
    }
}

impl std::fmt::Debug for Uart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uart(COM1)")
    }
}
