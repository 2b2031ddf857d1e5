//! Enums whose values are numbers in memory or in messages, or words in text: one table for each,
//! from which the enum and its conversions follow.

use crate::field::Word;

/// An enum whose values are numbers. Made by `codes!`.
pub trait Coded: Copy + PartialEq {
    /// The word that holds one.
    type Bits: Word + PartialEq;

    /// The number of this value.
    #[must_use]
    fn code(self) -> Self::Bits;

    /// The value with this number, if there is one.
    #[must_use]
    fn from_code(code: Self::Bits) -> Option<Self>;
}

/// Makes an enum from a table of its values.
///
/// A row is `Value = NUMBER`, `Value = NUMBER => "word"`, or `Value => "word"` for an enum that has
/// no numbers; all rows of a table are alike. Numbers add `code` and `from_code`, and words add
/// `name` and `from_name`. Every enum has `ALL`, its values in the table's order.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $int:ident {
            $($(#[$row:meta])* $value:ident = $code:literal $(=> $word:literal)?,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($int)]
        pub enum $name {
            $($(#[$row])* $value = $code,)+
        }

        impl $name {
            /// The number of this value.
            #[must_use]
            #[inline]
            pub const fn code(self) -> $int {
                self as $int
            }

            /// The value with this number, if there is one.
            #[must_use]
            #[inline]
            pub const fn from_code(code: $int) -> Option<Self> {
                match code {
                    $($code => Some(Self::$value),)+
                    _ => None,
                }
            }
        }

        impl $crate::codes::Coded for $name {
            type Bits = $int;

            #[inline]
            fn code(self) -> $int {
                Self::code(self)
            }

            #[inline]
            fn from_code(code: $int) -> Option<Self> {
                Self::from_code(code)
            }
        }

        $crate::codes::codes!(@all $name $($value)+);
        $crate::codes::codes!(@words $name $($($value => $word)?)+);
    };
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$row:meta])* $value:ident => $word:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$row])* $value,)+
        }

        $crate::codes::codes!(@all $name $($value)+);
        $crate::codes::codes!(@words $name $($value => $word)+);
    };
    (@all $name:ident $($value:ident)+) => {
        impl $name {
            /// Every value, in the order of the table.
            pub const ALL: [Self; { [$(stringify!($value)),+].len() }] = [$(Self::$value),+];
        }
    };
    (@words $name:ident) => {};
    (@words $name:ident $($value:ident => $word:literal)+) => {
        impl $name {
            /// The word that names it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }

            /// The value that `name` names, if there is one.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($word => Some(Self::$value),)+
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use codes;

#[cfg(test)]
mod tests {
    codes! {
        /// A number and a word.
        pub enum Both: u8 {
            /// The first.
            One = 1 => "one",
            /// Not the second.
            Four = 4 => "four",
        }
    }

    #[test]
    fn numbers_and_words_lead_to_the_value_and_back() {
        assert_eq!(Both::ALL, [Both::One, Both::Four]);
        for value in Both::ALL {
            assert_eq!(Both::from_code(value.code()), Some(value));
            assert_eq!(Both::from_name(value.name()), Some(value));
        }
        assert_eq!((Both::from_code(2), Both::from_name("two")), (None, None));
    }
}
