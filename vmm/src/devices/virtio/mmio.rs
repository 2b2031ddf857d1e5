//! The MMIO transport, version 2 (virtio 1.2, section 4.2.2).
//!
//! **Locks.** The registers have a lock that is held for a few instructions. Each queue has its
//! own, which is held while the queue is served; it is taken before the registers' lock, and never
//! under it.
//!
//! **Life.** The interrupt line and the events of the notification register are made when the
//! driver sets DRIVER_OK, on the thread of its vCPU, and go when it resets the device. So a guest
//! whose driver never starts costs neither.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmkern_abi::virtio::balloon::Features;
use vmkern_abi::virtio::mmio::{CONFIG, INT_CONFIG, INT_VRING, MAGIC, Register, VERSION};
use vmkern_abi::virtio::{AVAIL_NO_INTERRUPT, F_VERSION_1, Status};

use super::{Backend, QueueIndex, Used};
use crate::devices::bus::{Device, Offset};
use crate::devices::slot::{Notification, Slot};
use crate::kvm::io::Demand;
use crate::kvm::line::{IrqLine, Msi};
use crate::kvm::memory::GuestRam;

/// `vmkn`, the maker of the device.
const VENDOR: u32 = 0x6e6b_6d76;

/// What a device in operation has of its VM.
#[derive(Debug, Default)]
struct Running {
    line: Option<IrqLine>,
    _notifications: Vec<Notification<u32>>,
}

/// The registers that the driver writes.
#[derive(Debug, Default)]
struct Registers {
    status: Status,
    /// Which half of the device's features is read.
    device_sel: u32,
    /// Which half of the driver's features is written.
    driver_sel: u32,
    accepted: u64,
    queue: u32,
    interrupt: u32,
    generation: u32,
    running: Running,
}

impl Registers {
    fn is_in_operation(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && !self.status.contains(Status::NEEDS_RESET)
    }
}

