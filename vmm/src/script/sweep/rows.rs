//! The documented outcomes: what an operation may come to when a site fires in it, and afterwards.
//!
//! After a fire an operation may end as [`ends_of`] says: memory may be short, so that is wider
//! than what the fault-free run does. The operation in which the site fires may end in the ways
//! that also the row of the site allows ([`SITES`]). Three rules always hold. An operation with
//! `NOWAIT`, or in an interrupt handler, neither sleeps nor panics. `kmem_free` and
//! `kmem_free_wakeup` give ok. A panic is documented by its text ([`PANICS`], [`BOOT_PANICS`]), or
//! expected by the script.

use vmkern_abi::control::{Context, KernReturn, MallocFlags, Op, Outcome};
use vmkern_abi::fail::FailSite;

/// How an operation can end, besides well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Null.
    Null,
    /// A KERN_* error.
    Error,
    /// Its thread sleeps until others free something.
    Sleeps,
    /// A panic of [`PANICS`].
    Panics,
}

/// What a site does to the operation in which it fires.
#[derive(Clone, Copy, Debug)]
pub struct SiteRow {
    /// The site.
    pub site: FailSite,
    /// The ways in which the operation may end.
    pub ends: &'static [Ends],
}

use self::Ends::{Error, Null, Panics, Sleeps};

/// A row for each site.
pub const SITES: [SiteRow; FailSite::COUNT] = [
    row(FailSite::VmPageAlloc, &[Null, Error, Sleeps]),
    row(FailSite::VmPageAllocNormal, &[Error, Sleeps]),
    row(FailSite::VmPageAllocSystem, &[Null, Error, Sleeps]),
    row(FailSite::VmPageAllocInterrupt, &[Null, Error, Sleeps]),
    // kmem_suballoc has no way to say that there is no room.
    row(FailSite::VmMapFindspace, &[Null, Error, Sleeps, Panics]),
    row(FailSite::VmMapEntryAlloc, &[Null, Error, Sleeps]),
    row(FailSite::PmapPtAlloc, &[Null, Error, Sleeps]),
    row(FailSite::VmObjectReserve, &[Sleeps]),
    row(FailSite::VmFaultAlloc, &[Sleeps]),
    row(FailSite::VmMapWire, &[Sleeps]),
    row(FailSite::KmemSuballocMap, &[Sleeps]),
    row(FailSite::KthreadCreate, &[Error, Sleeps]),
    row(FailSite::Tsleep, &[Sleeps]),
    row(FailSite::SlabZalloc, &[Null, Error, Sleeps]),
    row(FailSite::IntrWindow, &[]),
];

const fn row(site: FailSite, ends: &'static [Ends]) -> SiteRow {
    SiteRow { site, ends }
}

/// Operations that end in the same ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// `kmem_malloc` with `NOWAIT`, and `kmem_alloc_nofault`.
    Never,
    /// `kmem_malloc` that may wait.
    Malloc,
    /// `kmem_alloc` and `kmem_alloc_wait`.
    Alloc,
    /// `kmem_suballoc`.
    Suballoc,
    /// `kmem_free` and `kmem_free_wakeup`.
    Free,
    /// `pmap_qenter`, `pmap_qremove`, `protect`.
    Change,
    /// Accesses to memory.
    Access,
    /// Anything else.
    Other,
}

/// The class of `op`.
fn class(op: &Op) -> OpClass {
    match op {
        Op::KmemMalloc { flags, .. } if flags.contains(MallocFlags::NOWAIT) => OpClass::Never,
        Op::KmemAllocNofault { .. } => OpClass::Never,
        Op::KmemMalloc { .. } => OpClass::Malloc,
        Op::KmemAlloc { .. } | Op::KmemAllocWait { .. } => OpClass::Alloc,
        Op::KmemSuballoc { .. } => OpClass::Suballoc,
        Op::KmemFree { .. } | Op::KmemFreeWakeup { .. } => OpClass::Free,
        Op::PmapQenter { .. } | Op::PmapQremove { .. } | Op::Protect { .. } => OpClass::Change,
        Op::Read { .. }
        | Op::Write { .. }
        | Op::Touch { .. }
        | Op::Fill { .. }
        | Op::Verify { .. }
        | Op::VerifyZero { .. } => OpClass::Access,
        _ => OpClass::Other,
    }
}

