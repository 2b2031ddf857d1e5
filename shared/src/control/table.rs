//! How a table of operations becomes an enum, its wire form, calls, and a description.

use core::fmt;

use super::argument::Argument;

/// Arguments of an operation on the wire, the unused ones 0.
pub(super) type Words = [u64; 5];

/// The words of an operation that has as many arguments.
pub(super) fn words<const N: usize>(arguments: [u64; N]) -> Words {
    core::array::from_fn(|at| arguments.get(at).copied().unwrap_or(0))
}

/// A row of a table of operations: for help and documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    /// Its number on the wire.
    pub code: u16,
    /// What it does, and what it answers.
    pub says: &'static str,
    /// Its arguments, in the order of the wire's words: name and type.
    pub arguments: &'static [(&'static str, &'static str)],
}

/// An operation that is written as C would write the call.
pub(super) struct Written<'f, 'b> {
    f: &'f mut fmt::Formatter<'b>,
    /// What stands before the next argument.
    before: &'static str,
    result: fmt::Result,
}

impl<'f, 'b> Written<'f, 'b> {
    /// The call of `name`, no argument written yet.
    pub(super) fn new(f: &'f mut fmt::Formatter<'b>, name: &str) -> Self {
        let result = write!(f, "{name}(");
        Self { f, before: "", result }
    }

    /// Writes one more argument.
    pub(super) fn with(self, argument: impl Argument) -> Self {
        let Self { f, before, result } = self;
        let result = result.and_then(|()| f.write_str(before)).and_then(|()| argument.show(f));
        Self { f, before: ", ", result }
    }

    /// Ends the call.
    pub(super) fn end(self) -> fmt::Result {
        self.result.and_then(|()| self.f.write_str(")"))
    }
}

/// Makes an enum of operations from a table.
///
/// A row is `Name = CODE { argument: Type, .. },` with the documentation of the operation and of
/// its arguments, or `Name = CODE,` for one that takes none. An argument is an
/// [`Argument`](super::argument::Argument); its place in the row says which word carries it. A row
/// that ends with `=> call: Type` has a method `call`, whose answer is a `Type`, in the trait that
/// `called by Name` names. `also Name(Enum)` adds a variant for the operations of another table,
/// whose codes differ.
macro_rules! ops {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[doc = $says:literal])* $op:ident = $code:literal $({
                $($(#[doc = $means:literal])* $argument:ident: $type:ty),+ $(,)?
            })? $(=> $call:ident: $answer:ty)?,)+
        }
        $($(#[$also_meta:meta])* also $also:ident($other:ident))?
        $(called by $calls:ident)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $says])* $op $({
                $($(#[doc = $means])* $argument: $type,)+
            })?,)+
            $($(#[$also_meta])* $also($other),)?
        }

        impl $name {
            /// The table of its own operations.
            pub const TABLE: &'static [$crate::control::Operation] =
                &[$($crate::control::Operation {
                    name: stringify!($op),
                    code: $code,
                    says: concat!($($says),*).trim_ascii(),
                    arguments: &[$($((stringify!($argument), stringify!($type))),+)?],
                }),+];

            /// Its number and its arguments on the wire.
            pub(super) fn to_wire(self) -> (u16, $crate::control::table::Words) {
                match self {
                    $(Self::$op $({ $($argument),+ })? => {
                        let arguments = [$($(
                            $crate::control::argument::Argument::to_word($argument)
                        ),+)?];
                        ($code, $crate::control::table::words(arguments))
                    })+
                    $(Self::$also(other) => other.to_wire(),)?
                }
            }

            /// The operation with this number and these arguments, or `None` when the number or an
            /// argument is not valid.
            pub(super) fn from_wire(
                code: u16,
                words: &$crate::control::table::Words,
            ) -> Option<Self> {
                match code {
                    $($code => {
                        $(let [$($argument),+, ..] = *words;)?
                        Some(Self::$op $({$(
                            $argument: $crate::control::argument::Argument::from_word($argument)?
                        ),+})?)
                    })+
                    _ => ops!(@other code words $($also $other)?),
                }
            }
        }

        /// As C would write the call: `kmem_malloc(kmem_map, 4096, M_NOWAIT)`.
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match *self {
                    $(Self::$op $({ $($argument),+ })? => {
                        let name = ops!(@name $op $($call)?);
                        let call = $crate::control::table::Written::new(f, name);
                        $($(let call = call.with($argument);)+)?
                        call.end()
                    })+
                    $(Self::$also(other) => core::fmt::Display::fmt(&other, f),)?
                }
            }
        }

        ops! { @calls [$($calls)?] $name $({
            [$(#[doc = $says])*] $op [$($($argument: $type),+)?] [$($call $answer)?]
        })+ }
    };
    (@name $op:ident) => { stringify!($op) };
    (@name $op:ident $call:ident) => { stringify!($call) };
    (@calls [] $($rows:tt)*) => {};
    (@calls [$calls:ident] $name:ident $({ $($row:tt)* })+) => {
        /// Every operation as a method that takes its arguments and returns its answer, on whatever
        /// performs operations.
        ///
        /// The methods are made from the rows of the table of operations. An operation whose answer
        /// is that of another one, a join, has none.
        pub trait $calls {
            /// What a call returns whose answer is an `A`.
            type Returned<A: $crate::control::Answer>;

            /// Performs `op`, whose answer is an `A`.
            #[track_caller]
            fn perform<A: $crate::control::Answer>(&mut self, op: $name) -> Self::Returned<A>;

            $(ops! { @call $name $($row)* })+
        }
    };
    (@call $name:ident [$($doc:tt)*] $op:ident [$($argument:ident: $type:ty),*] []) => {};
    (
        @call $name:ident [$($doc:tt)*] $op:ident [$($argument:ident: $type:ty),*]
        [$call:ident $answer:ty]
    ) => {
        $($doc)*
        #[track_caller]
        fn $call(&mut self, $($argument: $type),*) -> Self::Returned<$answer> {
            self.perform($name::$op { $($argument),* })
        }
    };
    (@other $code:ident $words:ident) => { None };
    (@other $code:ident $words:ident $also:ident $other:ident) => {
        $other::from_wire($code, $words).map(Self::$also)
    };
}

pub(super) use ops;
