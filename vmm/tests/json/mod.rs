//! The numbers of a JSON text, as written.

use std::collections::BTreeSet;

/// Every number of `json` outside strings.
pub fn numbers(json: &str) -> Vec<&str> {
    let mut numbers = Vec::new();
    let mut rest = json;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        rest = &rest[at..];
        if let Some(text) = rest.strip_prefix('"') {
            rest = behind_string(text);
        } else {
            let is_of_number = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
            let len = rest.find(|c| !is_of_number(c)).unwrap_or(rest.len());
            numbers.push(&rest[..len]);
            rest = &rest[len..];
        }
    }
    numbers
}

/// The rest of `text` after a string whose opening quote came just before `text`.
fn behind_string(text: &str) -> &str {
    let mut escaped = false;
    let is_end = |c: char| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    };
    text.find(is_end).map_or("", |end| &text[end + 1..])
}

/// The numbers of `json` whose digits change when a reader converts them to a double and back.
pub fn changed_by_a_double(json: &str) -> BTreeSet<&str> {
    let is_changed = |number: &&str| {
        let double: f64 = number.parse().unwrap_or_else(|_| panic!("{number} is not a number"));
        double.to_string() != **number
    };
    numbers(json).into_iter().filter(is_changed).collect()
}