/// A device's transport.
#[derive(Debug)]
pub(crate) struct Mmio {
    this: Weak<Self>,
    ram: Arc<GuestRam>,
    backend: Arc<dyn Backend>,
    /// Where events and the line come from; a device without one is served by exits, and raises no
    /// interrupt.
    slot: Option<(Slot, Msi)>,
    registers: Mutex<Registers>,
    queues: Vec<Mutex<Queue>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mmio {
    /// A transport for `backend`, whose queues lie in `ram`.
    pub(crate) fn new(
        ram: Arc<GuestRam>,
        backend: Arc<dyn Backend>,
        slot: Option<(Slot, Msi)>,
    ) -> Arc<Self> {
        // A size of 1 stands in for a queue that does not exist.
        let queue = |&size: &u16| {
            Mutex::new(Queue::new(size.max(1)).expect("sizes of queues are powers of two"))
        };
        let queues = backend.queues().iter().map(queue).collect();
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            ram,
            backend,
            slot,
            registers: Mutex::default(),
            queues,
        })
    }

    /// Tells the driver that the configuration has changed.
    pub(crate) fn config_changed(&self) {
        let mut registers = lock(&self.registers);
        registers.generation = registers.generation.wrapping_add(1);
        self.raise(&mut registers, INT_CONFIG);
    }

    /// Leaves the driver without interrupts, as a device does that is stuck.
    #[cfg(test)]
    pub(crate) fn cut_line(&self) {
        lock(&self.registers).running.line = None;
    }

    /// Serves queue `index`, if the device is in operation.
    pub(crate) fn serve(&self, index: QueueIndex) {
        let Some(queue) = self.queues.get(usize::from(index.0)) else {
            log::warn!("{:?}: the driver notified {index:?}, which does not exist", self.backend);
            return;
        };
        // 1. The queue stays locked while it is served, and cannot be reset.
        let mut queue = lock(queue);
        if !lock(&self.registers).is_in_operation() || !queue.ready() {
            return;
        }
        let memory = self.ram.memory();
        let served = if queue.is_valid(memory) {
            self.backend.serve(index, &mut queue, memory)
        } else {
            Err(super::BadRing("its parts do not lie in memory".to_owned()))
        };
        // 2. The driver is told, unless it asked not to be: it sees the used buffer, or its flag is
        //    seen here.
        fence(Ordering::SeqCst);
        let mut registers = lock(&self.registers);
        match served {
            Ok(Used::Nothing) => {}
            Ok(Used::Buffers) => {
                if wants_interrupt(&queue, memory) {
                    self.raise(&mut registers, INT_VRING);
                }
            }
            Err(error) => {
                log::warn!("{:?}: {index:?}: {}", self.backend, error.0);
                registers.status |= Status::NEEDS_RESET;
                self.raise(&mut registers, INT_CONFIG);
            }
        }
    }

    /// Interrupts the driver because of `cause`.
    fn raise(&self, registers: &mut Registers, cause: u32) {
        if !registers.status.contains(Status::DRIVER_OK) {
            return;
        }
        registers.interrupt |= cause;
        if let Some(line) = &registers.running.line {
            line.trigger();
        }
    }

    fn read_register(&self, register: Register) -> u32 {
        let registers = lock(&self.registers);
        let half = |features: u64, select: u32| match select {
            0 => low(features),
            1 => low(features >> 32),
            _ => 0,
        };
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.backend.device_id(),
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => half(self.backend.features().bits(), registers.device_sel),
            Register::QueueNumMax => self.queue_max(registers.queue),
            Register::QueueReady => {
                let queue = registers.queue;
                drop(registers);
                self.queue(queue).is_some_and(|queue| lock(queue).ready()).into()
            }
            Register::InterruptStatus => registers.interrupt,
            Register::Status => registers.status.bits(),
            Register::ConfigGeneration => registers.generation,
            // The others can only be written.
            _ => 0,
        }
    }

    fn write_register(&self, register: Register, value: u32) {
        match register {
            Register::QueueNotify => {
                self.serve(QueueIndex(u16::try_from(value).unwrap_or(u16::MAX)));
            }
            Register::Status => self.write_status(value),
            Register::QueueNum
            | Register::QueueReady
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh => self.write_queue(register, value),
            _ => {
                let mut registers = lock(&self.registers);
                match register {
                    Register::DeviceFeaturesSel => registers.device_sel = value,
                    Register::DriverFeaturesSel => registers.driver_sel = value,
                    Register::DriverFeatures => registers.accept(value),
                    Register::QueueSel => registers.queue = value,
                    Register::InterruptAck => registers.interrupt &= !value,
                    _ => log::debug!("{:?}: {register:?} cannot be written", self.backend),
                }
            }
        }
    }

    /// The most descriptors of queue `number`, 0 if there is no such queue.
    fn queue_max(&self, number: u32) -> u32 {
        let sizes = self.backend.queues();
        usize::try_from(number)
            .ok()
            .and_then(|number| sizes.get(number))
            .copied()
            .unwrap_or(0)
            .into()
    }

    /// Queue `number`, if there is one.
    fn queue(&self, number: u32) -> Option<&Mutex<Queue>> {
        (self.queue_max(number) > 0).then(|| self.queues.get(usize::try_from(number).ok()?))?
    }

    /// Writes a register of the selected queue. A queue that is ready does not change.
    fn write_queue(&self, register: Register, value: u32) {
        let selected = lock(&self.registers).queue;
        let Some(queue) = self.queue(selected) else { return };
        let mut queue = lock(queue);
        if register == Register::QueueReady {
            return queue.set_ready(value == 1);
        }
        if queue.ready() {
            log::debug!("{:?}: queue {selected} is ready and cannot change", self.backend);
            return;
        }
        match register {
            Register::QueueNum => queue.set_size(u16::try_from(value).unwrap_or(0)),
            Register::QueueDescLow => queue.set_desc_table_address(Some(value), None),
            Register::QueueDescHigh => queue.set_desc_table_address(None, Some(value)),
            Register::QueueDriverLow => queue.set_avail_ring_address(Some(value), None),
            Register::QueueDriverHigh => queue.set_avail_ring_address(None, Some(value)),
            Register::QueueDeviceLow => queue.set_used_ring_address(Some(value), None),
            _ => queue.set_used_ring_address(None, Some(value)),
        }
    }

    fn write_status(&self, value: u32) {
        let asked = Status::from_bits_truncate(value);
        if asked.is_empty() {
            return self.reset();
        }
        // 1. Bits are only added, and NEEDS_RESET is the device's. Agreement comes before work.
        let mut registers = lock(&self.registers);
        let mut new = asked - registers.status - Status::NEEDS_RESET;
        if new.contains(Status::FEATURES_OK) && !registers.is_acceptable(self.backend.features()) {
            new -= Status::FEATURES_OK;
        }
        if !registers.status.union(new).contains(Status::FEATURES_OK) {
            new -= Status::DRIVER_OK;
        }
        registers.status |= new;
        // 2. What follows from the new bits. A line is there before anything can be raised on it.
        if new.contains(Status::FEATURES_OK) {
            self.backend.agreed(Features::from_bits_truncate(registers.accepted));
        }
        if new.contains(Status::DRIVER_OK) {
            registers.running = self.start();
        }
    }

    /// The line and the events of a device whose driver starts it. What cannot be had is reported;
    /// the device works without events, by exits.
    fn start(&self) -> Running {
        let Some((slot, msi)) = &self.slot else { return Running::default() };
        let line = slot.line(*msi).inspect_err(|error| log::error!("{:?}: {error}", self.backend));
        let mut notifications = Vec::new();
        for (number, &size) in (0..).zip(self.backend.queues()) {
            if size == 0 {
                continue;
            }
            let this = Weak::clone(&self.this);
            let work = move || {
                if let Some(this) = this.upgrade() {
                    this.serve(QueueIndex(number));
                }
            };
            match slot.on_write(Offset(Register::QueueNotify as u64), u32::from(number), work) {
                Ok(notification) => notifications.push(notification),
                Err(error) => log::warn!("{:?}: {error}; exits serve the queue", self.backend),
            }
        }
        Running { line: line.ok(), _notifications: notifications }
    }

    /// Resets the device: waits for the work at hand.
    fn reset(&self) {
        let running = {
            let mut registers = lock(&self.registers);
            std::mem::take(&mut *registers).running
        };
        for (queue, &size) in self.queues.iter().zip(self.backend.queues()) {
            let mut queue = lock(queue);
            queue.reset();
            queue.set_size(size.max(1));
        }
        self.backend.reset();
        drop(running);
    }
}

