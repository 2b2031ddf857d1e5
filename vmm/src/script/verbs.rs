//! The verbs: what each takes, and the operation that it is.
//!
//! The table holds the whole language. A verb that this kernel does not offer yet has no operation,
//! and a script that uses it is refused before anything boots.

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{MallocFlags, MapId, MapKind, Op};

use super::ast::ThreadId;
use super::look::Look;

/// What one argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// A map.
    Map,
    /// A number, under the name that the usage line gives it.
    Number(&'static str),
    /// A number, or the word `zero`.
    Seed,
    /// Flags of malloc(9) joined by `|`; may be left out.
    Flags,
    /// The word `system`; may be left out.
    System,
    /// A thread.
    Thread,
    /// A verb that is an operation, with its arguments.
    Statement,
    /// The name of a file: a word without blanks, or a string.
    File,
    /// What to look at.
    What,
}

/// An argument after evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A map.
    Map(MapId),
    /// A number.
    Number(u64),
    /// Flags.
    Flags(MallocFlags),
    /// `zero` in place of a seed.
    Zero,
    /// What kind of map.
    Kind(MapKind),
    /// A thread.
    Thread(ThreadId),
    /// An operation to do later, with its own arguments.
    Op(Op, Vec<Value>),
    /// The name of a file.
    File(String),
    /// What to look at.
    Look(Look),
}

/// Makes an operation from arguments that fit the verb's [`Verb::params`].
pub type Build = fn(&[Value]) -> Option<Op>;

/// What doing a verb means.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// The guest does an operation.
    Operation(Build),
    /// The guest does the operation in the argument when the vm_lowmem event fires.
    OnLowmem,
    /// Waits for the operation of a blocked thread.
    Join,
    /// Says that a thread is meant to stay blocked.
    Abandon,
    /// Writes a memory image of the guest to a file.
    Dump,
    /// Checks every structure in the guest's memory.
    Check,
    /// Shows what the guest's memory holds.
    Inspect,
    /// Nothing: the kernel does not offer it.
    Absent,
}

/// What a statement binds to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// A number.
    Number,
    /// A map.
    Map,
    /// What the statement gives that it waits for.
    Either,
}

/// A verb.
#[derive(Debug)]
pub struct Verb {
    /// Its name.
    pub name: &'static str,
    /// Its arguments, as a usage line shows them.
    pub usage: &'static str,
    /// Its arguments.
    pub params: &'static [Param],
    /// What doing it means.
    pub action: Action,
    /// What it binds.
    pub gives: Gives,
}

