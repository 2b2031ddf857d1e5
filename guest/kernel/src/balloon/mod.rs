//! The driver of the virtio balloon: a thread that does as the host asks.
//!
//! **Protocol.** The thread sleeps until an interrupt, or a shortage of pages, has set [`NEWS`].
//! Then it moves towards the device's target in requests of at most [`Telling::PAGES`] pages, and
//! writes `actual`. The thread has one request in progress at a time, so no page is used between
//! its inflation and the device's answer, nor between the telling of its deflation and the answer.
//!
//! **Stopping.** When the allocator gives no more, the driver says why, if the device understands
//! it ([`Features::STOPPED`]), and does not try again before the device has changed its
//! configuration. So a target that cannot be reached costs nothing.
//!
//! **Shortage.** When a request for a page was refused and `vm_lowmem` happens, the driver gives as
//! many pages back as lead out of the shortage ([`Phys::balloon_relief`]), and stops: pages that
//! were just given back are not taken again. The handler itself only wakes the thread, because a
//! handler of the pagedaemon must not wait for a device.
//!
//! **Waiting.** The thread polls for the device's answer for a while, and lets others of its
//! priority run. It is runnable in that time, so the guest is not at rest, and in virtual time the
//! clock stands still. A device that takes longer finds it asleep, until the interrupt.
//!
//! **Locks.** [`LOCK`], of class `Driver`, is the interlock of the sleep. The allocator's functions
//! take their own.
//!
//! [`Phys::balloon_relief`]: kmem::vm::phys::Phys::balloon_relief

mod stats;
mod telling;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kmem::kern::eventhandler::EventPriority;
use kmem::kern::lock::LockClass;
use kmem::kern::sched::PVM;
use kmem::kern::sleepq::WaitChannel;
use kmem::kern::synch::Relock;
use kmem::kern::thread::BALLOON_TID;
use kmem::vm::eventhandler::VM_LOWMEM;
use kmem::vm::thread::ThreadSpec;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::Mtx;
use vmkern_abi::virtio::balloon::{
    ACTUAL, DEFLATEQ, DEVICE_ID, Features, INFLATEQ, NUM_PAGES, STATSQ, STOP_PAGES, STOP_REASON,
    StopReason,
};
use vmkern_abi::virtio::mmio::{DEVICE_VECTOR, IOAPIC_PINS, MmioDevice, MmioDevices};

use self::stats::Statistics;
use self::telling::{BUFFERS, Telling};
use crate::arch::ioapic;
use crate::log;
use crate::masked_cell::MaskedCell;
use crate::memory::KernelVm;
use crate::virtio::device::{Unusable, VirtioDevice};
use crate::virtio::dma::DmaPage;
use crate::virtio::queue::Queue;

/// The features that this driver can use. Free pages are not reported.
const KNOWN: Features = Features::VERSION_1
    .union(Features::MUST_TELL_HOST)
    .union(Features::STATS_VQ)
    .union(Features::DEFLATE_ON_OOM)
    .union(Features::STOPPED);

/// Set when there is something to do.
static NEWS: AtomicBool = AtomicBool::new(false);
/// Set when news was taken for the end of a request, and may have been more than that.
static NEWS_LEFT: AtomicBool = AtomicBool::new(false);
/// Pages that a shortage asks back.
static RELIEF: AtomicU64 = AtomicU64::new(0);
/// The last `actual` that the device was told; [`NEVER`] before the first.
static TOLD: AtomicU64 = AtomicU64::new(NEVER);
/// No number of pages.
const NEVER: u64 = u64::MAX;
/// Interlock of the sleep.
// SAFETY: a mutex is plain words, and all zero is a free one.
static LOCK: Mtx = unsafe { core::mem::zeroed() };
/// The driver between its making and the start of its thread.
static DRIVER: MaskedCell<Option<Driver>> = MaskedCell::new(None);

/// The wait message of the thread while there is nothing to do.
const IDLE: &str = "balloon";

fn channel() -> WaitChannel {
    WaitChannel::from(GuestVirt::new((&raw const NEWS) as u64))
}

/// Wakes the driver: an interrupt of the device, or a shortage. May be called in an interrupt
/// handler.
pub fn wake(vm: &KernelVm) {
    vm.mtx_lock(LockClass::Driver, &LOCK.owner);
    NEWS.store(true, Ordering::Relaxed);
    vm.wakeup(channel());
    vm.mtx_unlock(LockClass::Driver, &LOCK.owner);
}

