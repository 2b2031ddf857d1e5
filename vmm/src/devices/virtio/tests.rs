//! The words of the specification, as published elsewhere.

use virtio_bindings::{virtio_config, virtio_ids, virtio_mmio, virtio_ring};
use vmkern_abi::virtio::mmio::{self, Register};
use vmkern_abi::virtio::{AVAIL_NO_INTERRUPT, DescFlags, F_VERSION_1, Status, balloon};

#[test]
fn registers_flags_and_numbers_are_those_of_the_published_bindings() {
    for (ours, theirs) in [
        (Register::MagicValue, virtio_mmio::VIRTIO_MMIO_MAGIC_VALUE),
        (Register::Version, virtio_mmio::VIRTIO_MMIO_VERSION),
        (Register::DeviceId, virtio_mmio::VIRTIO_MMIO_DEVICE_ID),
        (Register::VendorId, virtio_mmio::VIRTIO_MMIO_VENDOR_ID),
        (Register::DeviceFeatures, virtio_mmio::VIRTIO_MMIO_DEVICE_FEATURES),
        (Register::DeviceFeaturesSel, virtio_mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL),
        (Register::DriverFeatures, virtio_mmio::VIRTIO_MMIO_DRIVER_FEATURES),
        (Register::DriverFeaturesSel, virtio_mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL),
        (Register::QueueSel, virtio_mmio::VIRTIO_MMIO_QUEUE_SEL),
        (Register::QueueNumMax, virtio_mmio::VIRTIO_MMIO_QUEUE_NUM_MAX),
        (Register::QueueNum, virtio_mmio::VIRTIO_MMIO_QUEUE_NUM),
        (Register::QueueReady, virtio_mmio::VIRTIO_MMIO_QUEUE_READY),
        (Register::QueueNotify, virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY),
        (Register::InterruptStatus, virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS),
        (Register::InterruptAck, virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK),
        (Register::Status, virtio_mmio::VIRTIO_MMIO_STATUS),
        (Register::QueueDescLow, virtio_mmio::VIRTIO_MMIO_QUEUE_DESC_LOW),
        (Register::QueueDescHigh, virtio_mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH),
        (Register::QueueDriverLow, virtio_mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW),
        (Register::QueueDriverHigh, virtio_mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH),
        (Register::QueueDeviceLow, virtio_mmio::VIRTIO_MMIO_QUEUE_USED_LOW),
        (Register::QueueDeviceHigh, virtio_mmio::VIRTIO_MMIO_QUEUE_USED_HIGH),
        (Register::ConfigGeneration, virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION),
    ] {
        assert_eq!(ours as u64, u64::from(theirs), "{ours:?}");
    }
    assert_eq!(mmio::CONFIG, u64::from(virtio_mmio::VIRTIO_MMIO_CONFIG));
    assert_eq!(mmio::INT_VRING, virtio_mmio::VIRTIO_MMIO_INT_VRING);
    assert_eq!(mmio::INT_CONFIG, virtio_mmio::VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(balloon::DEVICE_ID, virtio_ids::VIRTIO_ID_BALLOON);
    assert_eq!(F_VERSION_1, 1 << virtio_config::VIRTIO_F_VERSION_1);
    for (ours, theirs) in [
        (Status::ACKNOWLEDGE, virtio_config::VIRTIO_CONFIG_S_ACKNOWLEDGE),
        (Status::DRIVER, virtio_config::VIRTIO_CONFIG_S_DRIVER),
        (Status::DRIVER_OK, virtio_config::VIRTIO_CONFIG_S_DRIVER_OK),
        (Status::FEATURES_OK, virtio_config::VIRTIO_CONFIG_S_FEATURES_OK),
        (Status::NEEDS_RESET, virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET),
        (Status::FAILED, virtio_config::VIRTIO_CONFIG_S_FAILED),
    ] {
        assert_eq!(ours.bits(), theirs, "{ours:?}");
    }
    assert_eq!(u32::from(DescFlags::NEXT.bits()), virtio_ring::VRING_DESC_F_NEXT);
    assert_eq!(u32::from(DescFlags::WRITE.bits()), virtio_ring::VRING_DESC_F_WRITE);
    assert_eq!(u32::from(AVAIL_NO_INTERRUPT), virtio_ring::VRING_AVAIL_F_NO_INTERRUPT);
}
