//! Words and numbers in the form that all drawings share.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::pte::PteFlags;

pub(super) use crate::style::{BAD, FAINT, GOOD, STRONG};
pub(super) use crate::text::{count, size};

/// The size of `pages` pages.
pub(super) fn pages_size(pages: u64) -> String {
    size(pages.saturating_mul(PAGE_SIZE))
}

/// The page size that an entry maps: `4K`, `2M`, `1G`.
pub(super) fn span(bytes: u64) -> String {
    match bytes {
        bytes if bytes >> 30 > 0 => format!("{}G", bytes >> 30),
        bytes if bytes >> 20 > 0 => format!("{}M", bytes >> 20),
        bytes => format!("{}K", bytes >> 10),
    }
}

/// A share of a whole, in percent with one decimal.
pub(super) fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// `columns` cells, filled in proportion to `part` in `whole`; a part that is not 0 fills at least
/// one cell.
pub(super) fn gauge(part: u64, whole: u64, columns: u64) -> String {
    let filled = (u128::from(part) * u128::from(columns)).div_ceil(u128::from(whole.max(1)));
    let filled = usize::try_from(filled.min(u128::from(columns))).unwrap_or(0);
    "#".repeat(filled) + &".".repeat(usize::try_from(columns).unwrap_or(0) - filled)
}

/// A page-table entry's flags in ten columns, each letter in a fixed place.
pub(super) fn flags(flags: PteFlags) -> String {
    let has = |flag: PteFlags, letter: char| if flags.contains(flag) { letter } else { '-' };
    let execute = if flags.contains(PteFlags::NX) { '-' } else { 'x' };
    let permissions = ['r', has(PteFlags::RW, 'w'), execute, has(PteFlags::U, 'u'), ' '];
    let others = [
        has(PteFlags::A, 'a'),
        has(PteFlags::M, 'm'),
        has(PteFlags::G, 'g'),
        has(PteFlags::W, 'w'),
        has(PteFlags::KENTER, 'k'),
    ];
    permissions.into_iter().chain(others).collect()
}

/// What the letters of [`flags`] mean.
pub(super) const FLAGS_LEGEND: &str =
    "rwxu amgwk: read write execute user, accessed modified global wired kenter";

/// `c`, escaped if it cannot be printed. Quotes can.
fn printable(c: char) -> String {
    if matches!(c, '\'' | '"') { c.to_string() } else { c.escape_debug().collect() }
}

/// `text` in lines of at most `columns` characters, broken at blanks where possible; all lines but
/// the first are indented. Characters that cannot be printed are escaped.
pub(super) fn fit(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let length = |line: &str| line.chars().count();
    for word in text.split(' ') {
        let word: String = word.chars().map(printable).collect();
        let mut rest = word.as_str();
        loop {
            let line = lines.last_mut().expect("there is a line");
            let gap = usize::from(!line.trim().is_empty());
            if length(line) + gap + length(rest) <= columns {
                line.push_str(&" ".repeat(gap));
                line.push_str(rest);
                break;
            }
            if gap == 1 {
                lines.push("  ".to_owned());
                continue;
            }
            // One word that is too long for a line.
            let room = columns - length(line);
            let at = rest.char_indices().nth(room).map_or(rest.len(), |(at, _)| at);
            line.push_str(&rest[..at]);
            rest = &rest[at..];
            lines.push("  ".to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        let told = [0, 4095, 4096, 20 << 10, 1 << 20, (1 << 39) + (1 << 38), 5000].map(size);
        assert_eq!(told, ["0 B", "4.0 KiB", "4 KiB", "20 KiB", "1.0 MiB", "768.0 GiB", "4.9 KiB"]);
    }

    #[test]
    fn a_gauge_shows_that_there_is_something_and_is_never_too_long() {
        assert_eq!(
            [gauge(0, 100, 4), gauge(1, 1 << 60, 4), gauge(50, 100, 4)],
            ["....", "#...", "##.."]
        );
        assert_eq!(
            [gauge(9, 3, 4), gauge(0, 0, 4), gauge(u64::MAX, u64::MAX, 4)],
            ["####", "....", "####"]
        );
    }

    #[test]
    fn long_lines_are_broken_and_control_characters_escaped() {
        assert_eq!(fit("one two three", 8), ["one two", "  three"]);
        assert_eq!(fit("abcdefghij", 4), ["abcd", "  ef", "  gh", "  ij"]);
        assert_eq!(fit("a\u{1b}[2J", 20), ["a\\u{1b}[2J"]);
        assert_eq!(fit("", 20), [""]);
    }

    #[test]
    fn flags_keep_their_places() {
        let all = PteFlags::V
            | PteFlags::RW
            | PteFlags::U
            | PteFlags::A
            | PteFlags::M
            | PteFlags::G
            | PteFlags::W;
        assert_eq!(flags(all | PteFlags::KENTER), "rwxu amgwk");
        assert_eq!(flags(PteFlags::V | PteFlags::NX | PteFlags::G), "r--- --g--");
    }
}
