//! Values of options, of the command line and of `guest`: sizes, times, numbers.

use std::time::Duration;

use super::lexer;

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
    lexer::number(digits).ok().and_then(|number| number.checked_mul(unit)).ok_or_else(expected)
}

/// A number, decimal or `0x`.
///
/// # Errors
/// What was expected.
pub fn number(text: &str) -> Result<u64, String> {
    lexer::number(text).map_err(|expected| format!("expected {expected}"))
}

/// A time: a number with a suffix of `us ms s`, or of seconds without one.
///
/// # Errors
/// What was expected.
pub fn time(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number with a suffix of us ms s, or a number of seconds".to_owned();
    if text.ends_with(['K', 'M', 'G']) {
        return Err(expected());
    }
    let number = lexer::number(text).map_err(|_| expected())?;
    Ok(if text.ends_with('s') { Duration::from_micros(number) } else { Duration::from_secs(number) })
}

/// `NAME=VALUE` of `--let`: a name of the language, and a number.
///
/// # Errors
/// What was expected.
pub fn binding(text: &str) -> Result<(String, u64), String> {
    let Some((name, value)) = text.split_once('=') else { return Err("expected NAME=VALUE".to_owned()) };
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(format!("`{name}` is not a name: expected letters, digits and _"));
    }
    Ok((name.to_owned(), number(value).map_err(|error| format!("{name}: {error}"))?))
}