/// The number of pages in the balloon of which the device was told last, once it was.
pub fn told() -> Option<u64> {
    Some(TOLD.load(Ordering::Relaxed)).filter(|&pages| pages != NEVER)
}

/// Starts a driver for the first balloon of the command line, if there is one. Other devices, and
/// one that cannot be used, are left alone, with a line in the log.
pub fn start(vm: &KernelVm, devices: &MmioDevices) {
    for place in devices.iter() {
        let Some(device) = VirtioDevice::probe(place, DEVICE_ID) else {
            log!("virtio: no balloon at {}", place.base);
            continue;
        };
        let driver = match Driver::new(vm, device) {
            Ok(driver) => driver,
            Err(why) => {
                log!("balloon: the device at {} cannot be used: {why}", place.base);
                continue;
            }
        };
        log!("balloon: at {}, features {:#x}", place.base, driver.features.bits());
        if begin(vm, place, driver).is_none() {
            log!("balloon: no memory for its thread");
        }
        return;
    }
}

/// Leads the interrupt to the driver and starts its thread.
fn begin(vm: &KernelVm, place: MmioDevice, driver: Driver) -> Option<()> {
    let device = driver.device;
    if driver.features.contains(Features::DEFLATE_ON_OOM) {
        // Never deregistered: the driver stays.
        let _tag = vm.eventhandler_register(VM_LOWMEM, relieve, 0, EventPriority::LAST).ok()?;
    }
    if place.irq < IOAPIC_PINS {
        ioapic::route(place.irq, DEVICE_VECTOR);
    }
    DRIVER.with(|slot| *slot = Some(driver));
    device.begin();
    let spec = ThreadSpec { tid: BALLOON_TID, name: "balloon", priority: PVM, start: run, arg: 0 };
    let thread = vm.kthread_create(&spec).ok();
    if thread.is_none() {
        // Nobody would answer the host.
        device.reset();
    }
    thread.map(drop)
}

/// The handler of `vm_lowmem`.
fn relieve(vm: &KernelVm, _: u64, _: u64) {
    let pages = vm.balloon_relief();
    if pages > 0 {
        RELIEF.fetch_max(pages, Ordering::Relaxed);
        wake(vm);
    }
}

/// The thread. Never returns.
fn run(vm: &KernelVm, _: u64) {
    let Some(mut driver) = DRIVER.with(Option::take) else { return };
    if let Some(stats) = &mut driver.stats {
        stats.supply(vm, driver.device);
    }
    loop {
        driver.look(vm);
        driver.work(vm);
        if !NEWS_LEFT.swap(false, Ordering::Relaxed) {
            sleep(vm);
        }
    }
}

/// Sleeps until there is news.
fn sleep(vm: &KernelVm) {
    let interlock = (LockClass::Driver, &LOCK);
    vm.mtx_lock(LockClass::Driver, &LOCK.owner);
    while !NEWS.swap(false, Ordering::Relaxed) {
        // News may have come and gone: the flag is read again, under the lock.
        let _ = vm.msleep(channel(), interlock, 0, IDLE, 0, Relock::Yes);
    }
    vm.mtx_unlock(LockClass::Driver, &LOCK.owner);
}

/// What the thread has.
struct Driver {
    device: VirtioDevice,
    features: Features,
    inflate: Queue,
    deflate: Queue,
    stats: Option<Statistics>,
    telling: Telling,
    /// The generation of the configuration that was read last.
    generation: Option<u32>,
    target: u64,
    /// Set while the driver does not try to reach a larger target.
    stopped: Option<StopReason>,
}

/// Why there is no driver.
enum NoDriver {
    /// The device and this driver do not suit each other.
    Device(Unusable),
    /// There is no memory for queues.
    Memory,
}

impl fmt::Display for NoDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(Unusable::Features) => f.write_str("it refuses the features"),
            Self::Device(Unusable::Queue(index)) => write!(f, "it has no queue {index}"),
            Self::Memory => f.write_str("there is no memory for its queues"),
        }
    }
}

impl From<Unusable> for NoDriver {
    fn from(why: Unusable) -> Self {
        Self::Device(why)
    }
}

