//! A driver that writes rings into guest memory, word by word.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::virtio::balloon::Features;
use vmkern_abi::virtio::mmio::{CONFIG, Register};
use vmkern_abi::virtio::{DescFlags, Status};

use crate::devices::balloon::{Account, Balloon, Judge, Misuse};
use crate::devices::virtio::Mmio;
use crate::devices::{Device as _, Offset};
use crate::kvm::bell::Bell;
use crate::kvm::memory::GuestRam;

/// Memory of the guest.
pub(super) const MEMORY: u64 = 16 << 20;
/// What the loader has filled.
pub(super) const LOADED: Range<GuestPhys> = GuestPhys::new(0)..GuestPhys::new(0x20_0000);
/// Where the rings lie: a page for each part of each queue.
const RINGS: u64 = 0x20_0000;
/// Where page numbers are written.
pub(super) const NUMBERS: u64 = 0x30_0000;
/// Descriptors of a queue.
pub(super) const SIZE: u16 = 16;

/// A descriptor.
#[derive(Clone, Copy)]
pub(super) struct Desc {
    pub at: u64,
    pub len: u32,
    pub flags: DescFlags,
    pub next: u16,
}

impl Desc {
    /// A buffer that the device reads.
    pub(super) fn read(at: u64, len: u32) -> Self {
        Self { at, len, flags: DescFlags::empty(), next: 0 }
    }

    /// A buffer that the device may write.
    pub(super) fn write(at: u64, len: u32) -> Self {
        Self { flags: DescFlags::WRITE, ..Self::read(at, len) }
    }
}

/// The driver, its device and its memory.
pub(super) struct Driver {
    pub ram: Arc<GuestRam>,
    pub balloon: Arc<Balloon>,
    pub mmio: Arc<Mmio>,
    available: BTreeMap<u16, u16>,
}

impl Driver {
    /// A driver that has not touched its device.
    pub(super) fn fresh(judge: Judge) -> Self {
        let ram = Arc::new(GuestRam::new(MEMORY).expect("there is address space"));
        let bell = Bell::new().expect("an eventfd");
        let balloon = Arc::new(Balloon::new(Arc::clone(&ram), judge, bell));
        let mmio = Mmio::new(Arc::clone(&ram), Arc::clone(&balloon) as _, None);
        Self { ram, balloon, mmio, available: BTreeMap::new() }
    }

    /// A driver that has agreed on `features`, with queues, in operation.
    pub(super) fn with(judge: Judge, features: Features) -> Self {
        let mut driver = Self::fresh(judge);
        driver.negotiate(features);
        for queue in [0, 1, 2, 4] {
            driver.set_up(queue);
        }
        driver.add_status(Status::DRIVER_OK);
        driver
    }

    /// The usual driver, of a guest without a kernel that could be asked.
    pub(super) fn new() -> Self {
        Self::with(Judge::new(vec![LOADED], None), Self::all())
    }

    /// Every feature of the device.
    pub(super) fn all() -> Features {
        Features::VERSION_1
            | Features::STATS_VQ
            | Features::DEFLATE_ON_OOM
            | Features::PAGE_REPORTING
            | Features::STOPPED
    }

    pub(super) fn get(&self, register: Register) -> u32 {
        self.load(register as u64)
    }

    pub(super) fn load(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.mmio.read(Offset(offset), &mut word);
        u32::from_le_bytes(word)
    }

    pub(super) fn set(&self, register: Register, value: u32) {
        let _ = self.mmio.write(Offset(register as u64), &value.to_le_bytes());
    }

    pub(super) fn set_config(&self, offset: u64, value: u32) {
        let _ = self.mmio.write(Offset(CONFIG + offset), &value.to_le_bytes());
    }

    pub(super) fn add_status(&self, status: Status) {
        self.set(Register::Status, self.get(Register::Status) | status.bits());
    }

    pub(super) fn status(&self) -> Status {
        Status::from_bits_truncate(self.get(Register::Status))
    }

