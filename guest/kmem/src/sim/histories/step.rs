//! The steps of a history. Numbers choose among the ranges and maps that exist when the step's turn
//! comes, so any part of a history is a history.

use std::ops::Range;
use std::sync::OnceLock;

use proptest::prelude::*;
use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapKind};

use super::naive::Allows;
use crate::sim::Sim;

/// The number of bytes to request.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// This many.
    Bytes(u64),
    /// All of the map, plus or minus this many pages.
    Map(i8),
    /// A number that wraps, or nearly does.
    Absurd(u64),
}

/// Which function allocates.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Alloc,
    Nofault,
    Malloc(MallocFlags),
    Wait,
}

impl How {
    /// Whether it waits for pages.
    pub const fn may_sleep(self) -> bool {
        match self {
            Self::Alloc | Self::Wait => true,
            Self::Nofault => false,
            Self::Malloc(flags) => !flags.contains(MallocFlags::NOWAIT),
        }
    }
}

/// Which function frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeBy {
    Free,
    Wakeup,
}

/// Which part of a range.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Whole,
    /// From this byte on, this many bytes; both modulo the range's length.
    Bytes(u64, u64),
}

/// Where a protection applies.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// To the pages of a part of a range.
    Part(Part),
    /// From a range on, across holes and neighbours, to this many pages.
    Across(u64),
    /// To a range without its first bytes, this many, which are no whole pages.
    Unaligned(u64),
    /// To the last page of a map, and the first after it.
    Outside,
}

/// A kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// A free of a range that must not be freed.
#[derive(Clone, Copy, Debug)]
pub enum Stray {
    /// The range that was freed last, once more.
    Again,
    /// A range of another map.
    WrongMap,
    /// No bytes, inside a range: it cuts.
    Nothing,
    /// A range that wraps.
    Wraps,
    /// From a range on, across its neighbours, this many bytes.
    Across(u64),
}

/// The performer of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The test's own thread.
    Driver,
    /// A thread for operations, modulo their number.
    Thread(u8),
    /// An interrupt handler.
    Interrupt,
}

/// A step. `pick` chooses among the ranges that could be meant, `map` among the maps.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Allocate {
        map: u8,
        size: Size,
        how: How,
    },
    Free {
        pick: u16,
        part: Part,
        by: FreeBy,
    },
    Stray {
        pick: u16,
        stray: Stray,
    },
    Touch {
        pick: u16,
        part: Part,
    },
    Protect {
        pick: u16,
        place: Extent,
        allows: Allows,
    },
    /// Accesses a page of a range, or the one after it.
    Access {
        pick: u16,
        page: u8,
        access: Access,
    },
    Enter {
        pick: u16,
        from: u8,
        count: u8,
    },
    Remove {
        pick: u16,
        from: u8,
        count: u8,
    },
    Suballoc {
        map: u8,
        size: Size,
        kind: MapKind,
    },
    Lowmem {
        pick: u16,
    },
    Reclaim,
    /// Takes all memory except this many pages.
    Drain {
        left: u8,
    },
    /// Lets time pass to the next time-out.
    Wait,
    /// Checks everything.
    Check,
    /// Does something that makes the kernel panic; the history ends.
    Panic {
        pick: u16,
        fault: bool,
    },
}

/// The machine of a history.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of memory.
    pub memory: u64,
    /// Pages of kmem_map.
    pub kmem: u64,
    /// Threads for operations.
    pub workers: u8,
}

/// The number of pages that the machines of histories manage, instead of those of 4 MiB.
const PAGES: &str = "VMKERN_MODEL_PAGES";

/// The number of managed pages of the guest that the machines of histories must be like, if any.
pub fn guest_pages() -> Option<u64> {
    Some(std::env::var(PAGES).ok()?.parse().expect("a whole number"))
}

/// Bytes of memory of the machines that histories are drawn for.
pub fn memory() -> u64 {
    static MEMORY: OnceLock<u64> = OnceLock::new();
    *MEMORY.get_or_init(|| guest_pages().map_or(4 << 20, memory_of))
}

/// Bytes of memory of a machine that manages this many pages.
pub fn memory_of(pages: u64) -> u64 {
    let mut memory = (pages * PAGE_SIZE).max(4 << 20);
    loop {
        let managed = Sim::boot(memory, Tunables::default()).vm().cnt().v_page_count.get();
        if managed >= pages {
            assert_eq!(
                managed, pages,
                "no simulated machine manages so few pages, or just so many"
            );
            return memory;
        }
        memory += (pages - managed) * PAGE_SIZE;
    }
}

impl Shape {
    /// The tunables that make such a machine.
    pub fn tunables(self) -> Tunables {
        Tunables {
            vm_kmem_size: Some(self.kmem * PAGE_SIZE),
            kern_nbuf: Some(4),
            kern_nswbuf: Some(1),
            vm_exec_map_entries: Some(1),
            kern_ipc_maxpipekva: Some(16 * PAGE_SIZE),
            ..Tunables::default()
        }
    }

