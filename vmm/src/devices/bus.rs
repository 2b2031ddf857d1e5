//! A bus: devices by the addresses at which they answer.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use vmkern_abi::addr::GuestPhys;

use crate::kvm::io::{Demand, Port};

/// Bytes from a device's first address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offset(pub u64);

/// A device. vCPUs' threads call it, several at once, and it does not block.
pub(crate) trait Device: fmt::Debug + Send + Sync {
    /// The guest reads `data.len()` bytes at `offset`. A string instruction reads the same port
    /// several times in one call.
    fn read(&self, offset: Offset, data: &mut [u8]);

    /// The guest writes `data` at `offset`. A string instruction writes the same port several times
    /// in one call.
    fn write(&self, offset: Offset, data: &[u8]) -> Demand;
}

/// An address of a bus.
pub(crate) trait Address: Copy + Ord + fmt::Display + fmt::Debug {
    /// Bytes from `base`, which is not behind this address.
    fn offset_from(self, base: Self) -> Offset;
}

impl Address for Port {
    fn offset_from(self, base: Self) -> Offset {
        Offset(u64::from(self.0 - base.0))
    }
}

impl Address for GuestPhys {
    fn offset_from(self, base: Self) -> Offset {
        Offset(self.get() - base.get())
    }
}

/// Devices with the addresses at which each answers, in ascending order.
#[derive(Debug)]
pub(super) struct Bus<A> {
    devices: Vec<(RangeInclusive<A>, Arc<dyn Device>)>,
}

impl<A> Default for Bus<A> {
    fn default() -> Self {
        Self { devices: Vec::new() }
    }
}

impl<A: Address> Bus<A> {
    /// Has `device` answer at `range`, which is not empty. Panics when another one answers at any
    /// of it: who answers where is decided by this program, never by a guest.
    pub(super) fn attach(&mut self, range: RangeInclusive<A>, device: Arc<dyn Device>) {
        let at = self.devices.partition_point(|(other, _)| other.end() < range.start());
        let next = self.devices.get(at);
        assert!(
            range.start() <= range.end()
                && next.is_none_or(|(other, _)| other.start() > range.end()),
            "{device:?} at {range:?} meets {next:?}"
        );
        self.devices.insert(at, (range, device));
    }

    /// The device that answers at `address`, and the offset there.
    fn find(&self, address: A) -> Option<(&dyn Device, Offset)> {
        let at = self.devices.partition_point(|(range, _)| *range.end() < address);
        let (range, device) =
            self.devices.get(at).filter(|(range, _)| *range.start() <= address)?;
        Some((device.as_ref(), address.offset_from(*range.start())))
    }

    /// The guest reads at `address`.
    pub(super) fn read(&self, address: A, data: &mut [u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.read(offset, data);
        } else {
            log::debug!("the guest read {address}, where there is no device");
            data.fill(0xff);
        }
    }

    /// The guest writes `data` at `address`.
    pub(super) fn write(&self, address: A, data: &[u8]) -> Demand {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data)
        } else {
            log::debug!("the guest wrote {data:02x?} to {address}, where there is no device");
            Demand::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers with its name, and notes what is written where.
    #[derive(Debug)]
    struct Named(u8, Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Named {
        fn read(&self, Offset(offset): Offset, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset).expect("the device is small"));
        }

        fn write(&self, Offset(offset): Offset, data: &[u8]) -> Demand {
            self.1.lock().expect("no device panics").push((offset, data.to_vec()));
            Demand::Nothing
        }
    }

    fn named(name: u8) -> Arc<Named> {
        Arc::new(Named(name, Mutex::default()))
    }

    fn at(address: u64) -> GuestPhys {
        GuestPhys::new(address)
    }

    fn read(bus: &Bus<GuestPhys>, address: u64) -> u8 {
        let mut data = [0];
        bus.read(at(address), &mut data);
        data[0]
    }

    #[test]
    fn an_access_reaches_the_device_of_its_address_and_no_other() {
        let mut bus = Bus::default();
        let (high, low) = (named(0x40), named(0x20));
        bus.attach(at(0x2000)..=at(0x2fff), high.clone());
        bus.attach(at(0x1000)..=at(0x1003), low.clone());
        assert_eq!(
            [0xfff, 0x1000, 0x1003, 0x1004, 0x1fff, 0x2000, 0x2010, 0x3000].map(|a| read(&bus, a)),
            [0xff, 0x20, 0x23, 0xff, 0xff, 0x40, 0x50, 0xff]
        );
        assert_eq!(bus.write(at(0x2008), &[1, 2]), Demand::Nothing);
        assert_eq!(bus.write(at(0x5000), &[3]), Demand::Nothing);
        assert_eq!(*high.1.lock().expect("it was written to"), [(8, vec![1, 2])]);
        assert!(low.1.lock().expect("nobody panicked").is_empty());
    }

    #[test]
    #[should_panic(expected = "meets")]
    fn two_devices_cannot_answer_at_one_address() {
        let mut bus = Bus::default();
        bus.attach(at(0x1000)..=at(0x1fff), named(1));
        bus.attach(at(0x1fff)..=at(0x2000), named(2));
    }
}
