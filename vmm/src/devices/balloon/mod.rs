//! The memory balloon (virtio 1.2, section 5.5), and what this host makes of it.
//!
//! **Protocol.** The host sets a target ([`Balloon::ask`]); the driver sends the numbers of pages
//! that it gives up, and may use none of them before the device has used the buffer. In between the
//! device discards the pages' memory: a whole request at once, as ranges. The driver tells of pages
//! that leave the balloon before it uses them. Then it writes `actual`.
//!
//! **A page is discarded only** when it is RAM, is not in the balloon yet, is not part of the
//! kernel's image or of what the loader wrote, and, where the kernel's page array can be read, is
//! marked there as the balloon's ([`Judge`]). A report of free pages is judged in the same way.
//! Everything else is counted by its reason ([`Misuse`]) and logged, and the page stays.
//!
//! **Locks.** One, for the state. It is held while a request is judged and its memory is discarded,
//! so a look at the numbers never finds pages that are given but not yet discarded.

mod given;
mod judge;
mod pfns;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::GuestMemoryMmap;
use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::virtio::balloon::{
    ACTUAL, CONFIG_BYTES, DEFLATEQ, DEVICE_ID, Features, INFLATEQ, NUM_PAGES, REPORTINGQ,
    STAT_BYTES, STATSQ, STOP_PAGES, STOP_REASON, Stat, StopReason,
};

use self::given::Given;
pub(crate) use self::judge::{Judge, Misuse};
use self::pfns::Ranges;
use super::virtio::{Backend, BadRing, QueueIndex, Used};
use crate::kvm::bell::Bell;
use crate::kvm::memory::GuestRam;

/// The most descriptors of a queue.
const QUEUE_SIZE: u16 = 64;
/// The queues by number: there are no hints of free pages.
const QUEUES: [u16; 5] = [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, 0, QUEUE_SIZE];
/// The most statistics that one buffer can hold; what follows is ignored.
const STATS_MAX: usize = 64;

/// What the balloon has done, and what the driver says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Pages that the host wants in the balloon.
    pub(crate) target: u32,
    /// Pages in the balloon, as the driver says.
    pub(crate) actual: u32,
    /// Why the driver does not reach this target, if it says so.
    pub(crate) stopped: Option<StopReason>,
    /// Whether a driver works.
    pub(crate) is_driven: bool,
    /// Whether the driver has read this target.
    pub(crate) is_read: bool,
    /// Pages whose memory was discarded, in all.
    pub(crate) discarded: u64,
    /// Requests that were served.
    pub(crate) requests: u64,
    /// Pages that the device holds to be in the balloon.
    pub(crate) given: u64,
    /// What the driver should not have done, by kind.
    pub(crate) misuse: [u64; Misuse::ALL.len()],
}

/// Statistics of the guest, by tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// By [`Stat::code`].
    values: [Option<u64>; Stat::ALL.len()],
    /// Buffers that have arrived.
    pub(crate) arrived: u64,
    /// Those of them that answer a request of the host's. The first buffer of a driver does not: it
    /// was filled when the driver began.
    pub(crate) answers: u64,
}

impl Stats {
    /// The value of `stat`, if the driver reports it.
    pub(crate) fn get(&self, stat: Stat) -> Option<u64> {
        self.values[usize::from(stat.code())]
    }

    /// Reads entries in any order. A tag that is unknown is passed over, and so is a part of an
    /// entry at the end.
    fn read(&mut self, bytes: &[u8]) {
        for entry in bytes.chunks_exact(STAT_BYTES) {
            let (tag, value) = entry.split_at(2);
            let (Ok(tag), Ok(value)) = (tag.try_into(), value.try_into()) else { continue };
            if let Some(stat) = Stat::from_code(u16::from_le_bytes(tag)) {
                self.values[usize::from(stat.code())] = Some(u64::from_le_bytes(value));
            }
        }
        self.arrived += 1;
    }
}

