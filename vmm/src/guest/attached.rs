//! A device beside the kernel: its registers are heard, its interrupts arrive. No device of a guest
//! does so today, so the tests attach one that does nothing else.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{Context, DOORBELL_VECTOR, MapId, Op, Outcome, Request};
use vmkern_abi::pte::Level;

use super::Guest;
use super::damaged::lab::Lab;
use crate::devices::{DeviceThread, Offset, Slot};
use crate::kvm::line::Msi;

/// Where the device lies.
const DEVICE: GuestPhys = GuestPhys::new(0xfeb0_0000);
const LONG: Duration = Duration::from_secs(60);

/// A guest with a device, and addresses at which the kernel reaches it.
struct Attached {
    lab: Lab,
    slot: Slot,
    registers: GuestVirt,
    _thread: DeviceThread,
}

impl Attached {
    fn new() -> Self {
        let mut lab = Lab::of(Guest::builder().memory(8 << 20).launch().expect("it boots"));
        let thread = DeviceThread::default();
        let slot = Slot::new(Arc::clone(&lab.guest.hypervisor.vm), DEVICE, thread.watcher());
        let registers = map_device(&mut lab);
        Self { lab, slot, registers, _thread: thread }
    }

    /// The kernel stores 8 bytes, wherever it runs.
    fn store(&mut self, offset: Offset, value: u64) {
        self.lab.ok(Op::Write { addr: self.registers.add(offset.0), value });
    }
}

/// Maps the page at [`DEVICE`] as the kernel maps memory, behind its back: no operation maps what
/// is not RAM.
fn map_device(lab: &mut Lab) -> GuestVirt {
    let window = lab.address(Op::KmemAllocNofault { map: MapId::KERNEL, size: 2 * PAGE_SIZE });
    lab.ok(Op::PmapQenter { addr: window, count: 1 });
    let good = lab.guest.vtop(window).expect("the tables can be read").last().pte;
    let bits = good.bits() ^ good.frame().get() | DEVICE.get();
    let entry = lab.pte_at(window, Level::Pt).add(8);
    lab.guest.hypervisor.ram.write(entry, &bits.to_le_bytes()).expect("it is RAM");
    window.add(PAGE_SIZE)
}

#[test]
fn a_store_of_the_kernel_is_heard_on_the_device_thread_and_any_other_is_not() {
    let mut guest = Attached::new();
    let (sender, receiver) = channel();
    let other = sender.clone();
    let (seven, nine) = (Offset(0x10), Offset(0x18));
    let seven_is_written =
        guest.slot.on_write(seven, 7u64, move || sender.send(7).expect("the test listens"));
    let _nine_is_written = guest
        .slot
        .on_write(nine, 9u64, move || other.send(9).expect("the test listens"))
        .expect("an event");
    // 1. Other values and other registers go to the bus, where nobody is, and the kernel goes on.
    guest.store(seven, 8);
    guest.store(nine, 7);
    guest.store(Offset(0), 7);
    // 2. Those that are awaited go to the thread.
    guest.store(nine, 9);
    assert_eq!(receiver.recv_timeout(LONG), Ok(9));
    guest.store(seven, 7);
    assert_eq!(receiver.recv_timeout(LONG), Ok(7));
    // 3. A register that is given back is the bus's again.
    drop(seven_is_written);
    guest.store(seven, 7);
    guest.store(nine, 9);
    assert_eq!(receiver.recv_timeout(LONG), Ok(9));
    assert!(receiver.try_recv().is_err());
}

#[test]
fn one_register_value_has_one_event() {
    let guest = Attached::new();
    let first = guest.slot.on_write(Offset(0), 1u32, || {}).expect("an event");
    let error = guest.slot.on_write(Offset(0), 1u32, || {}).expect_err("it is taken");
    assert_eq!(error.errno, libc::EEXIST);
    drop(first);
    let _second = guest.slot.on_write(Offset(0), 1u32, || {}).expect("it was given back");
}

#[test]
fn a_line_raises_its_own_vector_and_wakes_the_halted_kernel() {
    let mut guest = Attached::new();
    let lines = [0x60, DOORBELL_VECTOR].map(|vector| Msi { apic: 0, vector });
    let [_other, line] = lines.map(|msi| guest.slot.line(msi).expect("a line"));
    for tag in [7001, 7002] {
        // 1. A request that nobody rings for.
        guest.lab.wait_until_halted();
        let request = Request { tag, context: Context::Thread(0), op: Op::Nop };
        assert!(guest.lab.guest.link.push(&request).expect("the ring is good"));
        std::thread::sleep(Duration::from_millis(5));
        assert!(!guest.lab.guest.link.has_news(), "the kernel sleeps");
        // 2. The device's interrupt runs the doorbell's handler.
        line.trigger();
        let response = loop {
            if let Some(response) = guest.lab.guest.link.pop().expect("the ring is good") {
                break response;
            }
            std::thread::yield_now();
        };
        assert_eq!((response.tag, response.outcome), (tag, Outcome::Ok));
    }
}