impl PartialEq for Verb {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The flags that scripts know, with their names.
pub const FLAGS: [(&str, MallocFlags); 4] = [
    ("WAITOK", MallocFlags::WAITOK),
    ("NOWAIT", MallocFlags::NOWAIT),
    ("ZERO", MallocFlags::ZERO),
    ("USE_RESERVE", MallocFlags::USE_RESERVE),
];

const SIZE: Param = Param::Number("SIZE");
const ADDR: Param = Param::Number("ADDR");
const COUNT: Param = Param::Number("COUNT");

const fn later(name: &'static str, usage: &'static str) -> Verb {
    Verb { name, usage, params: &[], action: Action::Absent, gives: Gives::Number }
}

const fn ours(
    name: &'static str,
    usage: &'static str,
    params: &'static [Param],
    action: Action,
    gives: Gives,
) -> Verb {
    Verb { name, usage, params, action, gives }
}

macro_rules! verb {
    ($name:literal, $usage:literal, [$($param:expr),*], [$($value:pat),*] => $op:expr) => {
        Verb {
            name: $name,
            usage: $usage,
            params: &[$($param),*],
            action: Action::Operation(|values| match *values {
                [$($value),*] => $op,
                _ => None,
            }),
            gives: Gives::Number,
        }
    };
}

fn va(address: u64) -> GuestVirt {
    GuestVirt::new(address)
}

use Value::{Flags, Kind, Map, Number};

/// Every verb of the language.
pub static VERBS: &[Verb] = &[
    verb!("kmem_alloc", "MAP SIZE", [Param::Map, SIZE], [Map(map), Number(size)] => Some(Op::KmemAlloc { map, size })),
    verb!("kmem_alloc_nofault", "MAP SIZE", [Param::Map, SIZE], [Map(map), Number(size)] => {
        Some(Op::KmemAllocNofault { map, size })
    }),
    verb!("kmem_malloc", "MAP SIZE [FLAGS]", [Param::Map, SIZE, Param::Flags], [Map(map), Number(size), Flags(flags)] => {
        Some(Op::KmemMalloc { map, size, flags })
    }),
    verb!("kmem_free", "MAP ADDR SIZE", [Param::Map, ADDR, SIZE], [Map(map), Number(addr), Number(size)] => {
        Some(Op::KmemFree { map, addr: va(addr), size })
    }),
    Verb {
        gives: Gives::Map,
        ..verb!("kmem_suballoc", "PARENT SIZE [system]", [Param::Map, SIZE, Param::System], [Map(parent), Number(size), Kind(kind)] => {
            Some(Op::KmemSuballoc { parent, size, kind })
        })
    },
    verb!("kmem_alloc_wait", "MAP SIZE", [Param::Map, SIZE], [Map(map), Number(size)] => {
        Some(Op::KmemAllocWait { map, size })
    }),
    verb!("kmem_free_wakeup", "MAP ADDR SIZE", [Param::Map, ADDR, SIZE], [Map(map), Number(addr), Number(size)] => {
        Some(Op::KmemFreeWakeup { map, addr: va(addr), size })
    }),
    verb!("pmap_qenter", "ADDR COUNT", [ADDR, COUNT], [Number(addr), Number(count)] => {
        Some(Op::PmapQenter { addr: va(addr), count })
    }),
    verb!("pmap_qremove", "ADDR COUNT", [ADDR, COUNT], [Number(addr), Number(count)] => {
        Some(Op::PmapQremove { addr: va(addr), count })
    }),
    verb!("read", "ADDR", [ADDR], [Number(addr)] => Some(Op::Read { addr: va(addr) })),
    verb!("write", "ADDR VALUE", [ADDR, Param::Number("VALUE")], [Number(addr), Number(value)] => {
        Some(Op::Write { addr: va(addr), value })
    }),
    verb!("touch", "ADDR SIZE", [ADDR, SIZE], [Number(addr), Number(size)] => Some(Op::Touch { addr: va(addr), size })),
    verb!("fill", "ADDR SIZE SEED", [ADDR, SIZE, Param::Number("SEED")], [Number(addr), Number(size), Number(seed)] => {
        Some(Op::Fill { addr: va(addr), size, seed })
    }),
    verb!("verify", "ADDR SIZE SEED|zero", [ADDR, SIZE, Param::Seed], [Number(addr), Number(size), ref seed] => match *seed {
        Number(seed) => Some(Op::Verify { addr: va(addr), size, seed }),
        Value::Zero => Some(Op::VerifyZero { addr: va(addr), size }),
        _ => None,
    }),
    verb!("vtop", "ADDR", [ADDR], [Number(addr)] => Some(Op::Vtop { addr: va(addr) })),
    ours("on_lowmem", "STATEMENT", &[Param::Statement], Action::OnLowmem, Gives::Number),
    verb!("sleep", "TIME", [Param::Number("TIME")], [Number(micros)] => Some(Op::Sleep { micros })),
    ours("join", "THREAD", &[Param::Thread], Action::Join, Gives::Either),
    ours("abandon", "THREAD", &[Param::Thread], Action::Abandon, Gives::Number),
    verb!("settle", "", [], [] => Some(Op::Settle)),
    verb!("uma_reclaim", "", [], [] => Some(Op::UmaReclaim)),
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
    later("squeeze", "SIZE"),
    later("seize", "SIZE|leave PAGES"),
    later("release", ""),
    later("hog", "MAP PERCENT [CHUNK]"),
    later("unhog", "MAP"),
    later("protect", "MAP ADDR SIZE rw|r|none"),
    later("madvise", "MAP ADDR SIZE willneed|dontneed"),
    later("swap", "off|on|error EVERY|delay TIME"),
    later("fail", "SITE SPEC|off"),
    ours("check", "", &[], Action::Check, Gives::Number),
    ours("inspect", "WHAT", &[Param::What], Action::Inspect, Gives::Number),
    ours("dump", "FILE", &[Param::File], Action::Dump, Gives::Number),
    later("snapshot", "FILE"),
];

impl Verb {
    /// The verb called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        VERBS.iter().find(|verb| verb.name == name)
    }

    /// Whether this kernel offers it.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        !matches!(self.action, Action::Absent)
    }

    /// Name and arguments.
    #[must_use]
    pub fn signature(&self) -> String {
        format!("{} {}", self.name, self.usage).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_verb_makes_an_operation_from_arguments_of_its_kinds() {
        for verb in VERBS {
            let values: Vec<Value> = verb
                .params
                .iter()
                .map(|param| match param {
                    Param::Map => Map(MapId::KMEM),
                    Param::Number(_) | Param::Seed => Number(1),
                    Param::Flags => Flags(MallocFlags::NOWAIT),
                    Param::System => Kind(MapKind::User),
                    Param::Thread => Value::Thread(ThreadId::FIRST),
                    Param::Statement => Value::Op(Op::Nop, Vec::new()),
                    Param::File => Value::File("file".to_owned()),
                    Param::What => Value::Look(Look::At(crate::What::Maps)),
                })
                .collect();
            if let Action::Operation(build) = verb.action {
                assert!(build(&values).is_some(), "{}", verb.name);
            }
        }
    }
}
