//! What the specification demands of the device.

use vmkern_abi::virtio::Status;
use vmkern_abi::virtio::balloon::{
    ACTUAL, DEFLATEQ, DEVICE_ID, Features, INFLATEQ, NUM_PAGES, REPORTINGQ, STATSQ, STOP_PAGES,
    STOP_REASON, Stat, StopReason,
};
use vmkern_abi::virtio::mmio::{CONFIG, INT_CONFIG, INT_VRING, MAGIC, Register, VERSION};

use super::driver::{Desc, Driver, LOADED, NUMBERS};
use crate::devices::balloon::{Judge, Misuse};
use crate::devices::virtio::QueueIndex;

const PAGE: u32 = 0x500;

fn judge() -> Judge {
    Judge::new(vec![LOADED], None)
}

#[test]
fn the_device_introduces_itself_as_a_balloon_of_version_2() {
    let driver = Driver::fresh(judge());
    let words = [Register::MagicValue, Register::Version, Register::DeviceId];
    assert_eq!(words.map(|word| driver.get(word)), [MAGIC, VERSION, DEVICE_ID]);
    let features = [0, 1, 2].map(|half| {
        driver.set(Register::DeviceFeaturesSel, half);
        u64::from(driver.get(Register::DeviceFeatures))
    });
    assert_eq!(features[0] | features[1] << 32, Driver::all().bits());
    assert_eq!(features[2], 0);
}

#[test]
fn features_that_were_not_offered_or_lack_virtio_1_are_not_agreed() {
    for features in [
        Driver::all() | Features::MUST_TELL_HOST,
        Driver::all() | Features::PAGE_POISON,
        Driver::all() - Features::VERSION_1,
        Features::empty(),
    ] {
        let driver = Driver::fresh(judge());
        driver.negotiate(features);
        assert!(!driver.status().contains(Status::FEATURES_OK), "{features:?}");
        driver.add_status(Status::DRIVER_OK);
        assert!(!driver.status().contains(Status::DRIVER_OK), "{features:?}");
    }
    let driver = Driver::fresh(judge());
    driver.negotiate(Features::VERSION_1);
    assert!(driver.status().contains(Status::FEATURES_OK));
}

#[test]
fn a_queue_exists_if_its_feature_is_offered() {
    let driver = Driver::fresh(judge());
    let sizes = [0, 1, 2, 3, 4, 5, u32::MAX].map(|queue| {
        driver.set(Register::QueueSel, queue);
        driver.get(Register::QueueNumMax) > 0
    });
    assert_eq!(sizes, [true, true, true, false, true, false, false]);
}

#[test]
fn a_page_is_discarded_before_the_inflate_request_is_acknowledged() {
    let mut driver = Driver::new();
    // The first request brings the pages of the ring and of the numbers into being.
    driver.name(INFLATEQ, &[PAGE + 2]);
    driver.fill(PAGE);
    driver.fill(PAGE + 1);
    let resident = driver.ram.resident();
    driver.name(INFLATEQ, &[PAGE, PAGE + 1]);
    assert_eq!(driver.used(INFLATEQ), 2);
    assert_eq!(resident - driver.ram.resident(), 2 * 4096);
    assert!(!driver.is_filled(PAGE) && !driver.is_filled(PAGE + 1));
    assert_eq!((driver.account().discarded, driver.account().given), (3, 3));
}

#[test]
fn a_page_that_left_the_balloon_is_not_touched_any_more() {
    let mut driver = Driver::new();
    driver.name(INFLATEQ, &[PAGE]);
    driver.name(DEFLATEQ, &[PAGE]);
    assert_eq!((driver.used(DEFLATEQ), driver.account().given), (1, 0));
    driver.fill(PAGE);
    driver.name(INFLATEQ, &[PAGE + 1]);
    driver.name(DEFLATEQ, &[PAGE + 1]);
    assert!(driver.is_filled(PAGE));
}

#[test]
fn reported_pages_are_discarded_and_stay_the_drivers() {
    let mut driver = Driver::new();
    (PAGE..PAGE + 4).for_each(|pfn| driver.fill(pfn));
    let at = |pfn: u32| u64::from(pfn) * 4096;
    driver.send(REPORTINGQ, &[Desc::write(at(PAGE), 8192), Desc::write(at(PAGE + 3), 4096)]);
    let filled = [0, 1, 2, 3].map(|n| driver.is_filled(PAGE + n));
    assert_eq!(filled, [false, false, true, false]);
    assert_eq!((driver.account().discarded, driver.account().given), (3, 0));
}

