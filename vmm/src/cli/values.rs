//! Values of options: sizes, times, settings.

use std::time::Duration;

use vmkern::script::parse_number;
use vmkern::{ConfigError, Tunables};

/// A number as scripts write it, with a suffix of `K M G` or none.
pub fn size(text: &str) -> Result<u64, String> {
    if text.ends_with('s') {
        return Err("a size has a suffix of K M G, or none".to_owned());
    }
    parse_number(text).map_err(|expected| format!("expected {expected}"))
}

/// A time: a number with a suffix of `us ms s`, or of seconds without one.
pub fn time(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number with a suffix of us ms s, or a number of seconds".to_owned();
    if text.ends_with(['K', 'M', 'G']) {
        return Err(expected());
    }
    let number = parse_number(text).map_err(|_| expected())?;
    Ok(if text.ends_with('s') { Duration::from_micros(number) } else { Duration::from_secs(number) })
}

/// `NAME=VALUE` of a kernel tunable.
pub fn setting(text: &str) -> Result<(String, u64), String> {
    let Some((name, value)) = text.split_once('=') else { return Err("expected NAME=VALUE".to_owned()) };
    let value = parse_number(value).map_err(|expected| format!("{name}: expected {expected}"))?;
    if !Tunables::NAMES.contains(&name) {
        return Err(ConfigError::UnknownTunable(name.to_owned()).to_string());
    }
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_or_are_seconds() {
        assert_eq!(time("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(time("60"), Ok(Duration::from_secs(60)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert!(time("5K").is_err() && time("").is_err() && time("-1").is_err());
    }

    #[test]
    fn an_unknown_tunable_lists_the_known_ones() {
        assert_eq!(setting("kern.hz=1K"), Ok(("kern.hz".to_owned(), 1024)));
        let message = setting("kern.hertz=1").expect_err("there is none");
        assert!(message.contains("kern.hertz") && message.contains("vm.kmem_size_scale"), "{message}");
        assert!(setting("kern.hz").is_err() && setting("kern.hz=x").is_err());
    }
}