impl Registers {
    /// The driver accepts features, in the half that it has selected, before both sides agree.
    fn accept(&mut self, value: u32) {
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        let value = u64::from(value);
        self.accepted = match self.driver_sel {
            0 => self.accepted & !u64::from(u32::MAX) | value,
            1 => self.accepted & u64::from(u32::MAX) | value << 32,
            _ => self.accepted,
        };
    }

    /// Whether the driver has accepted only what was `offered`, and virtio 1 with it.
    fn is_acceptable(&self, offered: Features) -> bool {
        self.accepted & !offered.bits() == 0 && self.accepted & F_VERSION_1 != 0
    }
}

/// Whether the driver of `queue` wants to be interrupted: it says so in the available ring's flags.
fn wants_interrupt(queue: &Queue, memory: &GuestMemoryMmap) -> bool {
    let flags: Result<u16, _> = memory.load(GuestAddress(queue.avail_ring()), Ordering::SeqCst);
    flags.map_or(true, |flags| u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
}

/// The low half of a word.
fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0)
}

impl Device for Mmio {
    fn read(&self, Offset(offset): Offset, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            return self.backend.read_config(at, data);
        }
        data.fill(0);
        // Registers are 32 bits wide, and nothing else may be read of them.
        if let (Some(register), Ok(data)) = (Register::at(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    fn write(&self, Offset(offset): Offset, data: &[u8]) -> Demand {
        if let Some(at) = offset.checked_sub(CONFIG) {
            self.backend.write_config(at, data);
        } else if let (Some(register), Ok(data)) = (Register::at(offset), data.try_into()) {
            self.write_register(register, u32::from_le_bytes(data));
        }
        Demand::Nothing
    }
}
