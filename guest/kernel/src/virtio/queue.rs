//! A split virtqueue (virtio 1.2, section 2.7) with one request at a time.
//!
//! **Protocol.** The driver fills the descriptors from 0 on, names the first in the available ring,
//! and raises that ring's index; the device raises the used ring's index when it is done. Until
//! then the driver changes nothing, so a device cannot confuse it: whatever it writes into the used
//! ring, only the index counts, and that only as "changed".
//!
//! A driver that polls for the answer asks for no interrupt ([`Queue::want_interrupt`]).

use core::sync::atomic::{Ordering, fence};

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::virtio::{AVAIL_NO_INTERRUPT, DESC_BYTES, DescFlags};

use super::dma::DmaPage;

/// Bytes of a queue in its page: descriptors, available ring, used ring.
pub const QUEUE_BYTES: u64 = 512;
/// Where the available ring begins.
const AVAIL: u64 = 8 * DESC_BYTES;
/// Where the used ring begins.
const USED: u64 = AVAIL + 64;

/// A part of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Where it begins.
    pub at: GuestPhys,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device may write it.
    pub access: DescFlags,
}

/// Whether the driver sleeps until the device is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Await {
    /// By polling.
    Polling,
    /// Asleep, until an interrupt.
    Interrupt,
}

/// A queue.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    page: DmaPage,
    base: u64,
    available: u16,
    used: u16,
}

impl Queue {
    /// Descriptors of a queue.
    pub const SIZE: u16 = 8;

    /// Queue `index` of a device, at the `place`-th part of `page`, which is zero.
    pub fn new(index: u16, page: DmaPage, place: u64) -> Self {
        Self { index, page, base: place * QUEUE_BYTES, available: 0, used: 0 }
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where its three parts lie.
    pub fn parts(&self) -> [GuestPhys; 3] {
        [0, AVAIL, USED].map(|part| self.page.phys(self.base + part))
    }

    /// Makes the request that consists of `buffers`, at most [`Queue::SIZE`], available. The device
    /// has to be notified. No other request is in progress.
    pub fn submit(&mut self, buffers: &[Buffer]) {
        // 1. The chain of descriptors.
        let last = buffers.len().min(usize::from(Self::SIZE)) - 1;
        for (number, buffer) in (0..=last).zip(buffers) {
            let at = self.base + number as u64 * DESC_BYTES;
            let more = if number < last { DescFlags::NEXT } else { DescFlags::empty() };
            let next = u16::try_from(number + 1).unwrap_or(0);
            self.page.word64(at).store(buffer.at.get(), Ordering::Relaxed);
            self.page.word32(at + 8).store(buffer.len, Ordering::Relaxed);
            self.page.word16(at + 12).store((buffer.access | more).bits(), Ordering::Relaxed);
            self.page.word16(at + 14).store(next, Ordering::Relaxed);
        }
        // 2. Its head is always descriptor 0, in each place of the ring. The index comes last.
        let slot = self.base + AVAIL + 4 + 2 * u64::from(self.available % Self::SIZE);
        self.page.word16(slot).store(0, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        self.page.word16(self.base + AVAIL + 2).store(self.available, Ordering::Release);
        // 3. Before the device is notified, it can see the index.
        fence(Ordering::SeqCst);
    }

    /// Says how the driver waits.
    pub fn want_interrupt(&self, how: Await) {
        let flags = if how == Await::Interrupt { 0 } else { AVAIL_NO_INTERRUPT };
        self.page.word16(self.base + AVAIL).store(flags, Ordering::Relaxed);
        // The device sees the flag, or the driver sees the buffer that was used without it.
        fence(Ordering::SeqCst);
    }

    /// Whether a request is in progress.
    pub fn is_busy(&self) -> bool {
        self.available != self.used
    }

    /// Whether the device is done with the request, which is over then.
    pub fn take_used(&mut self) -> bool {
        let index = self.page.word16(self.base + USED + 2).load(Ordering::Acquire);
        let is_done = self.is_busy() && index == self.used.wrapping_add(1);
        if is_done {
            self.used = index;
        }
        is_done
    }
}

const _: () = assert!(USED + 4 + 8 * 8 + 2 <= QUEUE_BYTES && USED.is_multiple_of(4));
