//! Completion of a line that is being typed.

use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{KernReturn, MapId};

use super::fail_point;
use super::names::{self, MapField};
use super::verbs::{FLAGS, PROTECTIONS, Param, VERBS, Verb};
use super::words::KEYWORDS;
use super::{guest_line, look};
use crate::guest::{FailSite, ThreadId};

/// The completions of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The byte of the line at which the word begins.
    pub start: usize,
    /// The words that it could be, in the order of the alphabet.
    pub words: Vec<String>,
}

/// The completions of the end of `line`, where `bound` are the names that `$` reads.
#[must_use]
pub fn complete(line: &str, bound: &[String]) -> Completion {
    let start = line
        .rfind([' ', '\t', '(', '[', '|', ',', '+', '*', '/', '%', '=', '>'])
        .map_or(0, |at| at + 1);
    let (before, word) = line.split_at(start);
    let mut words = candidates(before, word, bound);
    words.retain(|candidate| candidate.starts_with(word) && candidate != word);
    words.sort();
    words.dedup();
    Completion { start, words }
}

fn candidates(before: &str, word: &str, bound: &[String]) -> Vec<String> {
    // 1. Nothing in front of the verb matters.
    let mut before = before.trim_start();
    if let Some((thread, rest)) = before.split_once(':')
        && !thread.contains('"')
    {
        before = rest.trim_start();
    }
    let mut all: Vec<&str> = before.split_whitespace().collect();
    // A flag, or the beginning of an expression, belongs to the same argument.
    if !before.ends_with(char::is_whitespace) {
        all.pop();
    }
    if let [_, "=", ..] = all[..]
        && all[0] != "let"
    {
        all.drain(..2);
    }
    // 2. The first word: a verb, a keyword, or nothing yet.
    let Some((&head, arguments)) = all.split_first() else {
        let verbs = offered().map(str::to_owned);
        let keywords = KEYWORDS.iter().map(|keyword| (*keyword).to_owned());
        return verbs.chain(keywords).collect();
    };
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    match (head, arguments) {
        ("expect", []) => {
            let mut results: Vec<String> = of(&["ok", "null", "blocked", "error", "panic \""]);
            results.extend(numbers(word, bound));
            results
        }
        ("expect", ["error"]) => of(&KernReturn::ALL.map(KernReturn::name)),
        ("start", []) => threads().map(|thread| format!("{thread}:")).collect(),
        ("guest", _) => {
            let keys = guest_line::KEYS.iter().chain(Tunables::NAMES);
            keys.map(|key| format!("{key}=")).collect()
        }
        ("help", []) => VERBS.iter().map(|verb| verb.name.to_owned()).collect(),
        ("let" | "assert" | "repeat" | "print" | "expect", _) => numbers(word, bound),
        _ => match Verb::named(head).map(|verb| (verb.params, arguments)) {
            Some(([Param::Op], [])) => offered().map(str::to_owned).collect(),
            Some(([Param::Op], _)) => {
                let inner = before.trim_start_matches(head).trim_start();
                candidates(inner, word, bound)
            }
            Some((params, arguments)) => argument(params, arguments, word, bound),
            None => Vec::new(),
        },
    }
}

/// The names of the verbs that the kernel offers.
fn offered() -> impl Iterator<Item = &'static str> {
    VERBS.iter().filter(|verb| verb.is_offered()).map(|verb| verb.name)
}

fn threads() -> impl Iterator<Item = String> {
    ThreadId::all().map(|thread| thread.to_string())
}

