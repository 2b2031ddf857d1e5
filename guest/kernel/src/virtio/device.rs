//! The registers of a device, and the handshake between device and driver (virtio 1.2, sections 3.1
//! and 4.2.3).

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::virtio::Status;
use vmkern_abi::virtio::balloon::Features;
use vmkern_abi::virtio::mmio::{CONFIG, MAGIC, MmioDevice, Register, VERSION};

use super::queue::Queue;

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug)]
pub enum Unusable {
    /// It does not accept the features that the driver can do with.
    Features,
    /// It has no queue of that number, or a smaller one.
    Queue(u16),
}

/// The registers of a device of the command line.
#[derive(Clone, Copy, Debug)]
pub struct VirtioDevice {
    base: GuestPhys,
}

impl VirtioDevice {
    /// The device of a place of the command line, if it is of the kind `id`.
    pub fn probe(place: MmioDevice, id: u32) -> Option<Self> {
        let device = Self { base: place.base };
        let found = [Register::MagicValue, Register::Version, Register::DeviceId]
            .map(|register| device.read(register));
        (found == [MAGIC, VERSION, id]).then_some(device)
    }

    fn load(self, offset: u64) -> u32 {
        let at = phys_to_dmap(self.base).add(offset).get() as *const u32;
        // SAFETY: the direct map has the device's page (`direct_map::build`), and the offset is
        // that of an aligned word in it.
        unsafe { at.read_volatile() }
    }

    fn store(self, offset: u64, value: u32) {
        let at = phys_to_dmap(self.base).add(offset).get() as *mut u32;
        // SAFETY: as above; the device touches only memory that a queue names.
        unsafe { at.write_volatile(value) }
    }

    fn read(self, register: Register) -> u32 {
        self.load(register as u64)
    }

    fn write(self, register: Register, value: u32) {
        self.store(register as u64, value);
    }

    /// The word of the configuration at `offset`.
    pub fn config(self, offset: u64) -> u32 {
        self.load(CONFIG + offset)
    }

    /// Writes a word of the configuration.
    pub fn set_config(self, offset: u64, value: u32) {
        self.store(CONFIG + offset, value);
    }

    /// Changes whenever the device has changed its configuration.
    pub fn generation(self) -> u32 {
        self.read(Register::ConfigGeneration)
    }

    /// Tells the device that queue `index` has a buffer.
    pub fn notify(self, index: u16) {
        self.write(Register::QueueNotify, index.into());
    }

    /// Takes note of the causes of the interrupt, until none is left: the line falls then, so that
    /// the next cause is a new edge.
    pub fn acknowledge(self) {
        loop {
            match self.read(Register::InterruptStatus) {
                0 => return,
                causes => self.write(Register::InterruptAck, causes),
            }
        }
    }

    fn add_status(self, status: Status) {
        self.write(Register::Status, self.read(Register::Status) | status.bits());
    }

    /// Resets the device and agrees with it on those of its features that are `known`, which
    /// include virtio 1.
    ///
    /// # Errors
    /// [`Unusable::Features`]; the device is marked as failed then.
    pub fn negotiate(self, known: Features) -> Result<Features, Unusable> {
        self.write(Register::Status, 0);
        self.add_status(Status::ACKNOWLEDGE);
        self.add_status(Status::DRIVER);
        let mut offered = 0;
        for half in 0..2_u32 {
            self.write(Register::DeviceFeaturesSel, half);
            offered |= u64::from(self.read(Register::DeviceFeatures)) << (32 * half);
        }
        let agreed = Features::from_bits_truncate(offered) & known;
        for half in 0..2_u32 {
            self.write(Register::DriverFeaturesSel, half);
            let bits = agreed.bits() >> (32 * half) & u64::from(u32::MAX);
            self.write(Register::DriverFeatures, u32::try_from(bits).unwrap_or(0));
        }
        self.add_status(Status::FEATURES_OK);
        let status = Status::from_bits_truncate(self.read(Register::Status));
        if status.contains(Status::FEATURES_OK) && agreed.contains(Features::VERSION_1) {
            Ok(agreed)
        } else {
            self.add_status(Status::FAILED);
            Err(Unusable::Features)
        }
    }

    /// Tells the device where `queue` lies, and that it may use it.
    ///
    /// # Errors
    /// [`Unusable::Queue`]; the device is marked as failed then.
    pub fn set_up(self, queue: &Queue) -> Result<(), Unusable> {
        self.write(Register::QueueSel, queue.index().into());
        if self.read(Register::QueueReady) != 0
            || self.read(Register::QueueNumMax) < Queue::SIZE.into()
        {
            self.add_status(Status::FAILED);
            return Err(Unusable::Queue(queue.index()));
        }
        self.write(Register::QueueNum, Queue::SIZE.into());
        let [desc, avail, used] = queue.parts();
        for (low, high, at) in [
            (Register::QueueDescLow, Register::QueueDescHigh, desc),
            (Register::QueueDriverLow, Register::QueueDriverHigh, avail),
            (Register::QueueDeviceLow, Register::QueueDeviceHigh, used),
        ] {
            let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
            self.write(low, half(at.get()));
            self.write(high, half(at.get() >> 32));
        }
        self.write(Register::QueueReady, 1);
        Ok(())
    }

    /// The driver gives the device up: it is as after its own start.
    pub fn reset(self) {
        self.write(Register::Status, 0);
    }

    /// The device may work from now on.
    pub fn begin(self) {
        self.add_status(Status::DRIVER_OK);
    }
}