/// The ways in which operations of `class` may end, besides well.
#[must_use]
pub const fn ends_of(class: OpClass) -> &'static [Ends] {
    match class {
        OpClass::Never => &[Null],
        OpClass::Malloc => &[Null, Sleeps, Panics],
        OpClass::Alloc => &[Null, Sleeps],
        OpClass::Suballoc => &[Sleeps, Panics],
        OpClass::Free => &[Sleeps],
        OpClass::Change => &[Error, Sleeps],
        OpClass::Access => &[Sleeps],
        OpClass::Other => &[Null, Error, Sleeps],
    }
}

/// Panics of 2008 that are documented results of operations, by a part of the text.
pub const PANICS: [(OpClass, &str); 2] = [
    (OpClass::Malloc, "kmem_map too small"),
    (OpClass::Suballoc, "kmem_suballoc: bad status return of"),
];

/// Panics that are documented results of a failure in the boot, which has nobody to wait for, by a
/// part of the text.
pub const BOOT_PANICS: [&str; 8] = [
    "kmem_init: no memory for kernel_map",
    "kmem_suballoc: bad status return of",
    "kmem_suballoc: cannot create submap",
    "kmem_suballoc: unable to change range to submap",
    "proc0_init: no memory for thread0",
    "vm_pageout: no memory for the pagedaemon's thread",
    "pagezero: no memory for its thread",
    "boot: no memory for threads",
];

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this.
    With(Outcome),
    /// The guest died of it, with this message.
    Panic(String),
}

/// Whether a site fired in an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// The site fired in it.
    Fired(FailSite),
    /// It is a later one.
    After,
}

/// Whether a thread existed before an operation ran on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// It did.
    Known,
    /// It had to be created, and waits for that whatever the operation is.
    New,
}

/// The rule that an end of `op` breaks, if it breaks one.
pub(super) fn broken(
    op: &Op,
    (context, thread): (Context, Thread),
    when: When,
    ended: &Ended,
) -> Option<String> {
    // The answer is about storing the operation, which needs a page.
    let class = if context == Context::Lowmem { OpClass::Change } else { class(op) };
    // 1. The way in which it ended.
    let end = match ended {
        Ended::With(Outcome::Ok | Outcome::Value(_) | Outcome::Mismatch { .. }) => return None,
        // The contract of a function, whatever else happens.
        Ended::With(Outcome::Error(KernReturn::InvalidArgument)) if class != OpClass::Free => {
            return None;
        }
        Ended::With(Outcome::Null) => Null,
        Ended::With(Outcome::Error(_)) => Error,
        Ended::With(Outcome::Blocked { .. }) => Sleeps,
        Ended::Panic(_) => Panics,
    };
    // 2. Rules that always hold.
    if context == Context::Interrupt && matches!(end, Sleeps | Panics) {
        return Some("an operation in an interrupt handler neither sleeps nor panics".to_owned());
    }
    if thread == Thread::New && matches!(end, Sleeps | Error) {
        return None;
    }
    if class == OpClass::Free && end != Sleeps {
        return Some("kmem_free and kmem_free_wakeup give ok".to_owned());
    }
    if let Ended::Panic(message) = ended {
        let is_documented = PANICS.iter().any(|(of, text)| *of == class && message.contains(text));
        return (!is_documented).then(|| "the panic is not a documented one".to_owned());
    }
    // 3. The operation's own, and the site's.
    if !ends_of(class).contains(&end) {
        return Some(format!("this operation does not end so: {}", words(end)));
    }
    match when {
        When::Fired(site) if !SITES[site.index()].ends.contains(&end) => {
            Some(format!("a failure of {} does not end so: {}", site.name(), words(end)))
        }
        _ => None,
    }
}

