//! Values of options, of the command line and of `guest`: sizes, times, numbers, settings.

use std::time::Duration;

use super::{fail_point, lexer};
use crate::Guest;
use crate::guest::{FailSite, FailSpec};

/// A size as scripts write it, or with the suffix `T`.
///
/// # Errors
/// What was expected.
pub fn size(text: &str) -> Result<u64, String> {
    let expected = || "expected a number with a suffix of K M G T, or none".to_owned();
    let (digits, unit) = text.strip_suffix('T').map_or((text, 1), |digits| (digits, 1 << 40));
    if digits.ends_with('s') {
        return Err(expected());
    }
    let number = lexer::number(digits).ok();
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(expected)
}

/// A number, decimal or `0x`.
///
/// # Errors
/// What was expected.
pub fn number(text: &str) -> Result<u64, String> {
    lexer::number(text).map_err(|expected| format!("expected {expected}"))
}

/// A time: a number with a suffix of `us ms s`, or of seconds without one. One that is too long to
/// tell is the longest that there is.
///
/// # Errors
/// What was expected.
pub fn time(text: &str) -> Result<Duration, String> {
    let expected =
        || "expected a number with a suffix of us ms s, or a number of seconds".to_owned();
    if text.ends_with(['K', 'M', 'G']) {
        return Err(expected());
    }
    let is_of_seconds = !text.ends_with('s');
    let with_suffix = if is_of_seconds { format!("{text}s") } else { text.to_owned() };
    Ok(match lexer::number(&with_suffix).map_err(|_| expected())? {
        u64::MAX => Duration::MAX,
        micros => Duration::from_micros(micros),
    })
}

/// `NAME=VALUE`, each as it stands there.
fn pair(text: &str) -> Result<(&str, &str), String> {
    text.split_once('=').ok_or_else(|| "expected NAME=VALUE".to_owned())
}

/// `NAME=VALUE` of `--let`: a name of the language, and a number.
///
/// # Errors
/// What was expected.
pub fn binding(text: &str) -> Result<(String, u64), String> {
    let (name, value) = pair(text)?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(format!("`{name}` is not a name: expected letters, digits and _"));
    }
    Ok((name.to_owned(), number(value).map_err(|error| format!("{name}: {error}"))?))
}

/// `NAME=VALUE` of a kernel tunable.
///
/// # Errors
/// What was expected, or the rule of the tunable that the value breaks.
pub fn setting(text: &str) -> Result<(String, u64), String> {
    let (name, value) = pair(text)?;
    let value = number(value).map_err(|error| format!("{name}: {error}"))?;
    // The parser of the command line adds the name of the option.
    let tried = Guest::builder().tunable(name, value).validate();
    tried.map(|()| (name.to_owned(), value)).map_err(|error| error.to_string())
}

/// `SITE=SPEC` of a fail point, and its programme in the grammar of `fail(9)`.
///
/// # Errors
/// The rule that it breaks, and the place, with a caret under it. Of a long text only what stands
/// around the place.
pub fn fail_point(text: &str) -> Result<(FailSite, FailSpec), String> {
    fail_point::option(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_or_are_seconds() {
        assert_eq!(time("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(time("60"), Ok(Duration::from_secs(60)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        for long in [
            "18446744073709551615",
            "9223372036854775808s",
            "99999999999999999999999ms",
            "18446744073709551615us",
        ] {
            assert_eq!(time(long), Ok(Duration::MAX), "{long}");
        }
        assert_eq!(time("9223372036854775807us"), Ok(Duration::from_micros((1 << 63) - 1)));
        assert!(time("5K").is_err() && time("").is_err() && time("-1").is_err());
    }

    #[test]
    fn sizes_have_a_unit_or_are_bytes() {
        assert_eq!(size("8M"), Ok(8 << 20));
        assert_eq!(size("1T"), Ok(1 << 40));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["5ms", "", "-1", "1TT", "1KT1", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fail_point_is_refused_with_the_rule_that_it_breaks_and_the_place() {
        let (site, spec) = fail_point("tsleep=2*off->1%return").expect("it is one");
        assert_eq!((site, spec.to_string()), (FailSite::Tsleep, "2*off->1%return".to_owned()));
        for (text, part) in [
            ("tsleep", "  | tsleep\n  |       ^ expected `=` and a programme"),
            (
                "tslep=return",
                "unknown fail site `tslep`\n  |\n  | tslep=return\n  | ^^^^^ expected a",
            ),
            ("tslep=return", "\n  = did you mean `tsleep`? the sites are vm_page"),
            ("=return", "unknown fail site ``\n"),
            ("tsleep=", "expected an action, one of off, return, sleep, delay"),
            ("tsleep=", "  | tsleep=\n  |        ^ expected [N%][M*]action"),
            ("tsleep=1*off->101%return", "a probability must be above 0 and at most"),
            ("tsleep=1*off->101%return", "off->101%return\n  |               ^^^^^^^^^^ expected"),
            ("tsleep=retrun", "\n  = did you mean `return`?"),
            ("tsleep=sleep(1)", "tsleep does not take `sleep`"),
            ("tsleep=sleep(1)", "\n  = tsleep takes off return delay panic print"),
            ("tsleep=return(3)", "tsleep can only return 0\n"),
        ] {
            let message = fail_point(text).expect_err("it is not one");
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn of_a_long_programme_only_what_stands_around_the_mistake_is_shown() {
        let text = format!("tsleep={}retrun->{}off", "1*off->".repeat(4), "1*off->".repeat(9_999));
        let message = fail_point(&text).expect_err("it is not one");
        assert!(message.len() < 1_000, "{} bytes", message.len());
        let [_, _, shown, marks, _] = message.lines().collect::<Vec<_>>()[..] else {
            panic!("{message}")
        };
        let place = marks.find('^').expect("a caret");
        assert!(shown[place..].starts_with("retrun->1*off"), "{message}");
    }

    #[test]
    fn a_setting_is_refused_with_the_rule_that_it_breaks() {
        assert_eq!(setting("kern.hz=1K"), Ok(("kern.hz".to_owned(), 1024)));
        let message = setting("kern.hertz=1").expect_err("there is none");
        assert!(
            message.contains("kern.hertz") && message.contains("vm.kmem_size_scale"),
            "{message}"
        );
        let message = setting("kern.hz=0").expect_err("it is out of range");
        assert!(
            message.contains("kern.hz must be at least 1 and at most 10000, got 0 "),
            "{message}"
        );
        assert!(setting("kern.hz").is_err() && setting("kern.hz=x").is_err());
    }
}
