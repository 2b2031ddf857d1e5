//! The rules as data: each file of this module has a table of its rules.
//!
//! A rule is a row of such a table: a constant that the code names, the identifier that findings
//! show, and a sentence for the book. A rule that is not in a table cannot be named.

use super::context::Context;

/// A statement that holds in every valid guest.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Its name in findings, in kebab-case.
    pub id: &'static str,
    /// Its subject.
    pub group: Group,
    /// When it holds: a sentence in Markdown, in lower case and without a full stop.
    pub says: &'static str,
}

/// Subjects of rules, in the order of the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Group {
    /// Whether structures can be read at all.
    Reading,
    /// Maps.
    Maps,
    /// Entries of maps.
    Entries,
    /// Indexes and pools of maps.
    Pools,
    /// Objects.
    Objects,
    /// Owners of pages.
    Owners,
    /// Physical memory.
    Memory,
    /// Zones.
    Zones,
    /// Threads, sleeps and time-outs.
    Threads,
    /// Locks and event handlers.
    Locks,
    /// Page tables.
    Tables,
    /// Translations.
    Translations,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Reading,
        Self::Maps,
        Self::Entries,
        Self::Pools,
        Self::Objects,
        Self::Owners,
        Self::Memory,
        Self::Zones,
        Self::Threads,
        Self::Locks,
        Self::Tables,
        Self::Translations,
    ];

    /// Its heading in the book.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Reading => "Reading",
            Self::Maps => "Maps",
            Self::Entries => "Entries",
            Self::Pools => "Index and pools of a map",
            Self::Objects => "Objects",
            Self::Owners => "Owners of pages",
            Self::Memory => "Physical memory",
            Self::Zones => "Zones",
            Self::Threads => "Threads, sleeps and time-outs",
            Self::Locks => "Locks and handlers",
            Self::Tables => "Page tables",
            Self::Translations => "Translations",
        }
    }
}

/// The table of one file.
pub(super) struct Part {
    /// The function that checks its rules; `None` if they are checked while structures are read.
    pub check: Option<fn(&Context<'_>)>,
    /// Its rules.
    pub rules: &'static [&'static Rule],
}

/// The table of a file: `PART`, and a constant for each rule.
macro_rules! rules {
    ($check:expr; $($group:ident { $($name:ident = $id:literal: $says:literal;)+ })+) => {
        $($(
            pub(super) static $name: super::rule::Rule = super::rule::Rule {
                id: $id,
                group: super::rule::Group::$group,
                says: $says,
            };
        )+)+

        pub(super) static PART: super::rule::Part =
            super::rule::Part { check: $check, rules: &[$($(&$name),+),+] };
    };
}
pub(super) use rules;
