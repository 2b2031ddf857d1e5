//! Requests: what can be inspected, and how a request is written.

use std::fmt;

use thiserror::Error;
use vmkern_abi::addr::GuestVirt;

use super::survey::{MAP_NAMES, MapName};

/// Something to inspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The guest at a glance.
    Summary,
    /// All maps.
    Maps,
    /// The entries of a map.
    Map(MapName),
    /// All objects.
    Objects,
    /// Physical memory.
    Pages,
    /// A page, by its number.
    Page(u64),
    /// An address.
    Vtop(GuestVirt),
    /// The page tables from one address to another, both inclusive.
    PageTable(GuestVirt, GuestVirt),
    /// All threads.
    Threads,
    /// All CPUs.
    Cpus,
    /// Statistics of locks.
    Locks,
    /// Fail points.
    Fail,
    /// Pressure on memory.
    Pressure,
}

/// A request that makes no sense.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WhatError {
    /// There is nothing to inspect under this name.
    #[error("cannot inspect `{name}`; expected one of {}", What::usages().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The arguments are wrong.
    #[error("{problem}; usage: {usage}")]
    Arguments {
        /// What is wrong.
        problem: String,
        /// How the request is written.
        usage: &'static str,
    },
}

crate::debug_as_printed!(WhatError);

/// The names, with their arguments.
const USAGES: [(&str, &str); 13] = [
    ("summary", "summary"),
    ("maps", "maps"),
    ("map", "map NAME"),
    ("objects", "objects"),
    ("pages", "pages"),
    ("page", "page PFN"),
    ("vtop", "vtop ADDR"),
    ("pagetable", "pagetable [START..END]"),
    ("threads", "threads"),
    ("cpus", "cpus"),
    ("locks", "locks"),
    ("fail", "fail"),
    ("pressure", "pressure"),
];

/// In the form that [`What::parse`] reads.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Summary => f.write_str("summary"),
            Self::Maps => f.write_str("maps"),
            Self::Map(name) => write!(f, "map {name}"),
            Self::Objects => f.write_str("objects"),
            Self::Pages => f.write_str("pages"),
            Self::Page(pfn) => write!(f, "page {pfn:#x}"),
            Self::Vtop(va) => write!(f, "vtop {va}"),
            Self::PageTable(first, last) if first.get() == 0 && last.get() == u64::MAX => {
                f.write_str("pagetable")
            }
            Self::PageTable(first, last) => {
                write!(f, "pagetable {first}..{:#x}", last.get().wrapping_add(1))
            }
            Self::Threads => f.write_str("threads"),
            Self::Cpus => f.write_str("cpus"),
            Self::Locks => f.write_str("locks"),
            Self::Fail => f.write_str("fail"),
            Self::Pressure => f.write_str("pressure"),
        }
    }
}

impl What {
    /// The names that [`What::parse`] accepts, with their arguments.
    #[must_use]
    pub fn usages() -> Vec<&'static str> {
        USAGES.iter().map(|(_, usage)| *usage).collect()
    }

    /// All page tables.
    #[must_use]
    pub fn page_tables() -> Self {
        Self::PageTable(GuestVirt::new(0), GuestVirt::new(u64::MAX))
    }

    /// The page tables of `[start, end)`; `None` if the range is empty.
    #[must_use]
    pub fn page_table(start: u64, end: u64) -> Option<Self> {
        (start < end).then(|| Self::PageTable(GuestVirt::new(start), GuestVirt::new(end - 1)))
    }

    /// Whether its report has backtraces, and so needs symbols.
    #[must_use]
    pub fn has_backtraces(&self) -> bool {
        matches!(self, Self::Threads | Self::Cpus | Self::Fail)
    }

    /// Reads a request: a name, then its arguments.
    ///
    /// # Errors
    /// When the name is unknown or the arguments are wrong.
    pub fn parse(words: &[String]) -> Result<Self, WhatError> {
        // 1. Find the name, for its usage.
        let Some((name, arguments)) = words.split_first() else {
            return Err(WhatError::Unknown { name: String::new() });
        };
        let usage = USAGES.iter().find(|(known, _)| known == name).map(|(_, usage)| *usage);
        let usage = usage.ok_or_else(|| WhatError::Unknown { name: name.clone() })?;
        // 2. Helpers that check the number of arguments.
        let wrong = |problem: String| WhatError::Arguments { problem, usage };
        let none = |what: Self| match arguments {
            [] => Ok(what),
            [first, ..] => Err(wrong(format!("`{name}` takes no argument: unexpected `{first}`"))),
        };
        let one = || match arguments {
            [one] => Ok(one.as_str()),
            [] => Err(wrong(format!("`{name}` lacks an argument"))),
            [_, second, ..] => {
                Err(wrong(format!("`{name}` takes one argument: unexpected `{second}`")))
            }
        };
        // 3. The name with its argument.
        match name.as_str() {
            "summary" => none(Self::Summary),
            "maps" => none(Self::Maps),
            "objects" => none(Self::Objects),
            "pages" => none(Self::Pages),
            "threads" => none(Self::Threads),
            "cpus" => none(Self::Cpus),
            "locks" => none(Self::Locks),
            "fail" => none(Self::Fail),
            "pressure" => none(Self::Pressure),
            "map" => map_name(one()?).map(Self::Map).map_err(wrong),
            "page" => number(one()?).map(Self::Page).map_err(wrong),
            "vtop" => number(one()?).map(|va| Self::Vtop(GuestVirt::new(va))).map_err(wrong),
            _ => range(arguments).map_err(wrong),
        }
    }
}