#[derive(Debug)]
struct State {
    account: Account,
    features: Features,
    stop_pages: u32,
    stop_reason: u32,
    given: Given,
    stats: Stats,
    /// The buffer of statistics that the device keeps.
    kept: Option<u16>,
    /// Whether the host has asked for statistics since they last arrived.
    wants_stats: bool,
    /// Whether the driver has its buffer back because of that, and owes new ones.
    owes_stats: bool,
}

/// Whether discarded pages are in the balloon from then on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Notes {
    /// They are.
    Given,
    /// They are free pages, which the driver may use as soon as the buffer is used.
    Nothing,
}

/// The device.
pub(crate) struct Balloon {
    ram: Arc<GuestRam>,
    judge: Judge,
    /// Rung whenever the driver has said something.
    bell: Arc<Bell>,
    state: Mutex<State>,
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("balloon")
    }
}

impl Balloon {
    /// A balloon of the guest in `ram`. `judge` knows what may be discarded.
    pub(crate) fn new(ram: Arc<GuestRam>, judge: Judge, bell: Arc<Bell>) -> Self {
        let given = Given::new(ram.size() / PAGE_SIZE);
        let state = State {
            account: Account::default(),
            features: Features::empty(),
            stop_pages: 0,
            stop_reason: 0,
            given,
            stats: Stats::default(),
            kept: None,
            wants_stats: false,
            owes_stats: false,
        };
        Self { ram, judge, bell, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants `pages` pages in the balloon. The caller tells the driver by the transport.
    pub(crate) fn ask(&self, pages: u32) {
        let mut state = self.state();
        state.account.target = pages;
        state.account.is_read = false;
        // An old answer is not one to this question.
        state.stop_reason = 0;
    }

    /// What the balloon has done so far.
    pub(crate) fn account(&self) -> Account {
        let state = self.state();
        let stopped = StopReason::from_code(state.stop_reason)
            .filter(|_| state.stop_pages == state.account.target);
        Account { stopped, given: state.given.count(), ..state.account.clone() }
    }

    /// The last statistics.
    pub(crate) fn stats(&self) -> Stats {
        self.state().stats.clone()
    }

    /// Wants new statistics. The caller has the queue of statistics served afterwards.
    pub(crate) fn ask_stats(&self) {
        self.state().wants_stats = true;
    }

    /// Serves one of the queues that name pages. Each chain is dealt with as a whole before its
    /// buffer is used.
    fn serve_pages(
        &self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        read: fn(&DescriptorChain<&GuestMemoryMmap>, &mut Ranges),
        deal: impl Fn(&mut State, &Ranges),
    ) -> Result<Used, BadRing> {
        let mut used = Used::Nothing;
        // No more chains than the ring has are served at a time: the driver cannot hold the thread.
        for _ in 0..queue.size() {
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let mut ranges = Ranges::default();
            read(&chain, &mut ranges);
            {
                let mut state = self.state();
                state.account.requests += 1;
                for (misuse, count) in ranges.misuse() {
                    complain(&mut state, misuse, count);
                }
                deal(&mut state, &ranges);
            }
            queue.add_used(memory, chain.head_index(), 0)?;
            used = Used::Buffers;
        }
        self.bell.ring();
        Ok(used)
    }

    /// Discards the pages of `ranges` that may be, and notes them as `notes` says.
    fn take(&self, state: &mut State, ranges: &Ranges, notes: Notes) {
        let (mut good, roots) = (Ranges::default(), self.judge.roots(&self.ram));
        for pfn in ranges.pages() {
            let verdict = match self.judge.page(&self.ram, roots, pfn) {
                Ok(()) if state.given.contains(pfn) => Err(Misuse::GivenTwice),
                verdict => verdict,
            };
            match verdict {
                Ok(()) => good.push(pfn),
                Err(misuse) => {
                    complain(state, misuse, 1);
                    continue;
                }
            }
            if notes == Notes::Given {
                state.given.insert(pfn);
            }
        }
        match self.ram.discard(good.as_slice()) {
            Ok(()) => state.account.discarded += good.count(),
            Err(error) => log::error!("balloon: the host took no memory back: {error}"),
        }
    }

    /// Takes the buffers of statistics, and gives the last one back when new ones are wanted.
    fn serve_stats(&self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Used, BadRing> {
        let mut used = Used::Nothing;
        // 1. The driver may have one buffer here at a time; another one pushes the first out.
        for _ in 0..queue.size() {
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let bytes = pfns::read_bytes(&chain, STATS_MAX * STAT_BYTES);
            let before = {
                let mut state = self.state();
                state.stats.read(&bytes);
                state.stats.answers += u64::from(std::mem::take(&mut state.owes_stats));
                // The first buffer says nothing of the time after a request.
                state.kept.replace(chain.head_index())
            };
            if let Some(before) = before {
                queue.add_used(memory, before, 0)?;
                used = Used::Buffers;
            }
        }
        // 2. A used buffer asks for new ones.
        let kept = {
            let mut state = self.state();
            let wanted = std::mem::take(&mut state.wants_stats);
            let kept = if wanted { state.kept.take() } else { None };
            state.wants_stats = wanted && kept.is_none();
            state.owes_stats |= kept.is_some();
            kept
        };
        if let Some(head) = kept {
            queue.add_used(memory, head, 0)?;
            used = Used::Buffers;
        }
        self.bell.ring();
        Ok(used)
    }
}

/// Notes that the pages of `ranges` leave the balloon.
fn give(state: &mut State, ranges: &Ranges) {
    for pfn in ranges.pages() {
        if !state.given.remove(pfn) {
            complain(state, Misuse::NotGiven, 1);
        }
    }
}

/// Counts what the driver should not have done, and logs the first of its kind.
fn complain(state: &mut State, misuse: Misuse, count: u64) {
    let counter = &mut state.account.misuse[misuse as usize];
    if *counter == 0 && count > 0 {
        log::warn!("balloon: the driver named a page {}", misuse.words());
    }
    *counter = counter.saturating_add(count);
}

impl Backend for Balloon {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> Features {
        Features::VERSION_1
            | Features::STATS_VQ
            | Features::DEFLATE_ON_OOM
            | Features::PAGE_REPORTING
            | Features::STOPPED
    }

    fn queues(&self) -> &'static [u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state();
        state.account.is_read |= offset == NUM_PAGES;
        let mut config = [0; CONFIG_BYTES];
        for (at, word) in [
            (NUM_PAGES, state.account.target),
            (ACTUAL, state.account.actual),
            (STOP_REASON, state.stop_reason),
            (STOP_PAGES, state.stop_pages),
        ] {
            let at = usize::try_from(at).unwrap_or(0);
            config[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // Fields are written whole, as the transport demands of the driver.
        let Ok(word) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        let mut state = self.state();
        match offset {
            ACTUAL => state.account.actual = word,
            STOP_REASON if state.features.contains(Features::STOPPED) => state.stop_reason = word,
            STOP_PAGES if state.features.contains(Features::STOPPED) => state.stop_pages = word,
            _ => log::debug!("balloon: the driver wrote {word:#x} at {offset:#x}"),
        }
        drop(state);
        self.bell.ring();
    }

    fn agreed(&self, features: Features) {
        let mut state = self.state();
        state.features = features;
        state.account.is_driven = true;
    }

    fn reset(&self) {
        let mut state = self.state();
        let account = &mut state.account;
        (account.actual, account.is_driven) = (0, false);
        state.features = Features::empty();
        (state.stop_pages, state.stop_reason) = (0, 0);
        (state.kept, state.wants_stats, state.owes_stats) = (None, false, false);
        // A driver that begins again knows nothing of pages given before.
        state.given.clear();
    }

    fn serve(
        &self,
        index: QueueIndex,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<Used, BadRing> {
        match index.0 {
            INFLATEQ => self.serve_pages(queue, memory, pfns::read_numbers, |state, ranges| {
                self.take(state, ranges, Notes::Given);
            }),
            DEFLATEQ => self.serve_pages(queue, memory, pfns::read_numbers, give),
            REPORTINGQ => self.serve_pages(queue, memory, pfns::read_buffers, |state, ranges| {
                self.take(state, ranges, Notes::Nothing);
            }),
            STATSQ => self.serve_stats(queue, memory),
            _ => Ok(Used::Nothing),
        }
    }
}