#[test]
fn the_target_is_read_only_and_a_change_of_it_interrupts() {
    let driver = Driver::new();
    driver.balloon.ask(1234);
    let before = driver.get(Register::ConfigGeneration);
    driver.mmio.config_changed();
    assert_ne!(driver.get(Register::ConfigGeneration), before);
    assert_eq!(driver.get(Register::InterruptStatus), INT_CONFIG);
    driver.set(Register::InterruptAck, INT_CONFIG);
    assert_eq!(driver.get(Register::InterruptStatus), 0);
    driver.set_config(NUM_PAGES, 7);
    driver.set_config(ACTUAL, 99);
    assert_eq!([NUM_PAGES, ACTUAL].map(|at| driver.load(CONFIG + at)), [1234, 99]);
    assert_eq!(driver.account().actual, 99);
}

#[test]
fn a_driver_that_asks_for_no_interrupt_gets_none() {
    let mut driver = Driver::new();
    driver.poke(Driver::ring(INFLATEQ, 1), &1_u16.to_le_bytes());
    driver.name(INFLATEQ, &[PAGE]);
    assert_eq!(driver.get(Register::InterruptStatus), 0);
    driver.poke(Driver::ring(INFLATEQ, 1), &0_u16.to_le_bytes());
    driver.name(INFLATEQ, &[PAGE + 1]);
    assert_eq!(driver.get(Register::InterruptStatus), INT_VRING);
}

/// An entry of a buffer of statistics.
fn entry(tag: u16, value: u64) -> Vec<u8> {
    [tag.to_le_bytes().as_slice(), &value.to_le_bytes()].concat()
}

#[test]
fn statistics_come_in_any_order_and_unknown_tags_are_ignored() {
    let mut driver = Driver::new();
    let bytes = [entry(5, 55), entry(999, 1), entry(15, 15), entry(4, u64::MAX), entry(16, 3)];
    let bytes = bytes.concat();
    driver.poke(NUMBERS, &bytes);
    driver.send(STATSQ, &[Desc::read(NUMBERS, u32::try_from(bytes.len()).expect("short"))]);
    let stats = driver.balloon.stats();
    let values = [Stat::Total, Stat::DirectReclaims, Stat::Free, Stat::SwapIn];
    assert_eq!(values.map(|stat| stats.get(stat)), [Some(55), Some(15), Some(u64::MAX), None]);
}

#[test]
fn the_buffer_of_statistics_is_kept_until_the_host_wants_new_ones() {
    let mut driver = Driver::new();
    driver.poke(NUMBERS, &entry(4, 1));
    driver.send(STATSQ, &[Desc::read(NUMBERS, 10)]);
    assert_eq!((driver.used(STATSQ), driver.balloon.stats().arrived), (0, 1));
    driver.balloon.ask_stats();
    driver.mmio.serve(QueueIndex(STATSQ));
    assert_eq!(driver.used(STATSQ), 1);
    driver.poke(NUMBERS, &entry(4, 2));
    driver.offer(STATSQ, 0);
    assert_eq!((driver.used(STATSQ), driver.balloon.stats().get(Stat::Free)), (1, Some(2)));
}

#[test]
fn a_reason_counts_only_for_the_target_that_was_asked_for() {
    let driver = Driver::new();
    driver.balloon.ask(100);
    driver.set_config(STOP_PAGES, 99);
    driver.set_config(STOP_REASON, StopReason::Floor.code());
    assert_eq!(driver.account().stopped, None);
    driver.set_config(STOP_PAGES, 100);
    assert_eq!(driver.account().stopped, Some(StopReason::Floor));
    driver.balloon.ask(100);
    assert_eq!(driver.account().stopped, None, "it is asked anew");
    driver.set_config(STOP_REASON, 77);
    assert_eq!(driver.account().stopped, None, "there is no such reason");
}

#[test]
fn a_driver_that_did_not_accept_the_feature_gives_no_reasons() {
    let driver = Driver::with(judge(), Features::VERSION_1);
    driver.balloon.ask(100);
    driver.set_config(STOP_PAGES, 100);
    driver.set_config(STOP_REASON, StopReason::Floor.code());
    assert_eq!(driver.account().stopped, None);
}

#[test]
fn a_reset_makes_a_new_device() {
    let mut driver = Driver::new();
    driver.name(INFLATEQ, &[PAGE]);
    driver.set_config(ACTUAL, 1);
    driver.set(Register::Status, 0);
    let account = driver.account();
    assert_eq!((account.actual, account.given, account.is_driven), (0, 0, false));
    assert_eq!(driver.get(Register::InterruptStatus), 0);
    driver.set(Register::QueueSel, 0);
    assert_eq!(driver.get(Register::QueueReady), 0);
    // A notification for a device that is not in operation does nothing.
    driver.set(Register::QueueNotify, INFLATEQ.into());
    assert_eq!(driver.misuse(Misuse::GivenTwice), 0);
}
