//! The verbs: what each takes, and what it does.
//!
//! The table holds the whole language. A verb that this kernel does not offer yet has a row
//! without an action, and a script that uses it is refused before anything boots.
//!
//! A verb that is an operation of the guest is a row of this file. A verb that the script does
//! itself is a file of this directory, with its row, and a line in the table.

mod abandon;
mod check;
mod dump;
mod fail;
mod hog;
mod host;
mod inspect;
mod join;
mod on_lowmem;
mod row;
mod seize;
pub(in crate::script) mod squeeze;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{MallocFlags, Op};
use vmkern_abi::layout::Protection;

pub(super) use self::hog::{CHUNK, Piece};
pub(super) use self::host::{Answer, HostVerb, Judge, Miss};
pub(super) use self::row::Action;
pub use self::row::{Build, Gives, Param, Value, Verb};
use self::row::{later, op};

/// The flags that scripts know, with their names.
pub const FLAGS: [(&str, MallocFlags); 4] = [
    ("WAITOK", MallocFlags::WAITOK),
    ("NOWAIT", MallocFlags::NOWAIT),
    ("ZERO", MallocFlags::ZERO),
    ("USE_RESERVE", MallocFlags::USE_RESERVE),
];

/// What `protect` can allow. No kernel memory is ever executable.
pub const PROTECTIONS: [(&str, Protection); 3] = [
    ("rw", Protection::READ.union(Protection::WRITE)),
    ("r", Protection::READ),
    ("none", Protection::empty()),
];

/// Every verb of the language.
pub static VERBS: &[Verb] = &[
    op!(kmem_alloc(map: Map("MAP"), size: Number("SIZE")) => Op::KmemAlloc { map, size },
        "wired zeroed memory of `kernel_object`", "address or `null`"),
    op!(kmem_alloc_nofault(map: Map("MAP"), size: Number("SIZE")) =>
        Op::KmemAllocNofault { map, size },
        "address space without pages; a fault inside is a panic", "address or `null`"),
    op!(kmem_malloc(map: Map("MAP"), size: Number("SIZE"), flags: Flags) =>
        Op::KmemMalloc { map, size, flags },
        "wired memory of `kmem_object`, zeroed with `ZERO` only", "address or `null`"),
    op!(kmem_free(map: Map("MAP"), addr: Number("ADDR"), size: Number("SIZE")) =>
        Op::KmemFree { map, addr: GuestVirt::new(addr), size },
        "frees every page that the range touches; parts that are not allocated are skipped",
        "`ok`"),
    Verb {
        gives: Gives::Map,
        ..op!(kmem_suballoc(parent: Map("PARENT"), size: Number("SIZE"), kind: Kind) =>
            Op::KmemSuballoc { parent, size, kind },
            "a map over SIZE bytes of PARENT; `system` makes it a system map, for `kmem_malloc`",
            "a map")
    },
    op!(kmem_alloc_wait(map: Map("MAP"), size: Number("SIZE")) => Op::KmemAllocWait { map, size },
        "pageable memory, zeroed at the first touch; waits (`vmmaps`) for room",
        "address or `null`"),
    op!(kmem_free_wakeup(map: Map("MAP"), addr: Number("ADDR"), size: Number("SIZE")) =>
        Op::KmemFreeWakeup { map, addr: GuestVirt::new(addr), size },
        "`kmem_free`, and wakes the threads that wait for room in MAP", "`ok`"),
    op!(pmap_qenter(addr: Number("ADDR"), count: Number("COUNT")) =>
        Op::PmapQenter { addr: GuestVirt::new(addr), count },
        "maps COUNT fresh wired pages at ADDR, replacing what an earlier `pmap_qenter` put there",
        "`ok` or an error"),
    op!(pmap_qremove(addr: Number("ADDR"), count: Number("COUNT")) =>
        Op::PmapQremove { addr: GuestVirt::new(addr), count },
        "removes these mappings and frees their pages; empty places are fine", "`ok` or an error"),
    op!(protect(map: Map("MAP"), addr: Number("ADDR"), size: Number("SIZE"), allows: Allows) =>
        Op::Protect { map, addr: GuestVirt::new(addr), size, protection: allows },
        "allows reads and writes, reads only, or nothing in whole pages of MAP; holes are skipped",
        "`ok` or an error"),
    op!(read(addr: Number("ADDR")) => Op::Read { addr: GuestVirt::new(addr) },
        "reads 8 bytes, little endian; aligned or not", "number"),
    op!(write(addr: Number("ADDR"), value: Number("VALUE")) =>
        Op::Write { addr: GuestVirt::new(addr), value },
        "writes 8 bytes", "`ok`"),
    op!(touch(addr: Number("ADDR"), size: Number("SIZE")) =>
        Op::Touch { addr: GuestVirt::new(addr), size },
        "writes one byte of each page, the one that stands there", "`ok` or an error"),
    op!(fill(addr: Number("ADDR"), size: Number("SIZE"), seed: Number("SEED")) =>
        Op::Fill { addr: GuestVirt::new(addr), size, seed },
        "writes a pattern that depends on address and seed, exact to the byte", "`ok` or an error"),
    op!(verify(addr: Number("ADDR"), size: Number("SIZE"), seed: Seed) => match seed {
            Some(seed) => Op::Verify { addr: GuestVirt::new(addr), size, seed },
            None => Op::VerifyZero { addr: GuestVirt::new(addr), size },
        },
        "checks for the pattern of SEED, or for zeros", "`ok`, the first wrong word, or an error"),
    op!(vtop(addr: Number("ADDR")) => Op::Vtop { addr: GuestVirt::new(addr) },
        "the physical address by the kernel's walk of the page tables", "address or `null`"),
    on_lowmem::VERB,
    op!(sleep(micros: Number("TIME")) => Op::Sleep { micros },
        "lets time pass; in virtual time at once, and at most to the end of a 64-bit clock",
        "`ok`"),
    join::VERB,
    abandon::VERB,
    op!(settle() => Op::Settle, "waits until nothing but idle work is runnable", "`ok`"),
    op!(uma_reclaim() => Op::UmaReclaim, "asks every reclaimer for memory", "`ok`"),
    later("malloc", "SIZE [FLAGS] [type=NAME]"),
    later("realloc", "ADDR SIZE [FLAGS]"),
    later("free", "ADDR"),
    later("contigmalloc", "SIZE [FLAGS] [low=A] [high=A] [align=N] [boundary=N]"),
    later("contigfree", "ADDR SIZE"),
    later("zone_create", "NAME SIZE [max=N] [align=N]"),
    later("zone_destroy", "NAME"),
    later("zalloc", "NAME [FLAGS]"),
    later("zfree", "NAME ADDR"),
    later("zone_drain", "NAME"),
    squeeze::SQUEEZE,
    seize::SEIZE,
    seize::RELEASE,
    hog::HOG,
    hog::UNHOG,
    later("madvise", "MAP ADDR SIZE willneed|dontneed"),
    later("swap", "off|on|error EVERY|delay TIME"),
    fail::VERB,
    check::VERB,
    inspect::VERB,
    dump::VERB,
    later("snapshot", "FILE"),
];

