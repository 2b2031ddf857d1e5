//! Values of options: sizes, times, settings.

use std::time::Duration;

use vmkern::Guest;
use vmkern::script::parse_number;

/// A size as scripts write it, or with the suffix `T`.
pub fn size(text: &str) -> Result<u64, String> {
    let expected = || "expected a number with a suffix of K M G T, or none".to_owned();
    let (digits, unit) = text.strip_suffix('T').map_or((text, 1), |digits| (digits, 1 << 40));
    if digits.ends_with('s') {
        return Err(expected());
    }
    parse_number(digits).ok().and_then(|number| number.checked_mul(unit)).ok_or_else(expected)
}

/// A number, decimal or `0x`.
pub fn number(text: &str) -> Result<u64, String> {
    parse_number(text).map_err(|expected| format!("expected {expected}"))
}

/// A time: a number with a suffix of `us ms s`, or of seconds without one. One that is too long to tell is the longest that
/// there is.
pub fn time(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number with a suffix of us ms s, or a number of seconds".to_owned();
    if text.ends_with(['K', 'M', 'G']) {
        return Err(expected());
    }
    let is_of_seconds = !text.ends_with('s');
    let with_suffix = if is_of_seconds { format!("{text}s") } else { text.to_owned() };
    Ok(match parse_number(&with_suffix).map_err(|_| expected())? {
        u64::MAX => Duration::MAX,
        micros => Duration::from_micros(micros),
    })
}

/// `NAME=VALUE` of a kernel tunable.
pub fn setting(text: &str) -> Result<(String, u64), String> {
    let Some((name, value)) = text.split_once('=') else { return Err("expected NAME=VALUE".to_owned()) };
    let value = parse_number(value).map_err(|expected| format!("{name}: expected {expected}"))?;
    // Refused here, the option is named together with the rule.
    Guest::builder().tunable(name, value).map(|_| (name.to_owned(), value)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_or_are_seconds() {
        assert_eq!(time("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(time("60"), Ok(Duration::from_secs(60)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        for long in
            ["18446744073709551615", "9223372036854775808s", "99999999999999999999999ms", "18446744073709551615us"]
        {
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
    fn a_setting_is_refused_with_the_rule_that_it_breaks() {
        assert_eq!(setting("kern.hz=1K"), Ok(("kern.hz".to_owned(), 1024)));
        let message = setting("kern.hertz=1").expect_err("there is none");
        assert!(message.contains("kern.hertz") && message.contains("vm.kmem_size_scale"), "{message}");
        let message = setting("kern.hz=0").expect_err("it is out of range");
        assert!(message.contains("kern.hz: 0 ") && message.contains("at least 1 and at most 10000"), "{message}");
        assert!(setting("kern.hz").is_err() && setting("kern.hz=x").is_err());
    }
}
