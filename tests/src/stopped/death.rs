//! Ways in which a correct kernel dies: each is caused by a request.

use vmkern::{Context, Guest, GuestError, GuestVirt, MallocFlags, MapId, MapKind, Op};

use crate::Run as _;
use crate::workers::THREADS;

const PAGE: u64 = 4096;
/// The thread that dies. It does nothing else and is created for this.
const THREAD: u16 = THREADS + 1;
/// An address at which nothing is ever mapped.
const NOWHERE: GuestVirt = GuestVirt::new(0xffff_ff70_0000_0000);
/// The start of the kernel's image.
const IMAGE: GuestVirt = GuestVirt::new(0xffff_ffff_8010_0000);

/// A way to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// A read of freed memory.
    ReadFreed,
    /// A write to an unmapped address.
    WriteNowhere,
    /// A read in a range where faults are not allowed.
    ReadNofault,
    /// A write to the kernel's text.
    WriteText,
    /// A map of size 0.
    SuballocNothing,
    /// A map for which there is no room.
    SuballocNoRoom,
    /// A full map, until the waiting ends.
    MapTooSmall,
    /// Freeing the kernel's image.
    FreeImage,
    /// `kmem_alloc` in an interrupt.
    InterruptAlloc,
    /// A sleep in an interrupt.
    InterruptSleep,
    /// `kmem_malloc` in an interrupt that would have to wait for room.
    InterruptWait,
    /// A fault in an interrupt.
    InterruptFault,
    /// An access in an interrupt to a missing page of a pageable range.
    InterruptPageable,
    /// Freeing the kernel's image in an interrupt.
    InterruptFreeImage,
    /// A fault in a handler of vm_lowmem.
    LowmemFault,
    /// A fault in a handler of vm_lowmem that runs inside another one.
    LowmemNested,
}

/// A prepared death: the request that causes it.
#[derive(Clone, Copy, Debug)]
pub struct Ready(Context, Op);

impl Death {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::ReadFreed,
        Self::WriteNowhere,
        Self::ReadNofault,
        Self::WriteText,
        Self::SuballocNothing,
        Self::SuballocNoRoom,
        Self::MapTooSmall,
        Self::FreeImage,
        Self::InterruptAlloc,
        Self::InterruptSleep,
        Self::InterruptWait,
        Self::InterruptFault,
        Self::InterruptPageable,
        Self::InterruptFreeImage,
        Self::LowmemFault,
        Self::LowmemNested,
    ];

    /// Prepares `guest` for this death.
    ///
    /// # Panics
    /// When the guest dies of that.
    #[must_use]
    pub fn prepare(self, guest: &mut Guest) -> Ready {
        let (thread, interrupt) = (Context::Thread(THREAD), Context::Interrupt);
        let suballoc = |size| Op::KmemSuballoc { parent: MapId::KERNEL, size, kind: MapKind::User };
        let free_image = Op::KmemFree { map: MapId::KERNEL, addr: IMAGE, size: PAGE };
        let nowhere = Op::Write { addr: NOWHERE, value: 1 };
        match self {
            Self::ReadFreed => {
                let addr = guest.malloc(PAGE);
                guest.free(addr, PAGE);
                // The address is in a map of its own, so it is not allocated again.
                let addr = full_map(guest).1;
                Ready(thread, Op::Read { addr })
            }
            Self::WriteNowhere => Ready(thread, nowhere),
            Self::ReadNofault => {
                let addr = guest.address(Op::KmemAllocNofault { map: MapId::KERNEL, size: PAGE });
                Ready(thread, Op::Read { addr })
            }
            Self::WriteText => Ready(thread, Op::Write { addr: IMAGE, value: 1 }),
            Self::SuballocNothing => Ready(thread, suballoc(0)),
            Self::SuballocNoRoom => Ready(thread, suballoc(511 << 30)),
            Self::MapTooSmall => Ready(thread, wait_for_room(guest)),
            Self::FreeImage => Ready(thread, free_image),
            Self::InterruptAlloc => {
                Ready(interrupt, Op::KmemAlloc { map: MapId::KERNEL, size: PAGE })
            }
            Self::InterruptSleep => Ready(interrupt, Op::Sleep { micros: 1 }),
            Self::InterruptWait => Ready(interrupt, wait_for_room(guest)),
            Self::InterruptFault => Ready(interrupt, nowhere),
            Self::InterruptPageable => {
                let addr = guest.address(Op::KmemAllocWait { map: MapId::PIPE, size: PAGE });
                Ready(interrupt, Op::Touch { addr, size: PAGE })
            }
            Self::InterruptFreeImage => Ready(interrupt, free_image),
            Self::LowmemFault => {
                let room = wait_for_room(guest);
                guest.call_in(Context::Lowmem, nowhere).expect("the guest lives");
                Ready(thread, room)
            }
            Self::LowmemNested => {
                let room = wait_for_room(guest);
                for op in [room, nowhere] {
                    guest.call_in(Context::Lowmem, op).expect("the guest lives");
                }
                Ready(thread, room)
            }
        }
    }
}

impl Ready {
    /// Makes the guest die.
    ///
    /// # Errors
    /// How it died, if it died at once.
    pub fn strike(self, guest: &mut Guest) -> Result<(), GuestError> {
        guest.submit_in(self.0, self.1).map(|_| ())
    }
}

/// A system map without room, and an address in it that is not mapped.
fn full_map(guest: &mut Guest) -> (MapId, GuestVirt) {
    let size = 4 * PAGE;
    let op = Op::KmemSuballoc { parent: MapId::KERNEL, size, kind: MapKind::System };
    let map = MapId(guest.address(op).get());
    let addr = guest.address(Op::KmemMalloc { map, size, flags: MallocFlags::NOWAIT });
    guest.ok(Op::KmemFree { map, addr, size });
    (map, addr)
}

/// An operation that waits for room in a full map.
fn wait_for_room(guest: &mut Guest) -> Op {
    let (map, _) = full_map(guest);
    guest.address(Op::KmemMalloc { map, size: 4 * PAGE, flags: MallocFlags::NOWAIT });
    Op::KmemMalloc { map, size: PAGE, flags: MallocFlags::empty() }
}