/// The words for the argument behind `arguments`.
fn argument(params: &[Param], arguments: &[&str], word: &str, bound: &[String]) -> Vec<String> {
    let maps = || MapId::NAMED.iter().map(|(name, _)| (*name).to_owned());
    match params.get(arguments.len()) {
        // 1. The kind of the argument says it.
        Some(Param::Map(_)) => maps().chain(values(bound)).collect(),
        Some(Param::Number(_) | Param::Chunk) => numbers(word, bound),
        Some(Param::Seed) => numbers(word, bound).into_iter().chain(["zero".to_owned()]).collect(),
        Some(Param::Flags) => FLAGS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        Some(Param::Kind) => vec!["system".to_owned()],
        Some(Param::Allows) => PROTECTIONS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        Some(Param::Amount) => {
            numbers(word, bound).into_iter().chain(["leave".to_owned()]).collect()
        }
        Some(Param::Thread) => threads().collect(),
        Some(Param::Look) => look::NAMES.iter().map(|name| (*name).to_owned()).collect(),
        Some(Param::Fail) => FailSite::ALL
            .map(FailSite::name)
            .into_iter()
            .chain(fail_point::WORDS)
            .map(str::to_owned)
            .collect(),
        Some(Param::Op | Param::File) => Vec::new(),
        // 2. Some arguments have further words behind them.
        None if params == [Param::Fail] => {
            let site = arguments.first().and_then(|name| FailSite::from_name(name));
            site.into_iter().flat_map(fail_point::actions).map(str::to_owned).collect()
        }
        None if params == [Param::Look] && arguments == ["map"] => {
            maps().chain(values(bound)).collect()
        }
        None if params == [Param::Look] => numbers(word, bound),
        None => Vec::new(),
    }
}

/// The bound names as an expression reads them.
fn values(bound: &[String]) -> impl Iterator<Item = String> {
    bound.iter().map(|name| format!("${name}"))
}

/// The words for an expression: properties, if `word` has a map in front of a dot.
fn numbers(word: &str, bound: &[String]) -> Vec<String> {
    match word.rsplit_once('.') {
        Some((map, _)) => MapField::ALL.map(|field| format!("{map}.{}", field.name())).into(),
        None => names::all().map(str::to_owned).chain(values(bound)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        complete(line, &["addr".to_owned(), "m".to_owned()]).words
    }

    #[test]
    fn each_place_of_a_line_knows_what_can_stand_there() {
        for (line, expected) in [
            ("kmem_al", &["kmem_alloc", "kmem_alloc_nofault", "kmem_alloc_wait"] as &[&str]),
            ("t1: a = kmem_alloc_w", &["kmem_alloc_wait"]),
            ("rep", &["repeat"]),
            ("kmem_alloc kme", &["kmem_map"]),
            ("kmem_free kmem_map $a", &["$addr"]),
            ("kmem_malloc kmem_map 4K NOW", &["NOWAIT"]),
            ("kmem_malloc kmem_map 4K NOWAIT|Z", &["ZERO"]),
            ("kmem_suballoc kernel_map 1M s", &["system"]),
            ("verify $addr 4K z", &["zero"]),
            ("let x = v_free_c", &["v_free_count"]),
            ("print kmem_map.max", &["kmem_map.max_free"]),
            ("assert $m.e", &["$m.entries"]),
            ("join t6", &["t60", "t61", "t62", "t63"]),
            ("inspect pa", &["page", "pages", "pagetable"]),
            ("inspect map pi", &["pipe_map"]),
            ("on_lowmem kmem_free k", &["kernel_map", "kmem_map"]),
            (
                "fail vm_page_alloc.",
                &["vm_page_alloc.interrupt", "vm_page_alloc.normal", "vm_page_alloc.system"],
            ),
            ("fail of", &["off"]),
            ("fail tsleep 1*o", &["off"]),
            ("fail vm_map_wire 5%2*off->s", &["sleep"]),
            ("fail intr_window re", &[]),
            ("expect bl", &["blocked"]),
            ("expect error KERN_NO_S", &["KERN_NO_SPACE"]),
            ("guest mem", &["memory="]),
            ("guest memory=8M kern.h", &["kern.hz="]),
            ("kmem_alloc kmem_map 4K ", &[]),
            ("squ", &["squeeze"]),
            ("madv", &[]),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_typed_is_not_offered_again() {
        assert_eq!(words("settle"), [""; 0]);
        assert_eq!(complete("read $ad", &["addr".to_owned()]).start, 5);
    }
}