impl Verb {
    /// The verb called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        VERBS.iter().find(|verb| verb.name == name)
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::control::{MapId, MapKind};

    use super::*;
    use crate::guest::{Pages, PressureTarget, ThreadId};
    use crate::script::fail_point::FailRequest;
    use crate::script::look::Look;

    #[test]
    fn every_offered_verb_makes_an_operation_from_arguments_of_its_kinds() {
        for verb in VERBS {
            let values: Vec<Value> = verb
                .params
                .iter()
                .map(|param| match param {
                    Param::Map(_) => Value::Map(MapId::KMEM),
                    Param::Number(_) => Value::Number(1),
                    Param::Seed => Value::Seed(Some(1)),
                    Param::Flags => Value::Flags(MallocFlags::NOWAIT),
                    Param::Kind => Value::Kind(MapKind::User),
                    Param::Amount => Value::Amount(PressureTarget::More(Pages(1))),
                    Param::Chunk => Value::Chunk(CHUNK),
                    Param::Allows => Value::Allows(PROTECTIONS[0].1),
                    Param::Thread => Value::Thread(ThreadId::MAIN),
                    Param::Op => Value::Op(Op::Nop, Vec::new()),
                    Param::File => Value::File("file".to_owned()),
                    Param::Fail => Value::Fail(FailRequest::Off),
                    Param::Look => Value::Look(Look::At(crate::inspect::What::Maps)),
                })
                .collect();
            if let Action::Operation(build) = verb.action {
                assert!(build(&values).is_some(), "{}", verb.name);
            }
        }
    }

    #[test]
    fn every_offered_verb_says_what_it_does_and_gives() {
        for verb in VERBS.iter().filter(|verb| verb.is_offered()) {
            assert!(!verb.does.is_empty() && !verb.result.is_empty(), "{}", verb.name);
        }
    }
}
