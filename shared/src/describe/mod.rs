//! The layouts of the structures of this crate, as data: with them, host and kernel find out
//! whether they agree.
//!
//! Each structure is described once, by [`describe!`](crate::describe!), which takes the names of
//! its fields and asks the compiler for the rest. A field that is left out does not compile, and
//! neither does one whose own structure is not described. [`TEXT`] is the whole as text, made at
//! compile time, and [`HASH`] is a hash of it. The kernel publishes both in the control region; a
//! host whose own hash differs reads the kernel's text and reports the differences field by field.
//!
//! The text: a line `vmkern abi VERSION`, then for each structure a line `NAME SIZE` and for each
//! field, indented by one blank, `NAME OFFSET SIZE KIND`. Sizes are in bytes; the size of an array
//! is that of all its elements, its kind is theirs; a pointer's kind is `*` and what it points to.

use crate::addr::{GuestPhys, GuestVirt, KPtr};
use crate::field::{Field, Word};

/// What a field is, besides its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindName {
    /// `*` for a pointer, else nothing.
    pub prefix: &'static str,
    /// The type's own name.
    pub name: &'static str,
}

impl KindName {
    /// A type by its name.
    #[must_use]
    pub const fn plain(name: &'static str) -> Self {
        Self { prefix: "", name }
    }
}

/// A type that a field can have.
pub trait Kind {
    /// Its name.
    const KIND: KindName;
}

macro_rules! plain {
    ($($type:ty => $name:literal),* $(,)?) => {
        $(impl Kind for $type { const KIND: KindName = KindName::plain($name); })*
    };
}

plain! {
    u8 => "u8",
    u16 => "u16",
    u32 => "u32",
    u64 => "u64",
    crate::atomic::AtomicU32 => "u32",
    crate::atomic::AtomicU64 => "u64",
    GuestPhys => "phys",
    GuestVirt => "virt",
}

impl<T: Kind + Word> Kind for Field<T> {
    const KIND: KindName = T::KIND;
}

impl<T: Kind> Kind for KPtr<T> {
    const KIND: KindName = KindName { prefix: "*", name: T::KIND.name };
}

impl<T: Kind, const N: usize> Kind for [T; N] {
    const KIND: KindName = T::KIND;
}

/// A field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldDescription {
    /// Its name.
    pub name: &'static str,
    /// Bytes from the structure's start.
    pub offset: usize,
    /// Bytes that it takes.
    pub size: usize,
    /// What it is.
    pub kind: KindName,
}

/// A structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Its name.
    pub name: &'static str,
    /// Bytes that it takes.
    pub size: usize,
    /// Its fields.
    pub fields: &'static [FieldDescription],
}

/// A structure that is described.
pub trait Described: Kind {
    /// What it looks like.
    const DESCRIPTION: Structure;
}

/// The size of the field that a function takes a reference to.
#[must_use]
pub const fn field_size<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The kind of the field that a function takes a reference to.
#[must_use]
pub const fn field_kind<T, F: Kind>(_: fn(&T) -> &F) -> KindName {
    F::KIND
}

/// Describes a structure: `describe!(Name { field, ... })` with all its fields.
#[macro_export]
macro_rules! describe {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        $crate::describe!($name as $name { $($field),+ });
    };
    ($name:ident as $type:ty { $($field:ident),+ $(,)? }) => {
        impl $crate::describe::Kind for $type {
            const KIND: $crate::describe::KindName =
                $crate::describe::KindName::plain(stringify!($name));
        }

        impl $crate::field::proof::Atomics for $type {}

        const _: fn(&$type) = |value| {
            $($crate::field::proof::is_atomic(&value.$field);)+
        };

        impl $crate::describe::Described for $type {
            const DESCRIPTION: $crate::describe::Structure = {
                // A field that is left out does not compile.
                const _: fn(&$type) = |value| {
                    let $name { $($field: _),+ } = value;
                };
                $crate::describe::Structure {
                    name: stringify!($name),
                    size: size_of::<$type>(),
                    fields: &[$($crate::describe::FieldDescription {
                        name: stringify!($field),
                        offset: core::mem::offset_of!($type, $field),
                        size: $crate::describe::field_size(|value: &$type| &value.$field),
                        kind: $crate::describe::field_kind(|value: &$type| &value.$field),
                    }),+],
                }
            };
        }
    };
}

