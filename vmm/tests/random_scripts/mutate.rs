//! Scripts of the corpus with mutations of lines, words and bytes.

use std::fs;
use std::path::Path;

use vmkern::script::VERBS;
use vmkern::script::suite::discover;

use crate::dice::Dice;
use crate::numbers::{EDGES, MAPS};

/// Words that can replace a word.
const WORDS: [&str; 22] = [
    "let",
    "expect",
    "assert",
    "repeat",
    "end",
    "print",
    "start",
    "guest",
    "ok",
    "null",
    "blocked",
    "error",
    "panic",
    "zero",
    "system",
    "WAITOK",
    "NOWAIT|ZERO",
    "intr:",
    "t1:",
    "t[2]:",
    "=",
    "$a",
];

/// The corpus. Nothing in it writes a file.
pub fn corpus() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts");
    let files = discover(&dir).expect("the corpus is there").scripts;
    let text = |path| fs::read_to_string(path).expect("it is text").replace("dump", "check");
    files.into_iter().map(text).collect()
}

/// A script of `corpus` with up to four mutations of lines and words, and possibly one of bytes.
pub fn script(dice: &mut Dice, corpus: &[String]) -> Vec<u8> {
    let mut lines: Vec<String> = dice.pick(corpus).lines().map(str::to_owned).collect();
    for _ in 0..*dice.pick(&[1, 1, 1, 2, 4]) {
        if lines.is_empty() {
            break;
        }
        if dice.once_in(2) {
            mutate_lines(dice, &mut lines, corpus)
        } else {
            mutate_words(dice, &mut lines)
        }
    }
    let text = lines.join("\n") + "\n";
    if dice.once_in(3) { mutate_bytes(dice, text) } else { text.into_bytes() }
}

fn mutate_lines(dice: &mut Dice, lines: &mut Vec<String>, corpus: &[String]) {
    let (at, other) = (dice.below(lines.len()), dice.below(lines.len()));
    match dice.between(0, 6) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[other].clone()),
        2 => lines.swap(at, other),
        3 => lines.truncate(at),
        4 => {
            let foreign: Vec<&str> = dice.pick(corpus).lines().collect();
            lines.insert(at, (*dice.pick(&foreign)).to_owned());
        }
        5 => lines[at] = format!("start t{}: {}", dice.between(0, 3), lines[at]),
        _ => {
            let keep = dice.between(0, 60);
            lines[at] = lines[at].chars().take(usize::try_from(keep).expect("a count")).collect();
        }
    }
}

fn mutate_words(dice: &mut Dice, lines: &mut [String]) {
    let at = dice.below(lines.len());
    let line = &mut lines[at];
    if dice.once_in(4) {
        *line = line.chars().filter(|_| !dice.once_in(20)).collect();
        return;
    }
    let mut words: Vec<&str> = line.split(' ').collect();
    let is_number = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    let numbers: Vec<usize> = (0..words.len()).filter(|&word| is_number(words[word])).collect();
    let any = dice.below(words.len());
    let word = if numbers.is_empty() || dice.once_in(3) { any } else { *dice.pick(&numbers) };
    words[word] = match dice.between(0, 5) {
        _ if is_number(words[word]) => dice.word(&EDGES),
        0 | 1 => dice.word(&EDGES),
        2 => dice.word(&MAPS),
        3 => {
            // Scripts must not write files.
            let verbs = VERBS.iter().filter(|verb| verb.name != "dump");
            dice.pick(&verbs.collect::<Vec<_>>()).name
        }
        _ => dice.word(&WORDS),
    };
    *line = words.join(" ");
}

fn mutate_bytes(dice: &mut Dice, mut text: String) -> Vec<u8> {
    match dice.between(0, 8) {
        0 => return text.replace('\n', "\r\n").into_bytes(),
        1 => text = text.trim_end().to_owned(),
        2 => text.insert(0, '\u{feff}'),
        3 => text.push_str(&long_line(dice)),
        4 => text = text.replacen('\n', &format!(" # {}\n", "long ".repeat(100_000)), 1),
        _ => return mutate_raw(dice, text.into_bytes()),
    }
    text.into_bytes()
}

/// Mutates bytes: the result may not be text any more.
fn mutate_raw(dice: &mut Dice, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..dice.between(1, 3) {
        if bytes.is_empty() {
            break;
        }
        let at = dice.below(bytes.len());
        match dice.between(0, 4) {
            0 => bytes[at] ^= 1 << dice.between(0, 7),
            1 => bytes.insert(at, *dice.pick(&[0, 0x1b, 0x7f, 0xa0, 0xff, b'"', b'\r'])),
            2 => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => bytes.extend_from_within(at..),
        }
    }
    bytes
}

/// A statement of many kilobytes.
fn long_line(dice: &mut Dice) -> String {
    let many = *dice.pick(&[60, 65, 1000, 100_000]);
    match dice.between(0, 5) {
        0 => format!("let a = {}1{}", "(".repeat(many), ")".repeat(many)),
        1 => format!("let a = 0{}", " + 1".repeat(many)),
        2 => format!("print \"{}\"", "x".repeat(many)),
        3 => format!("{} 4K", "kmem_alloc".repeat(many)),
        4 => format!("{}settle\n{}", "repeat 1\n".repeat(many), "end\n".repeat(many)),
        _ => format!("kmem_malloc kmem_map 4K NOWAIT{}", "|ZERO".repeat(many)),
    }
}