    /// The same, as passed to a guest.
    pub fn settings(self) -> [(&'static str, u64); 5] {
        let tunables = self.tunables();
        let settings = [
            ("vm.kmem_size", tunables.vm_kmem_size),
            ("kern.nbuf", tunables.kern_nbuf),
            ("kern.nswbuf", tunables.kern_nswbuf),
            ("vm.exec_map_entries", tunables.vm_exec_map_entries),
            ("kern.ipc.maxpipekva", tunables.kern_ipc_maxpipekva),
        ];
        settings.map(|(name, value)| (name, value.expect("it is set above")))
    }
}

/// A machine and what happens on it.
#[derive(Clone, Debug)]
pub struct History {
    pub(super) shape: Shape,
    pub(super) steps: Vec<(On, Step)>,
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![
        8 => (1..6 * PAGE_SIZE).prop_map(Size::Bytes),
        4 => (1..40u64).prop_map(|pages| Size::Bytes(pages * PAGE_SIZE)),
        2 => (1..600 * PAGE_SIZE).prop_map(Size::Bytes),
        1 => (-2i8..2).prop_map(Size::Map),
        1 => prop_oneof![
            Just(0),
            Just(64 << 30),
            Just(1 << 40),
            Just(1 << 63),
            u64::MAX - 8192..=u64::MAX,
        ]
        .prop_map(Size::Absurd),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        2 => Just(Part::Whole),
        1 => (0..1u64 << 18, 0..1u64 << 17).prop_map(|(from, size)| Part::Bytes(from, size)),
    ]
}

fn how() -> impl Strategy<Value = How> {
    let flags = prop_oneof![
        6 => Just(MallocFlags::NOWAIT),
        1 => Just(MallocFlags::WAITOK),
        1 => Just(MallocFlags::empty()),
    ];
    let flags = (
        flags,
        prop_oneof![2 => Just(false), 1 => Just(true)],
        prop_oneof![3 => Just(false), 1 => Just(true)],
    );
    prop_oneof![
        2 => Just(How::Alloc),
        2 => Just(How::Nofault),
        6 => flags.prop_map(|(mut flags, zero, reserve)| {
            flags.set(MallocFlags::ZERO, zero);
            flags.set(MallocFlags::USE_RESERVE, reserve);
            How::Malloc(flags)
        }),
        4 => Just(How::Wait),
    ]
}

fn free_by() -> impl Strategy<Value = FreeBy> {
    prop_oneof![Just(FreeBy::Free), Just(FreeBy::Wakeup)]
}

fn stray() -> impl Strategy<Value = Stray> {
    prop_oneof![
        Just(Stray::Again),
        Just(Stray::WrongMap),
        Just(Stray::Nothing),
        Just(Stray::Wraps),
        (1..60 * PAGE_SIZE).prop_map(Stray::Across),
    ]
}

/// What the verb can make a range allow.
pub fn allows() -> impl Strategy<Value = Allows> {
    prop_oneof![Just(Allows::Nothing), Just(Allows::Read), Just(Allows::ReadWrite)]
}

fn place() -> impl Strategy<Value = Extent> {
    prop_oneof![
        8 => part().prop_map(Extent::Part),
        4 => (1..80u64).prop_map(Extent::Across),
        1 => (1..PAGE_SIZE).prop_map(Extent::Unaligned),
        1 => Just(Extent::Outside),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(MapKind::User), Just(MapKind::System)];
    prop_oneof![
        12 => (any::<u8>(), size(), how())
            .prop_map(|(map, size, how)| Step::Allocate { map, size, how }),
        8 => (any::<u16>(), part(), free_by())
            .prop_map(|(pick, part, by)| Step::Free { pick, part, by }),
        2 => (any::<u16>(), stray()).prop_map(|(pick, stray)| Step::Stray { pick, stray }),
        4 => (any::<u16>(), part()).prop_map(|(pick, part)| Step::Touch { pick, part }),
        4 => (any::<u16>(), place(), allows())
            .prop_map(|(pick, place, allows)| Step::Protect { pick, place, allows }),
        4 => (any::<u16>(), any::<u8>(), prop_oneof![Just(Access::Read), Just(Access::Write)])
            .prop_map(|(pick, page, access)| Step::Access { pick, page, access }),
        2 => (any::<u16>(), 0u8..20, 0u8..20)
            .prop_map(|(pick, from, count)| Step::Enter { pick, from, count }),
        1 => (any::<u16>(), 0u8..20, 0u8..20)
            .prop_map(|(pick, from, count)| Step::Remove { pick, from, count }),
        1 => (any::<u8>(), size(), kind)
            .prop_map(|(map, size, kind)| Step::Suballoc { map, size, kind }),
        1 => any::<u16>().prop_map(|pick| Step::Lowmem { pick }),
        1 => Just(Step::Reclaim),
        2 => (0u8..90).prop_map(|left| Step::Drain { left }),
        1 => Just(Step::Wait),
        1 => Just(Step::Check),
    ]
}

fn on() -> impl Strategy<Value = On> {
    prop_oneof![4 => Just(On::Driver), 4 => (0u8..4).prop_map(On::Thread), 1 => Just(On::Interrupt)]
}

/// The number of steps of a history, some of which may do nothing.
pub const STEPS: Range<usize> = 1..24;

/// Histories on machines with this many threads for operations, and a kmem_map of one of these
/// numbers of pages.
pub fn history(
    workers: Range<u8>,
    kmem: &'static [u64],
    steps: Range<usize>,
) -> impl Strategy<Value = History> {
    let shape = (prop::sample::select(kmem), workers).prop_map(|(kmem, workers)| Shape {
        memory: memory(),
        kmem,
        workers,
    });
    let steps = prop::collection::vec((on(), step()), steps);
    let last = (any::<u16>(), any::<bool>())
        .prop_map(|(pick, fault)| (On::Driver, Step::Panic { pick, fault }));
    (shape, steps, prop::option::weighted(0.05, last)).prop_map(|(shape, mut steps, last)| {
        steps.extend(last);
        History { shape, steps }
    })
}
