//! Statistics of the guest's memory (virtio 1.2, section 5.5.6.3).
//!
//! The device keeps the driver's buffer until it wants new numbers: it uses the buffer then, and
//! the driver supplies it again, filled anew. Tags without a meaning here are left out: nothing is
//! swapped, killed or kept in huge pages, and the pagedaemon scans no queue.

use core::sync::atomic::Ordering;

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::virtio::DescFlags;
use vmkern_abi::virtio::balloon::{STAT_BYTES, Stat};

use crate::memory::KernelVm;
use crate::virtio::device::VirtioDevice;
use crate::virtio::dma::DmaPage;
use crate::virtio::queue::{Buffer, QUEUE_BYTES, Queue};

/// The number of statistics: with three times as many entries the buffer is a multiple of 6 bytes,
/// as the specification demands.
const COUNT: usize = 6;
/// Where the buffer lies in the page of the queues, behind them.
const AT: u64 = 4 * QUEUE_BYTES;

/// The queue and its one buffer.
pub struct Statistics {
    queue: Queue,
    page: DmaPage,
}

impl Statistics {
    /// Statistics by `queue`, whose page has room for the buffer.
    pub fn new(queue: Queue, page: DmaPage) -> Self {
        Self { queue, page }
    }

    /// Supplies the buffer again, if the device has used it.
    pub fn renew(&mut self, vm: &KernelVm, device: VirtioDevice) {
        if self.queue.take_used() {
            self.supply(vm, device);
        }
    }

    /// Fills the buffer and makes it available. The device does not have it.
    pub fn supply(&mut self, vm: &KernelVm, device: VirtioDevice) {
        for (index, (stat, value)) in (0..).zip(values(vm)) {
            let at = AT + index * STAT_BYTES as u64;
            self.page.word16(at).store(stat.code().to_le(), Ordering::Relaxed);
            // The value is not aligned.
            for (part, bytes) in (0..).zip(value.to_le_bytes().as_chunks::<2>().0) {
                let word = u16::from_ne_bytes(*bytes);
                self.page.word16(at + 2 + 2 * part).store(word, Ordering::Relaxed);
            }
        }
        let len = u32::try_from(COUNT * STAT_BYTES).unwrap_or(0);
        self.queue.submit(&[Buffer { at: self.page.phys(AT), len, access: DescFlags::empty() }]);
        device.notify(self.queue.index());
    }
}

/// The statistics that mean something here.
fn values(vm: &KernelVm) -> [(Stat, u64); COUNT] {
    let cnt = vm.cnt();
    let free = cnt.v_free_count.get();
    let available = free.saturating_sub(cnt.v_free_reserved.get());
    [
        (Stat::MajorFaults, 0),
        (Stat::MinorFaults, cnt.v_faults.get()),
        (Stat::Free, free * PAGE_SIZE),
        (Stat::Total, cnt.v_page_count.get() * PAGE_SIZE),
        (Stat::Available, available * PAGE_SIZE),
        (Stat::Caches, cnt.v_cache_count.get() * PAGE_SIZE),
    ]
}

const _: () = assert!((COUNT * STAT_BYTES).is_multiple_of(6));