    pub(super) fn negotiate(&self, features: Features) {
        self.add_status(Status::ACKNOWLEDGE | Status::DRIVER);
        for half in 0..2 {
            self.set(Register::DriverFeaturesSel, half);
            let bits = features.bits() >> (32 * half) & u64::from(u32::MAX);
            self.set(Register::DriverFeatures, u32::try_from(bits).expect("it is a half"));
        }
        self.add_status(Status::FEATURES_OK);
    }

    /// Where part `part` of queue `queue` lies.
    pub(super) fn ring(queue: u16, part: u64) -> u64 {
        RINGS + u64::from(queue) * 0x3000 + part * PAGE_SIZE
    }

    pub(super) fn set_up(&mut self, queue: u16) {
        let low = |part| u32::try_from(Self::ring(queue, part)).expect("it is low");
        self.set(Register::QueueSel, queue.into());
        self.set(Register::QueueNum, SIZE.into());
        self.set(Register::QueueDescLow, low(0));
        self.set(Register::QueueDriverLow, low(1));
        self.set(Register::QueueDeviceLow, low(2));
        self.set(Register::QueueReady, 1);
    }

    pub(super) fn poke(&self, at: u64, bytes: &[u8]) {
        self.ram.write(GuestPhys::new(at), bytes).expect("it is RAM");
    }

    /// Writes descriptor `index` of `queue`.
    pub(super) fn describe(&self, queue: u16, index: u16, desc: Desc) {
        let at = Self::ring(queue, 0) + 16 * u64::from(index);
        self.poke(at, &desc.at.to_le_bytes());
        self.poke(at + 8, &desc.len.to_le_bytes());
        self.poke(at + 12, &desc.flags.bits().to_le_bytes());
        self.poke(at + 14, &desc.next.to_le_bytes());
    }

    /// Makes the chain that begins with descriptor `head` available, and notifies the device.
    pub(super) fn offer(&mut self, queue: u16, head: u16) {
        let available = self.available.entry(queue).or_default();
        let slot = Self::ring(queue, 1) + 4 + 2 * u64::from(*available % SIZE);
        *available = available.wrapping_add(1);
        let index = *available;
        self.poke(slot, &head.to_le_bytes());
        self.poke(Self::ring(queue, 1) + 2, &index.to_le_bytes());
        self.set(Register::QueueNotify, queue.into());
    }

    /// Sends a chain of these buffers.
    pub(super) fn send(&mut self, queue: u16, buffers: &[Desc]) {
        let last = buffers.len() - 1;
        for (number, desc) in (0..).zip(buffers) {
            let more = usize::from(number) < last;
            let flags = if more { desc.flags | DescFlags::NEXT } else { desc.flags };
            self.describe(queue, number, Desc { flags, next: number + 1, ..*desc });
        }
        self.offer(queue, 0);
    }

    /// Sends page numbers.
    pub(super) fn name(&mut self, queue: u16, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.poke(NUMBERS, &bytes);
        let len = u32::try_from(bytes.len()).expect("it is short");
        self.send(queue, &[Desc::read(NUMBERS, len)]);
    }

    /// How many buffers of `queue` the device has used.
    pub(super) fn used(&self, queue: u16) -> u16 {
        let mut word = [0; 2];
        let at = GuestPhys::new(Self::ring(queue, 2) + 2);
        self.ram.read(at, &mut word).expect("it is RAM");
        u16::from_le_bytes(word)
    }

    pub(super) fn account(&self) -> Account {
        self.balloon.account()
    }

    /// How often the driver did this.
    pub(super) fn misuse(&self, misuse: Misuse) -> u64 {
        self.account().misuse[misuse as usize]
    }

    /// Fills page `pfn`.
    pub(super) fn fill(&self, pfn: u32) {
        self.poke(u64::from(pfn) * PAGE_SIZE, &[0x5a; 4096]);
    }

    /// Whether page `pfn` holds what [`Driver::fill`] has written; otherwise it holds zeros.
    pub(super) fn is_filled(&self, pfn: u32) -> bool {
        let mut page = [0; 4096];
        let at = GuestPhys::from_pfn(pfn.into());
        self.ram.read(at, &mut page).expect("it is RAM");
        assert!(page.iter().all(|&byte| byte == page[0]) && [0, 0x5a].contains(&page[0]));
        page[0] != 0
    }
}