fn map_name(text: &str) -> Result<MapName, String> {
    if MAP_NAMES.contains(&text) {
        return Ok(MapName::Named(text.to_owned()));
    }
    number(text).map(|at| MapName::At(GuestVirt::new(at))).map_err(|_| {
        format!("`{text}` is not a map; expected {}, or a map's address", MAP_NAMES.join(" "))
    })
}

/// A number, decimal or with `0x`; or an address in the form that tables show, with at least 9
/// hexadecimal digits.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None if text.len() > 8 && text.contains(|c: char| c.is_ascii_alphabetic()) => {
            u64::from_str_radix(text, 16)
        }
        None => text.parse(),
    };
    parsed.map_err(|_| {
        format!("`{text}` is not a number; expected decimal digits, or 0x and hexadecimal ones")
    })
}

/// Nothing, `START..END`, or `START END`: END is the first address past the range.
fn range(arguments: &[String]) -> Result<What, String> {
    let (start, end) = match arguments {
        [] => return Ok(What::page_tables()),
        [one] => one
            .split_once("..")
            .ok_or_else(|| format!("`{one}` is not a range; expected START..END"))?,
        [start, end] => (start.as_str(), end.as_str()),
        [_, _, third, ..] => {
            return Err(format!("unexpected argument `{third}`; a range is START..END"));
        }
    };
    let (start, end) = (number(start)?, number(end)?);
    What::page_table(start, end).ok_or_else(|| format!("{start:#x}..{end:#x} is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<What, WhatError> {
        let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        What::parse(&words)
    }

    #[test]
    fn each_thing_is_known_with_its_arguments() {
        for name in [
            "summary",
            "maps",
            "objects",
            "pages",
            "threads",
            "cpus",
            "locks",
            "fail",
            "pressure",
            "pagetable",
        ] {
            assert!(parse(name).is_ok(), "{name}");
            assert!(
                matches!(parse(&format!("{name} more")), Err(WhatError::Arguments { .. })),
                "{name}"
            );
        }
        assert_eq!(parse("map kmem_map"), Ok(What::Map(MapName::Named("kmem_map".to_owned()))));
        let at = GuestVirt::new(0xffff_ff00_03ff_0000);
        assert_eq!(parse("map 0xffffff0003ff0000"), Ok(What::Map(MapName::At(at))));
        assert_eq!(parse("page 1042"), Ok(What::Page(1042)));
        assert_eq!(
            (parse("vtop 0xffffff0003ff0000"), parse("vtop ffffff0003ff0000")),
            (Ok(What::Vtop(at)), Ok(What::Vtop(at)))
        );
        let all = What::PageTable(GuestVirt::new(0x1000), GuestVirt::new(0x1fff));
        assert_eq!(
            (parse("pagetable 0x1000..0x2000"), parse("pagetable 4096 8192")),
            (Ok(all.clone()), Ok(all))
        );
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_would() {
        let message = parse("page_table").expect_err("there is none").to_string();
        assert!(
            message.contains("`page_table`") && message.contains("pagetable [START..END], threads"),
            "{message}"
        );
        for (text, part) in [
            ("map", "lacks an argument; usage: map NAME"),
            ("map foo_map", "`foo_map` is not a map; expected kernel_map kmem_map"),
            ("page x", "`x` is not a number"),
            ("vtop 1 2", "unexpected `2`"),
            ("pagetable 0x2000..0x1000", "0x2000..0x1000 is empty"),
            ("pagetable 5", "`5` is not a range"),
        ] {
            let message = parse(text).expect_err("it makes no sense").to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
