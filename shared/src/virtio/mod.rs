//! What both ends of a virtio device read: the registers of the MMIO transport, and the balloon.
//!
//! Numbers are those of the specification (virtio 1.2), whose section is named at each group. The
//! host compares them with the published bindings in a test.

pub mod balloon;
pub mod mmio;

use bitflags::bitflags;

bitflags! {
    /// The device status field (section 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Status: u32 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Both sides agree about features.
        const FEATURES_OK = 8;
        /// The device has failed, and waits for a reset.
        const NEEDS_RESET = 64;
        /// The guest has given up on the device.
        const FAILED = 128;
    }
}

/// The device conforms to virtio 1 and later (`VIRTIO_F_VERSION_1`).
pub const F_VERSION_1: u64 = 1 << 32;

bitflags! {
    /// Flags of a descriptor (section 2.7.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct DescFlags: u16 {
        /// Another descriptor follows.
        const NEXT = 1;
        /// The device writes the buffer; otherwise it reads it.
        const WRITE = 2;
    }
}

/// Bytes of a descriptor.
pub const DESC_BYTES: u64 = 16;

/// Set in the flags of the available ring by a driver that wants no interrupt (section 2.7.6).
pub const AVAIL_NO_INTERRUPT: u16 = 1;
