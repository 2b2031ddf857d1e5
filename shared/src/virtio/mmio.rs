//! The MMIO transport, version 2 (section 4.2.2), and how a kernel hears of a device.
//!
//! **Protocol.** There is no bus to enumerate: each device is a word of the kernel's command line,
//! in Linux's syntax, which QEMU's `microvm` appends by itself:
//!
//! ```text
//! virtio_mmio.device=512@0xfeb00e00:12
//! ```
//!
//! The number behind the colon is the pin of the I/O APIC to which the device's line leads. Where
//! there is no I/O APIC, as under vmkern's own VMM, the device sends a message to the local APIC of
//! the CPU that booted. The number is then the vector of that message, which no pin can have.

use core::fmt;

use crate::addr::GuestPhys;

/// Registers of the transport, by their offset. All are 32 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Register {
    /// [`MAGIC`].
    MagicValue = 0x00,
    /// [`VERSION`].
    Version = 0x04,
    /// The kind of device; 0 for a place without a device.
    DeviceId = 0x08,
    /// Who made it.
    VendorId = 0x0c,
    /// The half of the device's features that `DeviceFeaturesSel` selects.
    DeviceFeatures = 0x10,
    /// Selects a half.
    DeviceFeaturesSel = 0x14,
    /// The half of the accepted features that `DriverFeaturesSel` selects.
    DriverFeatures = 0x20,
    /// Selects a half.
    DriverFeaturesSel = 0x24,
    /// Selects the queue of which the next registers speak.
    QueueSel = 0x30,
    /// The most descriptors that the queue can have; 0 for a queue that does not exist.
    QueueNumMax = 0x34,
    /// The number of its descriptors.
    QueueNum = 0x38,
    /// Whether the device may use it.
    QueueReady = 0x44,
    /// The number of a queue that has new buffers is written here.
    QueueNotify = 0x50,
    /// Why the device has interrupted: [`INT_VRING`], [`INT_CONFIG`].
    InterruptStatus = 0x60,
    /// The causes that were handled are written here.
    InterruptAck = 0x64,
    /// The device's status. Writing 0 resets the device.
    Status = 0x70,
    /// Low half of the address of the descriptors.
    QueueDescLow = 0x80,
    /// High half.
    QueueDescHigh = 0x84,
    /// Low half of the address of the available ring.
    QueueDriverLow = 0x90,
    /// High half.
    QueueDriverHigh = 0x94,
    /// Low half of the address of the used ring.
    QueueDeviceLow = 0xa0,
    /// High half.
    QueueDeviceHigh = 0xa4,
    /// Changes whenever the configuration does.
    ConfigGeneration = 0xfc,
}

impl Register {
    /// Every register.
    pub const ALL: [Self; 23] = [
        Self::MagicValue,
        Self::Version,
        Self::DeviceId,
        Self::VendorId,
        Self::DeviceFeatures,
        Self::DeviceFeaturesSel,
        Self::DriverFeatures,
        Self::DriverFeaturesSel,
        Self::QueueSel,
        Self::QueueNumMax,
        Self::QueueNum,
        Self::QueueReady,
        Self::QueueNotify,
        Self::InterruptStatus,
        Self::InterruptAck,
        Self::Status,
        Self::QueueDescLow,
        Self::QueueDescHigh,
        Self::QueueDriverLow,
        Self::QueueDriverHigh,
        Self::QueueDeviceLow,
        Self::QueueDeviceHigh,
        Self::ConfigGeneration,
    ];

    /// The register at `offset`, if there is one.
    #[must_use]
    pub fn at(offset: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|register| *register as u64 == offset)
    }
}

/// Where the device's own configuration begins.
pub const CONFIG: u64 = 0x100;
/// Bytes of a device's registers with its configuration.
pub const DEVICE_BYTES: u64 = 0x200;
/// `virt`, in little endian.
pub const MAGIC: u32 = 0x7472_6976;
/// The version of this transport.
pub const VERSION: u32 = 2;
/// A buffer was used.
pub const INT_VRING: u32 = 1;
/// The configuration changed.
pub const INT_CONFIG: u32 = 2;

