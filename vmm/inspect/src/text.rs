//! Foreign text: from a guest, from a file, or the name of a file.
//!
//! Such text may hold sequences that a terminal obeys, characters that reverse the direction of a
//! line, and line breaks that forge a line of our own output. It is escaped where it enters the
//! program (`one_line`: a crash record, a kernel's symbols, the description of its structures, a
//! dump's notes, the [`name`] of a file), so no later use can forget to. All output also passes
//! through [`screen`], which lets only our own styles through.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

/// Whether a terminal obeys `c`, or shows the text around it in another order or place.
#[must_use]
pub fn is_hazard(c: char) -> bool {
    let turns_around = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || turns_around || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// `text` with every hazard replaced by its `escape`. `keep` receives the rest of the text and
/// returns the number of bytes to keep unescaped.
fn escaped<'t>(
    text: &'t str,
    keep: impl Fn(&str) -> usize,
    escape: impl Fn(&mut String, char),
) -> Cow<'t, str> {
    if !text.contains(is_hazard) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (String::with_capacity(text.len() + 16), text);
    while let Some(at) = rest.find(is_hazard) {
        let (good, hazard) = rest.split_at(at);
        out.push_str(good);
        let kept = keep(hazard);
        let len = if kept > 0 { kept } else { hazard.chars().next().map_or(1, char::len_utf8) };
        let (now, later) = hazard.split_at(len);
        if kept > 0 {
            out.push_str(now);
        } else {
            now.chars().for_each(|c| escape(&mut out, c));
        }
        rest = later;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// A size with three digits and a unit: `512.0 GiB`, `12 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            let whole = bytes.trailing_zeros() >= shift && unit == "KiB";
            let number = bytes as f64 / (1_u64 << shift) as f64;
            return if whole {
                format!("{number:.0} {unit}")
            } else {
                format!("{number:.1} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

/// `1 page`, `2 pages`; `1 entry`, `2 entries`.
pub(crate) fn count(number: u64, what: &str) -> String {
    match (number, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {what}s"),
    }
}

fn as_rust(out: &mut String, c: char) {
    out.extend(c.escape_default());
}

/// Text of a guest or a file as one line that is safe for a terminal. Bytes that are not UTF-8
/// become U+FFFD.
#[must_use]
pub fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    escaped(&text, |_| 0, as_rust).into_owned()
}

/// A file's name for messages and reports: its path as [`one_line`].
#[must_use]
pub fn name(path: &Path) -> String {
    one_line(path.as_os_str().as_encoded_bytes())
}

/// Foreign text of several lines, without styles or anything else that a terminal obeys.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, |rest| usize::from(rest.starts_with('\n')), as_rust)
}

/// Length in bytes of the style (SGR sequence) at the start of `text`, or 0.
fn style(text: &str) -> usize {
    let Some(parameters) = text.strip_prefix("\x1b[") else { return 0 };
    let end =
        parameters.find(|c: char| !matches!(c, '0'..='9' | ';' | ':')).unwrap_or(parameters.len());
    if parameters[end..].starts_with('m') { end + 3 } else { 0 }
}

/// Our own text without its styles.
#[must_use]
pub fn unstyled(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('\x1b') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // Anything else than a style stays: it is not ours.
        let len = style(rest);
        out.push_str(if len == 0 { "\x1b" } else { "" });
        rest = &rest[len.max(1)..];
    }
    out + rest
}

/// Text that is safe for a terminal: `text` with its line breaks, tabs and styles; everything else
/// that a terminal obeys is escaped.
#[must_use]
pub fn screen(text: &str) -> Cow<'_, str> {
    let keep = |rest: &str| if rest.starts_with(['\n', '\t']) { 1 } else { style(rest) };
    escaped(text, keep, as_rust)
}

/// `json`, a JSON text in one line, with the hazards in its strings escaped. Its meaning stays the
/// same.
#[must_use]
pub fn json(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |rest| usize::from(rest.starts_with('\n')),
        |out, c| {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that take over a terminal or forge lines, each in a different way.
    const HOSTILE: [&str; 9] = [
        "\x1b]0;title\x07",
        "\x1b[2J\x1b[H",
        "a\nok all tests passed",
        "a\rok",
        "\u{9b}31m",
        "\u{202e}txt.exe",
        "\u{2066}x\u{2069}",
        "a\u{2028}b",
        "\u{7f}\u{8}\u{0}",
    ];

    #[test]
    fn foreign_text_is_one_line_that_a_terminal_only_shows() {
        for text in HOSTILE {
            let line = one_line(text.as_bytes());
            assert!(!line.contains(is_hazard) && !line.contains('\n'), "{line:?}");
        }
        assert_eq!(one_line(b"\x1b[31mred"), "\\u{1b}[31mred");
        assert_eq!(one_line("caf\u{e9} \u{4e2d}".as_bytes()), "caf\u{e9} \u{4e2d}");
        assert_eq!(one_line(b"\xff"), "\u{fffd}");
        assert_eq!(name(Path::new("a\nok b")), "a\\nok b");
        assert_eq!(plain("\x1b[8ma\nb\tc"), "\\u{1b}[8ma\nb\\tc");
    }

    #[test]
    fn our_styles_and_lines_pass_to_the_screen_and_nothing_else_does() {
        let ours = "\x1b[1m\x1b[31merror:\x1b[0m\ta\nb\x1b[38;5;4mc";
        assert_eq!(screen(ours), ours);
        for text in HOSTILE {
            let shown = screen(text).replace('\n', "");
            assert!(!shown.contains(is_hazard), "{shown:?}");
        }
        assert_eq!(unstyled(ours), "error:\ta\nbc");
        assert_eq!(unstyled("a\x1b[1K\x1b[1m"), "a\x1b[1K");
        assert_eq!(screen("\x1b[1"), "\\u{1b}[1");
        assert_eq!(screen("\x1b[1;m\x1b[1K"), "\x1b[1;m\\u{1b}[1K");
    }

    #[test]
    fn json_stays_what_it_was() {
        for text in HOSTILE {
            let plain = serde_json::to_string(text).expect("text is JSON");
            let safe = json(&plain);
            assert!(!safe.contains(is_hazard), "{safe:?}");
            assert_eq!(serde_json::from_str::<String>(&safe).expect("it is JSON"), text);
        }
    }
}
