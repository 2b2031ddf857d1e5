//! The sites: one table for their names, and for what they can do.

use super::FailAction;
use crate::codes::codes;
use crate::kmem::KernReturn;

/// The value with which a function fails at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// It cannot fail there: `return` is refused.
    Never,
    /// A null pointer: `return`, or `return(0)`.
    Null,
    /// It ends early as if by success: `return`, or `return(0)`.
    Early,
    /// A code of the list; the first one if there is no argument.
    Code(&'static [KernReturn]),
}

impl Returns {
    /// The value of a `return` with the argument `argument`, or `None` if the function has no such
    /// value.
    #[must_use]
    pub fn value(self, argument: Option<u64>) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Null | Self::Early => Some(argument.unwrap_or(0)).filter(|&value| value == 0),
            Self::Code(codes) => {
                let first = codes.first().map(|&code| u64::from(code as u32));
                let value = argument.or(first)?;
                codes.iter().any(|&code| u64::from(code as u32) == value).then_some(value)
            }
        }
    }
}

/// Whether a thread may sleep at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleeps {
    /// It may: the caller owns no mutex there, and is not an interrupt handler.
    Yes,
    /// It must not: `sleep` is refused, and `delay` is left.
    No,
}

macro_rules! fail_sites {
    ($(
        $(#[doc = $doc:literal])+
        $site:ident = $number:literal $name:literal {
            returns: $returns:expr, sleeps: $sleeps:ident, effect: $effect:literal,
        }
    )+) => {
        codes! {
            /// A site.
            pub enum FailSite: u32 {
                $($(#[doc = $doc])+ $site = $number => $name,)+
            }
        }

        impl FailSite {
            /// The value with which the function fails there.
            #[must_use]
            pub const fn returns(self) -> Returns {
                match self { $(Self::$site => $returns,)+ }
            }

            /// Whether a thread may sleep there.
            #[must_use]
            pub const fn sleeps(self) -> Sleeps {
                match self { $(Self::$site => Sleeps::$sleeps,)+ }
            }

            /// What failing there means, in a sentence for people.
            #[must_use]
            pub const fn effect(self) -> &'static str {
                match self { $(Self::$site => $effect,)+ }
            }
        }
    };
}

fail_sites! {
    /// `vm_page_alloc`, a request of any class.
    VmPageAlloc = 0 "vm_page_alloc" {
        returns: Returns::Null, sleeps: No,
        effect: "a page of any class is refused as if the class's floor were reached",
    }
    /// `vm_page_alloc`, a request of the NORMAL class.
    VmPageAllocNormal = 1 "vm_page_alloc.normal" {
        returns: Returns::Null, sleeps: No,
        effect: "a NORMAL page is refused: kmem_alloc and faults wait for pages",
    }
    /// `vm_page_alloc`, a request of the SYSTEM class.
    VmPageAllocSystem = 2 "vm_page_alloc.system" {
        returns: Returns::Null, sleeps: No,
        effect: "a SYSTEM page is refused: kmem_malloc waits, or returns null with M_NOWAIT",
    }
    /// `vm_page_alloc`, a request of the INTERRUPT class.
    VmPageAllocInterrupt = 3 "vm_page_alloc.interrupt" {
        returns: Returns::Null, sleeps: No,
        effect: "an INTERRUPT page is refused: tables, entries, slabs, kmem_malloc with M_NOWAIT",
    }
    /// `vm_map_findspace`, before it searches.
    VmMapFindspace = 4 "vm_map_findspace" {
        returns: Returns::Code(&[KernReturn::NoSpace]), sleeps: No,
        effect: "a map has no room: null, a sleep in vmmaps or nokva, or kmem_malloc's panic",
    }
    /// A page for the entries of a map and the nodes of its index.
    VmMapEntryAlloc = 5 "vm_map_entry_alloc" {
        returns: Returns::Null, sleeps: No,
        effect: "a map gets no page for entries: the change waits or fails before it begins",
    }
    /// A page for a page table of the kernel's pmap.
    PmapPtAlloc = 6 "pmap_pt_alloc" {
        returns: Returns::Null, sleeps: No,
        effect: "kernel_map cannot grow: the allocation waits or fails, its tables are freed",
    }
    /// The structure of a new object, which the first touch of a pageable range needs.
    VmObjectReserve = 7 "vm_object_reserve" {
        returns: Returns::Null, sleeps: No,
        effect: "a pageable range gets no object: the first touch waits in pfault",
    }
    /// A page for a fault.
    VmFaultAlloc = 8 "vm_fault_alloc" {
        returns: Returns::Null, sleeps: No,
        effect: "a fault gets no page: it waits in pfault and starts over",
    }
    /// `vm_map_wire`, before it takes the map's lock.
    VmMapWire = 9 "vm_map_wire" {
        returns: Returns::Code(&[
            KernReturn::ResourceShortage,
            KernReturn::InvalidAddress,
            KernReturn::ProtectionFailure,
            KernReturn::Failure,
        ]),
        sleeps: Yes,
        effect: "kmem_alloc cannot wire: it waits for RESOURCE_SHORTAGE, and panics otherwise",
    }
    /// The map that `kmem_suballoc` makes.
    KmemSuballocMap = 10 "kmem_suballoc.map" {
        returns: Returns::Null, sleeps: Yes,
        effect: "kmem_suballoc gets no map: it waits for pages, and panics during the boot",
    }
    /// `kthread_create`, before it begins.
    KthreadCreate = 11 "kthread_create" {
        returns: Returns::Null, sleeps: No,
        effect: "a thread is not created, as if there were no page for it",
    }
    /// A sleep with a wait message (`tsleep`, `msleep`).
    Tsleep = 12 "tsleep" {
        returns: Returns::Early, sleeps: No,
        effect: "a sleep ends at the next tick without a wakeup",
    }
    /// A page for a slab of a zone.
    SlabZalloc = 13 "slab_zalloc" {
        returns: Returns::Null, sleeps: No,
        effect: "a zone gets no page: there is no object, thread, or handler",
    }
    /// Places between two steps of map, page and pmap code.
    IntrWindow = 14 "intr_window" {
        returns: Returns::Never, sleeps: No,
        effect: "nothing fails; a delay there makes races more likely",
    }
}

impl FailSite {
    /// Sites.
    pub const COUNT: usize = Self::ALL.len();

    /// Its place in [`FailPoints::points`](super::FailPoints::points).
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether a programme of the site may have `action`.
    #[must_use]
    pub fn takes(self, action: FailAction) -> bool {
        match action {
            FailAction::Return => self.returns() != Returns::Never,
            FailAction::Sleep => self.sleeps() == Sleeps::Yes,
            FailAction::Off | FailAction::Delay | FailAction::Panic | FailAction::Print => true,
        }
    }

    /// Its bit in [`ControlRegion::fail_armed`](crate::control::ControlRegion::fail_armed).
    #[must_use]
    #[inline]
    pub const fn bit(self) -> u64 {
        1 << self as u32
    }
}

const _: () = assert!(FailSite::COUNT <= 64, "a bit for each");
