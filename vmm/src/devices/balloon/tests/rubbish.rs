//! Rubbish from the driver: it is reported, nothing is discarded that should stay, and every call
//! returns.

use vmkern_abi::addr::{GuestPhys, KPtr};
use vmkern_abi::control::ControlRegion;
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::{KernelRoots, PageFlags, VmPage, VmPhysSeg};
use vmkern_abi::virtio::balloon::{DEFLATEQ, INFLATEQ, REPORTINGQ, STATSQ};
use vmkern_abi::virtio::mmio::Register;
use vmkern_abi::virtio::{DescFlags, Status};

use super::driver::{Desc, Driver, LOADED, MEMORY, NUMBERS, SIZE};
use crate::devices::balloon::{Judge, Misuse};

const PAGE: u32 = 0x500;

#[test]
fn pages_outside_of_ram_are_counted_and_not_discarded() {
    let mut driver = Driver::new();
    let end = u32::try_from(MEMORY >> 12).expect("it is small");
    driver.name(INFLATEQ, &[end, end + 1, 0xfeb00, u32::MAX, PAGE]);
    assert_eq!(driver.misuse(Misuse::NotRam), 4);
    assert_eq!((driver.account().discarded, driver.account().given), (1, 1));
    assert_eq!(driver.used(INFLATEQ), 1);
}

#[test]
fn a_page_of_the_image_is_not_discarded() {
    let mut driver = Driver::new();
    let last = u32::try_from(LOADED.end.pfn() - 1).expect("it is small");
    for pfn in [0, 0x100, last] {
        driver.fill(pfn);
    }
    driver.name(INFLATEQ, &[0, 0x100, last]);
    assert_eq!(driver.misuse(Misuse::Image), 3);
    assert!([0, 0x100, last].into_iter().all(|pfn| driver.is_filled(pfn)));
    let at = u64::from(last) * 4096;
    driver.send(REPORTINGQ, &[Desc::write(at, 4096)]);
    assert_eq!(driver.misuse(Misuse::Image), 4);
    assert!(driver.is_filled(last));
}

#[test]
fn a_page_is_discarded_once_however_often_it_is_given() {
    let mut driver = Driver::new();
    driver.name(INFLATEQ, &[PAGE, PAGE]);
    driver.fill(PAGE);
    driver.name(INFLATEQ, &[PAGE]);
    assert_eq!(driver.misuse(Misuse::GivenTwice), 2);
    assert!(driver.is_filled(PAGE));
    driver.name(DEFLATEQ, &[PAGE, PAGE, PAGE + 1, u32::MAX]);
    assert_eq!(driver.misuse(Misuse::NotGiven), 3);
    assert_eq!(driver.account().given, 0);
}

#[test]
fn descriptors_of_the_wrong_kind_or_length_are_left() {
    let mut driver = Driver::new();
    driver.fill(PAGE);
    driver.poke(NUMBERS, &PAGE.to_le_bytes());
    // 1. Page numbers that the device would have to write, or in part.
    driver.send(INFLATEQ, &[Desc::write(NUMBERS, 4)]);
    driver.send(INFLATEQ, &[Desc::read(NUMBERS, 3)]);
    // 2. Reports that the device must not write, of parts of pages, or of nothing.
    let at = u64::from(PAGE) * 4096;
    for desc in [
        Desc::read(at, 4096),
        Desc::write(at + 1, 4096),
        Desc::write(at, 4095),
        Desc::write(at, 0x1800),
    ] {
        driver.send(REPORTINGQ, &[desc]);
    }
    assert_eq!(driver.misuse(Misuse::Malformed), 6);
    assert!(driver.is_filled(PAGE));
    // 3. An empty request is one of nothing.
    driver.send(INFLATEQ, &[Desc::read(NUMBERS, 0)]);
    assert_eq!((driver.used(INFLATEQ), driver.account().discarded), (3, 0));
}

