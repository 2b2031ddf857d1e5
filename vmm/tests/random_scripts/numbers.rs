//! Numbers and expressions, above all those at an edge.

use vmkern::abi::layout::VmMeter;

use crate::dice::Dice;

pub const MAPS: [&str; 9] = [
    "kernel_map",
    "kmem_map",
    "exec_map",
    "pipe_map",
    "buffer_map",
    "clean_map",
    "pager_map",
    "$m",
    "$s",
];
pub const FIELDS: [&str; 5] = ["min", "max", "size", "entries", "max_free"];

/// Numbers at which behaviour changes.
pub const EDGES: [&str; 24] = [
    "0",
    "1",
    "7",
    "4K-1",
    "4096",
    "4K+1",
    "page_size",
    "0x10000",
    "1M",
    "0x7fffffff",
    "2G",
    "0x80000001",
    "4G-1",
    "4294967296",
    "4G+1",
    "0x7fffffffffff",
    "0x800000000000",
    "9223372036854775807",
    "0x8000000000000000",
    "0xffff800000000000",
    "0xffffffff80000000",
    "0xfffffffffffff000",
    "18446744073709551608",
    "18446744073709551615",
];
/// Numbers around a map's limits.
const LIMITS: [&str; 14] = [
    "kmem_map.min",
    "kmem_map.max",
    "kmem_map.max-1",
    "kmem_map.max_free",
    "kmem_map.max_free+1",
    "kernel_map.min-1",
    "kernel_map.max",
    "$m.min",
    "$m.min+4K",
    "$m.max",
    "$m.max-4K",
    "$m.max_free",
    "$m.max_free+1",
    "$s.max_free",
];
/// Numbers that are invalid, or that use an undefined name.
const WRONG: [&str; 10] = [
    "18446744073709551616",
    "0x",
    "12k",
    "1-2",
    "1/0",
    "$nothing",
    "swap_free",
    "rand(2,1)",
    "kmem_map",
    "hex(1)",
];
const OPERATORS: [&str; 5] = ["+", "-", "*", "/", "%"];

/// Whether a script may use the processor's clock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    May,
    MayNot,
}

/// A size of a few pages, mostly.
pub fn size(dice: &mut Dice) -> String {
    match dice.between(0, 11) {
        0 => dice.word(&EDGES).to_owned(),
        1 => dice.word(&LIMITS).to_owned(),
        2 => "v_free_count*4K".to_owned(),
        3 => format!("rand(1,{})", dice.between(1, 70_000)),
        4 => format!("{}", dice.between(1, 20_000)),
        _ => format!("{}K", 4 * dice.between(1, 16)),
    }
}

/// An address at which the script has no memory.
pub fn edge(dice: &mut Dice) -> String {
    if dice.once_in(2) { dice.word(&EDGES).to_owned() } else { dice.word(&LIMITS).to_owned() }
}

/// One term of an expression.
fn term(dice: &mut Dice, names: &[String], clock: Clock) -> String {
    match dice.between(0, 9) {
        0 | 1 => dice.word(&EDGES).to_owned(),
        2 => dice.word(&LIMITS).to_owned(),
        3 => dice.word(VmMeter::NAMES).to_owned(),
        4 => format!("{}.{}", dice.word(&MAPS), dice.word(&FIELDS)),
        5 => format!("rand({0},{0}+{1})", dice.between(0, 9), dice.between(0, 1 << 20)),
        6 if clock == Clock::May => "cycles".to_owned(),
        6 | 7 => dice.word(&["now", "page_size", "3ms", "2s", "5us", "16K"]).to_owned(),
        8 if !names.is_empty() => format!("${}", dice.pick(names)),
        _ => dice.between(0, 100).to_string(),
    }
}

/// An expression, with optional blanks.
pub fn expression(dice: &mut Dice, names: &[String], clock: Clock) -> String {
    if dice.once_in(60) {
        return dice.word(&WRONG).to_owned();
    }
    let mut text = term(dice, names, clock);
    for _ in 0..dice.between(0, 2) {
        // Most sums fit.
        let operator = if dice.once_in(3) { *dice.pick(&OPERATORS) } else { "%" };
        let right = match operator {
            "%" | "/" => dice.between(1, 99).to_string(),
            _ => term(dice, names, clock),
        };
        text = if dice.once_in(4) {
            format!("({text}) {operator} ({right})")
        } else {
            format!("{text} {operator} {right}")
        };
    }
    text
}