/// Pins that an I/O APIC has.
pub const IOAPIC_PINS: u32 = 24;
/// The vector that a device without an I/O APIC sends.
pub const DEVICE_VECTOR: u8 = 0x57;
/// Where vmkern's VMM puts the balloon.
pub const BALLOON_AT: GuestPhys = GuestPhys::new(0xfeb0_0000);

/// How the word for a device begins.
pub const BUS: &str = "virtio_mmio.";
/// How it goes on, before the value.
pub const KEY: &str = "device=";

/// A device of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Where its registers begin.
    pub base: GuestPhys,
    /// A pin of the I/O APIC below [`IOAPIC_PINS`], or a vector.
    pub irq: u32,
}

impl MmioDevice {
    /// Reads `SIZE@BASE:IRQ`. A size has the suffix K or none, and is at least [`DEVICE_BYTES`]. A
    /// base is in the gap below 4 GiB, where no RAM is, aligned to 4 bytes. A further `:ID`, which
    /// Linux allows, is ignored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (size, place) = text.split_once('@')?;
        let (base, rest) = place.split_once(':')?;
        let irq = rest.split_once(':').map_or(rest, |(irq, _)| irq);
        let (size, unit) = size.strip_suffix('K').map_or((size, 1), |digits| (digits, 1024));
        let size = crate::boot::number(size)?.checked_mul(unit)?;
        let base = crate::boot::number(base)?;
        let irq = u32::try_from(crate::boot::number(irq)?).ok()?;
        let is_in_gap = (3 << 30..=(4 << 30) - DEVICE_BYTES).contains(&base) && base % 4 == 0;
        let is_irq = irq < IOAPIC_PINS || irq == u32::from(DEVICE_VECTOR);
        let fits = (DEVICE_BYTES..=1 << 20).contains(&size);
        (fits && is_in_gap && is_irq).then_some(Self { base: GuestPhys::new(base), irq })
    }
}

impl fmt::Display for MmioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DEVICE_BYTES}@{:#x}:{}", self.base, self.irq)
    }
}

/// The devices of a command line, at most [`MmioDevices::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MmioDevices([Option<MmioDevice>; Self::MAX]);

impl MmioDevices {
    /// The most devices that a command line can name.
    pub const MAX: usize = 4;

    /// One device.
    #[must_use]
    pub const fn one(device: MmioDevice) -> Self {
        Self([Some(device), None, None, None])
    }

    /// Adds `device`; `None` when there is no room for it.
    #[must_use]
    pub fn add(&mut self, device: MmioDevice) -> Option<()> {
        *self.0.iter_mut().find(|slot| slot.is_none())? = Some(device);
        Some(())
    }

    /// The devices, in the order of the command line.
    pub fn iter(&self) -> impl Iterator<Item = MmioDevice> {
        self.0.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_device_is_read_as_qemu_writes_it() {
        let device = MmioDevice { base: GuestPhys::new(0xfeb0_0e00), irq: 12 };
        assert_eq!(MmioDevice::parse("512@0xfeb00e00:12"), Some(device));
        assert_eq!(MmioDevice::parse("1K@0xfeb00e00:12:3"), Some(device));
        assert_eq!(device.to_string(), "512@0xfeb00e00:12");
    }

    #[test]
    fn a_device_without_room_place_or_interrupt_is_refused() {
        for bad in [
            "",
            "512",
            "512@0xfeb00e00",
            "511@0xfeb00e00:12",
            "512@0x1000:12",
            "512@0xfeb00e01:12",
            "512@0xfffffe04:12",
            "512@0xfeb00e00:24",
            "512@0xfeb00e00:",
            "2048K@0xfeb00e00:12",
            "18446744073709551615K@0xfeb00e00:12",
        ] {
            assert_eq!(MmioDevice::parse(bad), None, "{bad}");
        }
    }
}