impl Driver {
    /// Resets the device, agrees with it on features, and sets up the queues.
    fn new(vm: &KernelVm, device: VirtioDevice) -> Result<Self, NoDriver> {
        let features = device.negotiate(KNOWN)?;
        let pages = DmaPage::pages::<{ 1 + BUFFERS }>(vm).ok_or(NoDriver::Memory)?;
        let [page, buffers @ ..] = pages;
        let telling = Telling::new(buffers);
        let [inflate, deflate] = [INFLATEQ, DEFLATEQ].map(|at| Queue::new(at, page, at.into()));
        device.set_up(&inflate)?;
        device.set_up(&deflate)?;
        let stats = if features.contains(Features::STATS_VQ) {
            let queue = Queue::new(STATSQ, page, STATSQ.into());
            device.set_up(&queue)?;
            Some(Statistics::new(queue, page))
        } else {
            None
        };
        Ok(Self {
            device,
            features,
            inflate,
            deflate,
            stats,
            telling,
            generation: None,
            target: 0,
            stopped: None,
        })
    }

    /// Reads what the device has to say.
    fn look(&mut self, vm: &KernelVm) {
        self.device.acknowledge();
        if let Some(stats) = &mut self.stats {
            stats.renew(vm, self.device);
        }
        loop {
            let generation = self.device.generation();
            if self.generation == Some(generation) {
                return;
            }
            self.target = self.device.config(NUM_PAGES).into();
            self.stopped = None;
            self.generation = Some(generation);
            // The target may have changed while it was read: the generation tells.
        }
    }

    /// Moves to the target, or as far as the guest allows.
    fn work(&mut self, vm: &KernelVm) {
        loop {
            let relief = RELIEF.swap(0, Ordering::Relaxed);
            let held = vm.balloon_pages();
            if relief > 0 {
                self.shrink(vm, held.saturating_sub(relief));
                self.stop(StopReason::Asleep);
            } else if held > self.target {
                self.shrink(vm, self.target);
            } else if held < self.target && self.stopped.is_none() {
                if let Err(why) = self.grow(vm) {
                    self.stop(why);
                }
            } else {
                break;
            }
            // The device may have another target by now.
            if NEWS.load(Ordering::Relaxed) {
                break;
            }
        }
        self.tell_actual(vm);
        self.tell_stopped();
    }

    /// Does not try to grow any more until the target changes.
    fn stop(&mut self, why: StopReason) {
        self.stopped = Some(why);
    }

    /// Takes as many pages as one request can name, and tells the device of them.
    fn grow(&mut self, vm: &KernelVm) -> Result<(), StopReason> {
        let mut result = Ok(());
        self.telling.clear();
        while result.is_ok() {
            let left = (self.target - vm.balloon_pages()).min(self.telling.room());
            if left == 0 {
                break;
            }
            match vm.balloon_take(left) {
                Ok(block) => self.telling.add(block),
                Err(why) => result = Err(why),
            }
        }
        self.telling.send(vm, self.device, &mut self.inflate);
        result
    }

    /// Gives pages back until `left` are left: the device is told first.
    fn shrink(&mut self, vm: &KernelVm, left: u64) {
        loop {
            self.telling.clear();
            loop {
                let surplus = vm.balloon_pages().saturating_sub(left + self.telling.count());
                let most = surplus.min(self.telling.room());
                let block = if most > 0 { vm.balloon_leave(most) } else { None };
                match block {
                    Some(block) => self.telling.add(block),
                    None => break,
                }
            }
            if self.telling.count() == 0 {
                return;
            }
            self.telling.send(vm, self.device, &mut self.deflate);
            vm.balloon_free();
        }
    }

    /// Writes `actual`, if it has changed.
    fn tell_actual(&self, vm: &KernelVm) {
        let held = vm.balloon_pages();
        if TOLD.load(Ordering::Relaxed) != held {
            self.device.set_config(ACTUAL, u32::try_from(held).unwrap_or(u32::MAX));
            TOLD.store(held, Ordering::Relaxed);
        }
    }

    /// Says why the target was not reached.
    fn tell_stopped(&self) {
        if let Some(why) = self.stopped.filter(|_| self.features.contains(Features::STOPPED)) {
            self.device.set_config(STOP_PAGES, u32::try_from(self.target).unwrap_or(u32::MAX));
            self.device.set_config(STOP_REASON, why.code());
        }
    }
}
