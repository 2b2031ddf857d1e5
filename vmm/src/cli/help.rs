//! Parts that several helps share.

use std::fmt::Write as _;

use vmkern::Tunables;

/// Columns of a help at most; on a narrower terminal it is as wide as that.
pub const WIDTH: usize = 100;

/// What a help ends with, behind the tunables of `--set`.
pub fn with_tunables(end: &str) -> String {
    format!("{}\n\n{end}", tunables())
}

/// The section that lists them, a tunable a paragraph.
fn tunables() -> String {
    let mut text = "Tunables of --set, with the least and the greatest value:".to_owned();
    for tunable in Tunables::TABLE {
        let (min, max) = (tunable.range.start(), tunable.range.end());
        let max = if *max == u64::MAX { String::new() } else { max.to_string() };
        let _ = write!(text, "\n  {} {min}..{max}\n      {}", tunable.name, tunable.says);
    }
    text
}