#[test]
fn addresses_and_lengths_outside_of_ram_end_a_request() {
    let mut driver = Driver::new();
    for (at, len) in [
        (MEMORY, 4),
        (MEMORY - 4, 8),
        (u64::MAX - 3, 4),
        (u64::MAX - 7, u32::MAX - 3),
        (0xfeb0_0000, 0x1000),
    ] {
        driver.send(INFLATEQ, &[Desc::read(at, len)]);
        driver.send(DEFLATEQ, &[Desc::read(at, len)]);
        driver.send(STATSQ, &[Desc::read(at, len)]);
        driver.send(REPORTINGQ, &[Desc::write(at & !0xfff, len & !0xfff)]);
    }
    assert_eq!(driver.used(INFLATEQ), 5);
    assert_eq!(driver.account().discarded, 0);
    assert!(driver.misuse(Misuse::NotRam) >= 10);
}

#[test]
fn a_length_of_four_gigabytes_costs_no_memory_and_ends() {
    let mut driver = Driver::new();
    driver.send(INFLATEQ, &[Desc::read(NUMBERS, u32::MAX - 3)]);
    assert_eq!((driver.used(INFLATEQ), driver.misuse(Misuse::Malformed)), (1, 1));
    driver.send(REPORTINGQ, &[Desc::write(0, !0xfff)]);
    assert_eq!(driver.used(REPORTINGQ), 1);
    driver.send(STATSQ, &[Desc::read(NUMBERS, u32::MAX)]);
    assert_eq!(driver.balloon.stats().arrived, 1);
}

#[test]
fn a_loop_of_descriptors_ends() {
    let mut driver = Driver::new();
    driver.poke(NUMBERS, &PAGE.to_le_bytes());
    let flags = DescFlags::NEXT;
    driver.describe(INFLATEQ, 0, Desc { flags, next: 1, ..Desc::read(NUMBERS, 4) });
    driver.describe(INFLATEQ, 1, Desc { flags, next: 0, ..Desc::read(NUMBERS, 4) });
    driver.offer(INFLATEQ, 0);
    assert_eq!(driver.used(INFLATEQ), 1);
    assert_eq!(driver.account().given, 1);
    assert!(driver.misuse(Misuse::GivenTwice) < u64::from(SIZE));
}

#[test]
fn indices_past_the_ring_put_the_device_out_of_operation_until_a_reset() {
    let mut driver = Driver::new();
    // 1. More buffers than the ring has.
    driver.poke(Driver::ring(INFLATEQ, 1) + 2, &1000_u16.to_le_bytes());
    driver.set(Register::QueueNotify, INFLATEQ.into());
    assert!(driver.status().contains(Status::NEEDS_RESET));
    driver.name(DEFLATEQ, &[PAGE]);
    assert_eq!(driver.used(DEFLATEQ), 0, "it serves nothing");
    // 2. The driver cannot clear the bit, except by a reset.
    driver.set(Register::Status, (driver.status() - Status::NEEDS_RESET).bits());
    assert!(driver.status().contains(Status::NEEDS_RESET));
    driver.set(Register::Status, 0);
    assert_eq!(driver.status(), Status::empty());
}

#[test]
fn a_head_or_a_next_past_the_table_ends_the_chain() {
    for head in [SIZE, u16::MAX] {
        let mut driver = Driver::new();
        driver.offer(INFLATEQ, head);
        assert_eq!(driver.account().discarded, 0);
    }
    let mut driver = Driver::new();
    driver.poke(NUMBERS, &PAGE.to_le_bytes());
    let desc = Desc { flags: DescFlags::NEXT, next: u16::MAX, ..Desc::read(NUMBERS, 4) };
    driver.describe(INFLATEQ, 0, desc);
    driver.offer(INFLATEQ, 0);
    assert_eq!((driver.used(INFLATEQ), driver.account().given), (1, 1));
}

#[test]
fn queues_that_lie_outside_of_ram_are_not_served() {
    for part in [Register::QueueDescLow, Register::QueueDriverLow, Register::QueueDeviceLow] {
        let mut driver = Driver::fresh(Judge::new(vec![LOADED], None));
        driver.negotiate(Driver::all());
        driver.set_up(INFLATEQ);
        driver.set(Register::QueueReady, 0);
        driver.set(part, 0xfeb0_0000);
        driver.set(Register::QueueReady, 1);
        driver.add_status(Status::DRIVER_OK);
        driver.set(Register::QueueNotify, INFLATEQ.into());
        assert!(driver.status().contains(Status::NEEDS_RESET), "{part:?}");
    }
}

