//! The guest's devices, all of them on I/O ports.
//!
//! COM1 for what the kernel says before and after it has a log, the exit port, the doorbells of the
//! host and of the log's keeper, the port at which a CPU stands still, and the one at which it
//! yields. Every other port reads all ones and ignores writes, as an empty bus does.

mod serial;

use vmkern_abi::control::{DOORBELL_PORT, EXIT_PORT, LOG_PORT, PAUSE_PORT, Stand, YIELD_PORT};

pub(crate) use self::serial::Console;
use self::serial::{COM1, COM1_LAST, Uart};
use crate::kvm::Standing;

/// What a write to a port asks of the vCPU's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortEvent {
    /// Nothing.
    Handled,
    /// The guest leaves, with this value.
    Exit(u8),
    /// The guest rings the host's bell.
    Doorbell,
    /// The guest rings for the keeper of its log.
    Log,
    /// The vCPU waits for another one: somebody else should run.
    Yield,
    /// The guest can stand still here.
    Stands(Standing),
}

/// The ports.
#[derive(Debug)]
pub(crate) struct PortBus {
    com1: Uart,
}

impl PortBus {
    /// Ports whose serial line ends in `console`.
    pub(crate) fn new(console: Console) -> Self {
        Self { com1: Uart::new(console) }
    }

    /// The guest wrote `data` to `port`: one access, or several of a string instruction.
    pub(crate) fn write(&mut self, port: u16, data: &[u8]) -> PortEvent {
        match (port, data) {
            (EXIT_PORT, [code, ..]) => return PortEvent::Exit(*code),
            (DOORBELL_PORT, _) => return PortEvent::Doorbell,
            (LOG_PORT, _) => return PortEvent::Log,
            (PAUSE_PORT, &[how, ..]) if how == Stand::Quiescent as u8 => {
                return PortEvent::Stands(Standing::Quiescent);
            }
            (PAUSE_PORT, _) => return PortEvent::Stands(Standing::Owning),
            (YIELD_PORT, _) => return PortEvent::Yield,
            (COM1..=COM1_LAST, data) => {
                data.iter().for_each(|&byte| self.com1.write(register(port), byte))
            }
            _ => log::debug!(
                "the guest wrote {data:02x?} to port {port:#x}, where there is no device"
            ),
        }
        PortEvent::Handled
    }

    /// The guest reads from `port`.
    pub(crate) fn read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            COM1..=COM1_LAST => {
                data.iter_mut().for_each(|byte| *byte = self.com1.read(register(port)))
            }
            _ => {
                log::debug!("the guest read port {port:#x}, where there is no device");
                data.fill(0xff);
            }
        }
    }
}

/// The register of COM1 behind one of its ports.
fn register(port: u16) -> u8 {
    let [low, _] = (port - COM1).to_le_bytes();
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_do_what_the_kernel_relies_on() {
        let console = Console::default();
        let mut bus = PortBus::new(console.clone());
        assert_eq!(bus.write(EXIT_PORT, &[0x12]), PortEvent::Exit(0x12));
        assert_eq!(bus.write(DOORBELL_PORT, &[0]), PortEvent::Doorbell);
        assert_eq!(bus.write(LOG_PORT, &[0]), PortEvent::Log);
        assert_eq!(bus.write(PAUSE_PORT, &[0]), PortEvent::Stands(Standing::Quiescent));
        assert_eq!(bus.write(PAUSE_PORT, &[1]), PortEvent::Stands(Standing::Owning));
        assert_eq!(bus.write(0x80, &[1, 2, 3, 4]), PortEvent::Handled);
        let mut data = [0; 4];
        bus.read(0x80, &mut data);
        assert_eq!(data, [0xff; 4]);
        for byte in *b"hello" {
            let mut status = [0];
            bus.read(COM1 + 5, &mut status);
            assert_ne!(status[0] & 0x20, 0, "the transmitter is ready");
            assert_eq!(bus.write(COM1, &[byte]), PortEvent::Handled);
        }
        assert_eq!(console.take(), b"hello");
        assert_eq!(console.take(), b"");
    }
}
