//! The traditional memory balloon (virtio 1.2, section 5.5), and this project's addition to it.
//!
//! **Addition.** A driver that has accepted [`Features::STOPPED`] says in the configuration why it
//! cannot go on: [`STOP_PAGES`] is the target that it did not reach, and [`STOP_REASON`] the
//! reason. It writes the target first. The device believes a reason only as long as the target is
//! the one that it asks for, so a reason cannot outlive its question. The specification has no
//! such field: there, a host cannot tell a driver that has given up from one that is slow.
//!
//! The bit of the feature is 63. Bits 0 to 23 and 50 to 127 belong to the device type (section
//! 2.2), those between to queues and negotiation; new bits of the balloon are given out from below.

use bitflags::bitflags;

use crate::codes::codes;

/// The number of this device type.
pub const DEVICE_ID: u32 = 5;

bitflags! {
    /// Features of the balloon, with that of the transport.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// Pages are not used before the device has been told (`MUST_TELL_HOST`).
        const MUST_TELL_HOST = 1;
        /// There is a queue for statistics (`STATS_VQ`).
        const STATS_VQ = 1 << 1;
        /// The driver may take pages back when the guest has none (`DEFLATE_ON_OOM`).
        const DEFLATE_ON_OOM = 1 << 2;
        /// There is a queue for hints of free pages (`FREE_PAGE_HINT`).
        const FREE_PAGE_HINT = 1 << 3;
        /// Free pages hold a known value (`PAGE_POISON`).
        const PAGE_POISON = 1 << 4;
        /// There is a queue for reports of free pages (`PAGE_REPORTING`).
        const PAGE_REPORTING = 1 << 5;
        /// The device conforms to virtio 1.
        const VERSION_1 = super::F_VERSION_1;
        /// The driver says why it cannot go on. Not one of the specification's.
        const STOPPED = 1 << 63;
    }
}

/// Offsets in the configuration. All fields are 32 bits wide, little endian.
pub const NUM_PAGES: u64 = 0;
/// Pages in the balloon, as the driver says.
pub const ACTUAL: u64 = 4;
/// For hints of free pages.
pub const FREE_PAGE_HINT_CMD_ID: u64 = 8;
/// The value of free pages.
pub const POISON_VAL: u64 = 12;
/// A [`StopReason`], or 0.
pub const STOP_REASON: u64 = 16;
/// The target, in pages, that was not reached.
pub const STOP_PAGES: u64 = 20;
/// Bytes of the configuration.
pub const CONFIG_BYTES: usize = 24;

/// Queues.
pub const INFLATEQ: u16 = 0;
/// The queue of pages that leave the balloon.
pub const DEFLATEQ: u16 = 1;
/// The queue of statistics.
pub const STATSQ: u16 = 2;
/// The queue of hints. Its number stays free when the feature is not offered.
pub const FREE_PAGEQ: u16 = 3;
/// The queue of reports.
pub const REPORTINGQ: u16 = 4;

/// Bytes of a page number in a request.
pub const PFN_BYTES: usize = 4;

codes! {
    /// Why the driver takes no more pages.
    pub enum StopReason: u32 {
        /// No more free pages than a request of the NORMAL class must leave.
        Floor = 1 => "floor",
        /// There are enough free pages, but the allocator has refused a block.
        NoBlock = 2 => "no block",
        /// Threads of the guest sleep for pages, which come first.
        Asleep = 3 => "asleep",
    }
}

impl StopReason {
    /// The reason, in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Floor => "the guest's free pages are at v_free_reserved",
            Self::NoBlock => "the guest's allocator refused a block",
            Self::Asleep => "threads of the guest sleep for pages",
        }
    }
}

codes! {
    /// Statistics, by their tags. Those from 10 on are Linux's and QEMU's.
    pub enum Stat: u16 {
        /// Bytes swapped in.
        SwapIn = 0 => "swap_in",
        /// Bytes swapped out.
        SwapOut = 1 => "swap_out",
        /// Major page faults.
        MajorFaults = 2 => "major_faults",
        /// Minor page faults.
        MinorFaults = 3 => "minor_faults",
        /// Bytes that are free.
        Free = 4 => "free",
        /// Bytes of memory.
        Total = 5 => "total",
        /// Bytes that can be allocated without sleeping.
        Available = 6 => "available",
        /// Bytes of caches.
        Caches = 7 => "caches",
        /// Allocations of huge pages.
        HugetlbAllocs = 8 => "hugetlb_allocs",
        /// Allocations of huge pages that failed.
        HugetlbFails = 9 => "hugetlb_fails",
        /// Kills for lack of memory.
        OomKills = 10 => "oom_kills",
        /// Allocations that waited.
        AllocStalls = 11 => "alloc_stalls",
        /// Pages scanned in the background.
        AsyncScans = 12 => "async_scans",
        /// Pages scanned by allocations.
        DirectScans = 13 => "direct_scans",
        /// Pages reclaimed in the background.
        AsyncReclaims = 14 => "async_reclaims",
        /// Pages reclaimed by allocations.
        DirectReclaims = 15 => "direct_reclaims",
    }
}

/// Bytes of a statistic: a tag of 16 bits and a value of 64, without padding.
///
/// The specification also says that the driver "MUST use an output buffer size which is a multiple
/// of 6 bytes", a relic of 32-bit values. A number of entries that is a multiple of three satisfies
/// both.
pub const STAT_BYTES: usize = 10;