mod list;

pub use self::list::STRUCTURES;

/// Writes text into a buffer that may be too short: the rest is only counted.
struct Pen<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Pen<N> {
    const fn byte(&mut self, byte: u8) {
        if self.len < N {
            self.bytes[self.len] = byte;
        }
        self.len += 1;
    }

    const fn text(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            self.byte(bytes[at]);
            at += 1;
        }
    }

    const fn number(&mut self, value: usize) {
        let mut unit = 1;
        while value / unit >= 10 {
            unit *= 10;
        }
        while unit > 0 {
            const DIGITS: &[u8; 10] = b"0123456789";
            self.byte(DIGITS[value / unit % 10]);
            unit /= 10;
        }
    }

    const fn structure(&mut self, structure: &Structure) {
        self.text(structure.name);
        self.text(" ");
        self.number(structure.size);
        self.text("\n");
        let mut at = 0;
        while at < structure.fields.len() {
            let field = &structure.fields[at];
            self.text(" ");
            self.text(field.name);
            self.text(" ");
            self.number(field.offset);
            self.text(" ");
            self.number(field.size);
            self.text(" ");
            self.text(field.kind.prefix);
            self.text(field.kind.name);
            self.text("\n");
            at += 1;
        }
    }
}

const fn render<const N: usize>() -> Pen<N> {
    let mut pen = Pen { bytes: [0; N], len: 0 };
    pen.text("vmkern abi ");
    pen.number(crate::ABI_VERSION as usize);
    pen.text("\n");
    let mut at = 0;
    while at < STRUCTURES.len() {
        pen.structure(&STRUCTURES[at]);
        at += 1;
    }
    pen
}

/// Bytes of [`TEXT`].
pub const LEN: usize = render::<0>().len;

/// The description of every structure of this crate.
pub static TEXT: [u8; LEN] = render::<LEN>().bytes;

/// A hash of [`TEXT`]: equal where the descriptions are.
pub const HASH: u64 = hash(&render::<LEN>().bytes);

/// FNV-1a, 64 bits.
#[must_use]
pub const fn hash(text: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < text.len() {
        hash = (hash ^ text[at] as u64).wrapping_mul(0x100_0000_01b3);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_is_its_fields_one_behind_the_other() {
        for structure in STRUCTURES {
            let mut end = 0;
            for field in structure.fields {
                // No more between them than alignment to a cache line asks for.
                assert!(
                    (end..end + 64).contains(&field.offset),
                    "{}.{}",
                    structure.name,
                    field.name
                );
                end = field.offset + field.size;
            }
            assert!((end..end + 4096).contains(&structure.size), "{}", structure.name);
        }
    }

    #[test]
    fn no_structure_is_described_twice() {
        for (at, structure) in STRUCTURES.iter().enumerate() {
            assert!(
                STRUCTURES[..at].iter().all(|other| other.name != structure.name),
                "{}",
                structure.name
            );
        }
    }

    #[test]
    fn the_text_says_what_the_compiler_says() {
        let text = core::str::from_utf8(&TEXT).expect("it is text");
        assert!(text.starts_with("vmkern abi "));
        let entry = "\nVmMapEntry 64\n prev 0 8 *VmMapEntry\n next 8 8 *VmMapEntry\n \
                     start 16 8 virt\n end 24 8 virt\n";
        assert!(text.contains(entry), "{text}");
        assert!(text.contains("\n eflags 48 4 EntryFlags\n"));
        assert_eq!(hash(&TEXT), HASH);
        assert_ne!(hash(b"a"), hash(b"b"));
    }
}
