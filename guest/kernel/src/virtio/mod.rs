//! Virtio, as far as the balloon needs it: the MMIO transport and a queue with one request at a
//! time.
//!
//! Only loads and stores, so both privileges run it: the direct map has the device's page, and that
//! of the I/O APIC where there is one, uncached, and open to CPL3 if the body runs there.

pub mod device;
pub mod dma;
pub mod queue;
