//! The rules and the book.

use std::collections::BTreeSet;

use super::*;

#[test]
fn every_rule_is_in_the_book() {
    let rules: Vec<_> = rules().collect();
    assert!(rules.len() > 70, "{rules:?}");
    assert_eq!(rules.len(), PARTS.iter().map(|part| part.rules.len()).sum::<usize>());
    let page = include_str!("../../../../docs/check.md");
    let missing: Vec<_> =
        book().lines().filter(|row| !page.contains(row)).map(str::to_owned).collect();
    assert!(missing.is_empty(), "docs/check.md is out of date: {missing:#?}");
}

#[test]
fn a_rule_has_one_identifier_in_kebab_case_and_a_sentence_without_a_full_stop() {
    let mut seen = BTreeSet::new();
    for found in rules() {
        assert!(seen.insert(found.id), "{found:?} is in the tables twice");
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
        assert!(found.id.split('-').all(is_word), "{found:?}");
        assert!(!found.says.is_empty() && !found.says.ends_with('.'), "{found:?}");
        assert!(rule(found.id) == Some(found) && rule(&found.id.to_uppercase()).is_none());
    }
}