#[test]
fn sizes_addresses_and_numbers_of_queues_that_make_no_sense_change_nothing() {
    let mut driver = Driver::new();
    driver.set(Register::QueueSel, INFLATEQ.into());
    // 1. A queue that is ready does not move.
    driver.set(Register::QueueDescLow, 0x1000);
    // 2. Nor does one that does not exist.
    driver.set(Register::QueueSel, 3);
    driver.set(Register::QueueReady, 1);
    driver.set(Register::QueueSel, u32::MAX);
    driver.set(Register::QueueNum, 3);
    driver.set(Register::QueueNotify, u32::MAX);
    driver.set(Register::QueueNotify, 3);
    driver.name(INFLATEQ, &[PAGE]);
    assert_eq!(driver.account().given, 1);
}

/// A kernel of which only the page array is there: PAGE is the balloon's, the next page in use, the
/// one after fresh.
fn with_kernel() -> Driver {
    const CONTROL: u64 = 0x80_0000;
    const ROOTS: u64 = 0x90_0000;
    const SEGS: u64 = 0xa0_0000;
    const ARRAY: u64 = 0xb0_0000;
    let judge = Judge::new(vec![LOADED], Some(GuestPhys::new(CONTROL)));
    let driver = Driver::with(judge, Driver::all());
    let dmap = |at: u64| phys_to_dmap(GuestPhys::new(at));
    let seg = VmPhysSeg::default();
    seg.start.set(PAGE);
    seg.fresh.set(PAGE + 2);
    seg.end.set(PAGE + 4);
    driver.poke(SEGS, seg.into_bytes_of().as_slice());
    for (index, flags) in [
        PageFlags::ALLOCATED | PageFlags::BALLOON | PageFlags::TOUCHED,
        PageFlags::ALLOCATED | PageFlags::TOUCHED,
    ]
    .into_iter()
    .enumerate()
    {
        let page = VmPage::default();
        page.flags.set(flags);
        driver.poke(ARRAY + 64 * index as u64, page.into_bytes_of().as_slice());
    }
    let roots = KernelRoots::default();
    roots.vm_phys_segs.set(KPtr::new(dmap(SEGS)));
    roots.vm_phys_nsegs.set(u64::MAX);
    roots.vm_page_array.set(KPtr::new(dmap(ARRAY)));
    roots.first_page.set(PAGE.into());
    driver.poke(ROOTS, roots.into_bytes_of().as_slice());
    let at = CONTROL + std::mem::offset_of!(ControlRegion, roots) as u64;
    driver.poke(at, &dmap(ROOTS).get().to_le_bytes());
    driver
}

/// The bytes of a structure that is not shared.
trait Copied {
    fn into_bytes_of(self) -> Vec<u8>;
}

impl<T: zerocopy::IntoBytes + zerocopy::FromBytes> Copied for T {
    fn into_bytes_of(mut self) -> Vec<u8> {
        self.as_mut_bytes().to_vec()
    }
}

#[test]
fn a_page_that_the_kernel_uses_is_not_discarded() {
    let mut driver = with_kernel();
    for pfn in PAGE..PAGE + 5 {
        driver.fill(pfn);
    }
    driver.name(INFLATEQ, &[PAGE, PAGE + 1, PAGE + 2, PAGE + 3, PAGE + 4]);
    assert_eq!((driver.misuse(Misuse::InUse), driver.misuse(Misuse::Unmanaged)), (1, 3));
    let filled = [0, 1, 2, 3, 4].map(|n| driver.is_filled(PAGE + n));
    assert_eq!(filled, [false, true, true, true, true]);
}

#[test]
fn a_free_page_that_is_reported_must_be_the_balloons_while_it_is() {
    let mut driver = with_kernel();
    driver.fill(PAGE + 1);
    driver.send(REPORTINGQ, &[Desc::write(u64::from(PAGE) * 4096, 8192)]);
    assert_eq!((driver.account().discarded, driver.misuse(Misuse::InUse)), (1, 1));
    assert!(driver.is_filled(PAGE + 1));
}
