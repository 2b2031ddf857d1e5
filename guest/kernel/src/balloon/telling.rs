//! Telling the device of pages: a few pages full of page numbers, sent as one request.

use core::hint::spin_loop;
use core::sync::atomic::Ordering;

use kmem::vm::balloon::BalloonBlock;
use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::virtio::DescFlags;
use vmkern_abi::virtio::balloon::PFN_BYTES;

use crate::arch::{instr, tlb};
use crate::memory::KernelVm;
use crate::virtio::device::VirtioDevice;
use crate::virtio::dma::DmaPage;
use crate::virtio::queue::{Await, Buffer, Queue};

/// Pages of page numbers.
pub const BUFFERS: usize = 4;
/// Page numbers in one page.
const PER_BUFFER: u64 = PAGE_SIZE / PFN_BYTES as u64;
/// Cycles for which the thread polls before it sleeps: some tens of milliseconds. A device needs
/// a few to take 16 MiB that were in use.
const POLL_CYCLES: u64 = 200_000_000;

/// Page numbers for one request.
pub struct Telling {
    buffers: [DmaPage; BUFFERS],
    count: u64,
}

impl Telling {
    /// The most pages of a request: 16 MiB.
    pub const PAGES: u64 = PER_BUFFER * BUFFERS as u64;

    /// Without page numbers, in these buffers.
    pub fn new(buffers: [DmaPage; BUFFERS]) -> Self {
        Self { buffers, count: 0 }
    }

    /// Forgets all page numbers.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// The number of pages in the request.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many more fit.
    pub fn room(&self) -> u64 {
        Self::PAGES - self.count
    }

    /// Adds the pages of `block`, for which there is room.
    pub fn add(&mut self, block: BalloonBlock) {
        for pfn in block.numbers() {
            let (buffer, at) = (self.count / PER_BUFFER, self.count % PER_BUFFER);
            if let Some(buffer) = self.buffers.get(usize::try_from(buffer).unwrap_or(BUFFERS)) {
                buffer.word32(at * PFN_BYTES as u64).store(pfn.to_le(), Ordering::Relaxed);
                self.count += 1;
            }
        }
    }

    /// Sends the request by `queue` and waits until the device has dealt with it. Sends nothing if
    /// there are no page numbers. May sleep.
    pub fn send(&self, vm: &KernelVm, device: VirtioDevice, queue: &mut Queue) {
        if self.count == 0 {
            return;
        }
        // 1. A buffer for each page that holds numbers.
        let mut parts =
            [Buffer { at: self.buffers[0].phys(0), len: 0, access: DescFlags::empty() }; BUFFERS];
        let mut left = self.count;
        let mut used = 0;
        for (part, page) in parts.iter_mut().zip(&self.buffers) {
            let numbers = left.min(PER_BUFFER);
            if numbers == 0 {
                break;
            }
            part.at = page.phys(0);
            part.len = u32::try_from(numbers * PFN_BYTES as u64).unwrap_or(0);
            left -= numbers;
            used += 1;
        }
        // 2. The request, and the wait for its end.
        queue.want_interrupt(Await::Polling);
        queue.submit(&parts[..used]);
        device.notify(queue.index());
        await_used(vm, device, queue);
    }
}

/// Waits until the device has dealt with the request of `queue`: by polling, then asleep.
fn await_used(vm: &KernelVm, device: VirtioDevice, queue: &mut Queue) {
    let start = instr::rdtsc();
    while instr::rdtsc() - start < POLL_CYCLES {
        if queue.take_used() {
            return;
        }
        tlb::poll();
        spin_loop();
    }
    queue.want_interrupt(Await::Interrupt);
    while !queue.take_used() {
        super::sleep(vm);
        // What else the interrupt may have meant is looked at after this request.
        device.acknowledge();
        super::NEWS_LEFT.store(true, Ordering::Relaxed);
    }
}
