//! Virtio devices: what a device is behind its transport.
//!
//! **Protocol.** The [transport](mmio) keeps registers, features and queues, and calls the
//! [`Backend`]. Registers are served on the threads of vCPUs and never wait for a queue's work,
//! except a reset. Queues are served on the device thread, one at a time; a queue that has no event
//! there is served on the thread of the vCPU that wrote its number.
//!
//! Everything that the guest writes is hostile: addresses and sizes of queues, indices of rings,
//! chains of descriptors. The crate that walks them checks bounds and ends every loop. A ring that
//! makes no sense puts the device into the state NEEDS_RESET, in which it serves no queue until the
//! driver has reset it.

mod mmio;
#[cfg(test)]
mod tests;

use std::fmt;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmkern_abi::virtio::balloon::Features;

pub(crate) use self::mmio::Mmio;

/// The guest has written something to a ring that no driver may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadRing(pub(crate) String);

impl From<virtio_queue::Error> for BadRing {
    fn from(error: virtio_queue::Error) -> Self {
        Self(error.to_string())
    }
}

/// Whether buffers were used, so that the driver is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Used {
    /// None.
    Nothing,
    /// One at least.
    Buffers,
}

/// Number of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueIndex(pub(crate) u16);

/// A device behind a transport.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// The kind of device.
    fn device_id(&self) -> u32;

    /// The features that it offers.
    fn features(&self) -> Features;

    /// The most descriptors of each queue, by number; 0 for a number without a queue.
    fn queues(&self) -> &'static [u16];

    /// The driver reads its configuration from `offset` on. Past its end there are zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes its configuration from `offset` on. Fields that it may not write stay.
    fn write_config(&self, offset: u64, data: &[u8]);

    /// The driver and the device have agreed on `features`.
    fn agreed(&self, features: Features);

    /// The driver has reset the device, whose state is that of a new one, except what it holds of
    /// the guest.
    fn reset(&self);

    /// Serves the chains of `queue`, which is in use.
    ///
    /// # Errors
    /// When the ring makes no sense.
    fn serve(
        &self,
        index: QueueIndex,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<Used, BadRing>;
}
