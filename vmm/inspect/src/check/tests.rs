//! The rules and the book.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The rules that the sources name: literals in kebab-case.
fn rules() -> BTreeSet<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check");
    let files = fs::read_dir(dir)
        .expect("the sources are there")
        .map(|file| file.expect("it can be read").path());
    let sources = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let texts: Vec<String> =
        sources.map(|path| fs::read_to_string(path).expect("it can be read")).collect();
    let literals = texts.iter().flat_map(|text| text.split('"'));
    let is_rule = |literal: &&str| {
        literal.contains('-')
            && literal
                .split('-')
                .all(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase()))
    };
    literals.filter(is_rule).map(str::to_owned).collect()
}

#[test]
fn every_rule_is_in_the_book() {
    let book = include_str!("../../../../docs/check.md");
    let rules = rules();
    assert!(rules.len() > 70, "{rules:?}");
    let missing: Vec<_> =
        rules.iter().filter(|rule| !book.contains(&format!("`{rule}`"))).collect();
    assert!(missing.is_empty(), "docs/check.md does not describe {missing:?}");
}