/// An end in a word, as reports show it.
const fn words(end: Ends) -> &'static str {
    match end {
        Null => "null",
        Error => "error",
        Sleeps => "sleeps",
        Panics => "panic",
    }
}

/// The kind of an end, by which visits are counted.
pub(super) fn kind(ended: &Ended) -> String {
    match ended {
        Ended::With(Outcome::Ok | Outcome::Value(_) | Outcome::Mismatch { .. }) => "ok".to_owned(),
        Ended::With(Outcome::Error(error)) => error.to_string(),
        Ended::With(Outcome::Null) => words(Null).to_owned(),
        Ended::With(Outcome::Blocked { .. }) => words(Sleeps).to_owned(),
        Ended::Panic(_) => words(Panics).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::GuestVirt;
    use vmkern_abi::control::{MapId, WaitMessage};

    use super::*;

    const NOWAIT: Op = Op::KmemMalloc { map: MapId::KMEM, size: 1, flags: MallocFlags::NOWAIT };
    const WAITOK: Op = Op::KmemMalloc { map: MapId::KMEM, size: 1, flags: MallocFlags::WAITOK };
    const FREE: Op = Op::KmemFree { map: MapId::KMEM, addr: GuestVirt::new(0), size: 1 };

    fn is_fine(op: &Op, context: Context, when: When, ended: Ended) -> bool {
        broken(op, (context, Thread::Known), when, &ended).is_none()
    }

    fn asleep() -> Ended {
        Ended::With(Outcome::Blocked { waits_for: WaitMessage::new("VMWait") })
    }

    #[test]
    fn each_site_has_its_row_at_its_own_place() {
        for (number, row) in SITES.iter().enumerate() {
            assert_eq!(row.site.index(), number);
        }
    }

    #[test]
    fn an_operation_that_must_not_wait_neither_sleeps_nor_panics() {
        let small = || Ended::Panic("kmem_malloc(4096): kmem_map too small: 0 total".to_owned());
        let on = Context::Thread(0);
        assert!(!is_fine(&NOWAIT, on, When::After, asleep()));
        assert!(!is_fine(&NOWAIT, on, When::After, small()));
        assert!(is_fine(&NOWAIT, on, When::After, Ended::With(Outcome::Null)));
        assert!(is_fine(&WAITOK, on, When::After, asleep()));
        assert!(is_fine(&WAITOK, on, When::After, small()));
        assert!(!is_fine(&WAITOK, Context::Interrupt, When::After, small()));
        assert!(!is_fine(&WAITOK, Context::Interrupt, When::After, asleep()));
    }

    #[test]
    fn a_free_gives_ok_or_waits_for_its_turn() {
        let on = Context::Thread(0);
        assert!(is_fine(&FREE, on, When::After, Ended::With(Outcome::Ok)));
        let error = Ended::With(Outcome::Error(KernReturn::InvalidArgument));
        assert!(!is_fine(&FREE, on, When::After, error));
        assert!(!is_fine(&FREE, on, When::After, Ended::With(Outcome::Null)));
    }

    #[test]
    fn a_site_that_only_delays_gives_no_null() {
        let (on, fault) = (Context::Thread(0), When::Fired(FailSite::VmFaultAlloc));
        assert!(!is_fine(&WAITOK, on, fault, Ended::With(Outcome::Null)));
        assert!(is_fine(&WAITOK, on, When::After, Ended::With(Outcome::Null)));
        let interrupt = When::Fired(FailSite::VmPageAllocInterrupt);
        assert!(is_fine(&NOWAIT, on, interrupt, Ended::With(Outcome::Null)));
    }

    #[test]
    fn only_documented_panics_are_fine() {
        let on = Context::Thread(0);
        let other = Ended::Panic("vm_page_free: freeing free page".to_owned());
        assert!(!is_fine(&WAITOK, on, When::After, other));
    }
}
