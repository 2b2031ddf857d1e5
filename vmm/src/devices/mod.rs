//! The guest's devices, on a bus of I/O ports and a bus of physical addresses.
//!
//! **Protocol.** A guest's devices are attached before its vCPUs run, and stay; each serves a range
//! of addresses of its own ([`Bus`]). A vCPU's thread calls a [`Device`] itself, so that a device
//! must not block. Where no device is, reads give all ones and writes are ignored, as on an empty
//! bus.
//!
//! Every guest has COM1 for what the kernel says before and after it has a log, the exit port, the
//! doorbells of the host and of the log's keeper, the port at which a CPU stands still, and the one
//! at which it yields. Nothing is attached to the bus of physical addresses unless a guest asks for
//! it.
//!
//! What takes time is done on the device thread ([`DeviceThread`]). A device on the bus of physical
//! addresses has a [`Slot`] there, through which it gets that thread's service and its interrupt
//! lines. None of it exists before its first use.

pub(crate) mod balloon;
mod bus;
mod ports;
mod slot;
mod thread;
pub(crate) mod virtio;

use std::ops::RangeInclusive;
use std::sync::Arc;

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::control::{DOORBELL_PORT, EXIT_PORT, LOG_PORT, PAUSE_PORT, YIELD_PORT};

use self::bus::Bus;
pub(crate) use self::bus::{Device, Offset};
pub(crate) use self::ports::Console;
use self::ports::{COM1, Doorbell, ExitPort, PausePort, Uart, YieldPort};
pub(crate) use self::slot::Slot;
pub(crate) use self::thread::DeviceThread;
use crate::kvm::bell::Bell;
use crate::kvm::io::{Demand, Io, Port};

/// What the devices of every guest are connected to.
#[derive(Debug)]
pub(crate) struct Wires {
    /// Takes what the guest sends over its serial line.
    pub(crate) console: Console,
    /// Rung by the guest for the host.
    pub(crate) bell: Arc<Bell>,
    /// Rung by the guest for the keeper of its log, where there is one.
    pub(crate) log_bell: Option<Arc<Bell>>,
}

/// A guest's devices.
#[derive(Debug)]
pub(crate) struct Devices {
    ports: Bus<Port>,
    mmio: Bus<GuestPhys>,
}

impl Devices {
    /// The devices of every guest.
    pub(crate) fn new(Wires { console, bell, log_bell }: Wires) -> Self {
        let mut ports = Bus::default();
        let mut attach = |range: RangeInclusive<u16>, device: Arc<dyn Device>| {
            ports.attach(Port(*range.start())..=Port(*range.end()), device);
        };
        attach(COM1, Arc::new(Uart::new(console)));
        attach(EXIT_PORT..=EXIT_PORT, Arc::new(ExitPort));
        attach(DOORBELL_PORT..=DOORBELL_PORT, Arc::new(Doorbell::new(bell)));
        if let Some(bell) = log_bell {
            attach(LOG_PORT..=LOG_PORT, Arc::new(Doorbell::new(bell)));
        }
        attach(PAUSE_PORT..=PAUSE_PORT, Arc::new(PausePort));
        attach(YIELD_PORT..=YIELD_PORT, Arc::new(YieldPort));
        Self { ports, mmio: Bus::default() }
    }

    /// Has `device` answer at the physical addresses `range`, before any vCPU runs.
    pub(crate) fn attach(&mut self, range: RangeInclusive<GuestPhys>, device: Arc<dyn Device>) {
        self.mmio.attach(range, device);
    }
}

impl Io for Devices {
    fn read_port(&self, port: Port, data: &mut [u8]) {
        self.ports.read(port, data);
    }

    fn write_port(&self, port: Port, data: &[u8]) -> Demand {
        self.ports.write(port, data)
    }

    fn read_mmio(&self, address: GuestPhys, data: &mut [u8]) {
        self.mmio.read(address, data);
    }

    fn write_mmio(&self, address: GuestPhys, data: &[u8]) -> Demand {
        self.mmio.write(address, data)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::inspect::Standing;

    fn bell() -> Arc<Bell> {
        Bell::new().expect("an eventfd can be made")
    }

    fn devices(console: &Console, log_bell: Option<Arc<Bell>>) -> (Devices, Arc<Bell>) {
        let bell = bell();
        let wires = Wires { console: console.clone(), bell: Arc::clone(&bell), log_bell };
        (Devices::new(wires), bell)
    }

    #[test]
    fn ports_do_what_the_kernel_relies_on() {
        let console = Console::default();
        let (bus, bell) = devices(&console, None);
        assert_eq!(bus.write_port(Port(EXIT_PORT), &[0x12]), Demand::Exit(0x12));
        assert!(!bell.take_ring());
        assert_eq!(bus.write_port(Port(DOORBELL_PORT), &[0]), Demand::Nothing);
        assert!(bell.take_ring());
        assert_eq!(bus.write_port(Port(YIELD_PORT), &[0]), Demand::Yield);
        let stands = |how| bus.write_port(Port(PAUSE_PORT), &[how]);
        assert_eq!(stands(0), Demand::Stand(Standing::Quiescent));
        assert_eq!(stands(1), Demand::Stand(Standing::Owning));
        assert_eq!(bus.write_port(Port(0x80), &[1, 2, 3, 4]), Demand::Nothing);
        let mut data = [0; 4];
        bus.read_port(Port(0x80), &mut data);
        assert_eq!(data, [0xff; 4]);
        for byte in *b"hello" {
            let mut status = [0];
            bus.read_port(Port(COM1.start() + 5), &mut status);
            assert_ne!(status[0] & 0x20, 0, "the transmitter is ready");
            assert_eq!(bus.write_port(Port(*COM1.start()), &[byte]), Demand::Nothing);
        }
        assert_eq!(console.take(), b"hello");
        assert_eq!(console.take(), b"");
    }

    #[test]
    fn the_keeper_of_the_log_has_a_doorbell_of_its_own_where_there_is_one() {
        let console = Console::default();
        let (bus, bell) = devices(&console, None);
        assert_eq!(bus.write_port(Port(LOG_PORT), &[0]), Demand::Nothing);
        let log_bell = self::bell();
        let (bus, other) = devices(&console, Some(Arc::clone(&log_bell)));
        assert_eq!(bus.write_port(Port(LOG_PORT), &[0]), Demand::Nothing);
        assert!(log_bell.take_ring());
        assert!(!bell.take_ring() && !other.take_ring(), "the host's bell is not rung for the log");
        log_bell.wait(Instant::now());
    }

    #[test]
    fn there_is_nothing_on_the_bus_of_physical_addresses() {
        let (bus, _) = devices(&Console::default(), None);
        let mut data = [0; 8];
        let address = GuestPhys::new(0xfeb0_0000);
        bus.read_mmio(address, &mut data);
        assert_eq!(data, [0xff; 8]);
        assert_eq!(bus.write_mmio(address, &data), Demand::Nothing);
    }
}
