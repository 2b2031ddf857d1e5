//! Scripts in which most statements are valid, over the whole language.

mod memory;
mod threads;
mod words;

use self::memory::Piece;
use crate::dice::Dice;
use crate::numbers::{self, Clock};

/// How a script treats memory that is not its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// It frees its own memory once: the guest stays valid whatever else happens.
    Tame,
    /// It also frees memory of others.
    Wild,
}

/// What the scripts of a run may contain.
#[derive(Clone, Copy)]
pub struct Style {
    pub manners: Manners,
    pub clock: Clock,
    /// The longest sleep, in milliseconds.
    pub sleep: u64,
}

const EXPECTS: [&str; 8] = [
    "ok",
    "null",
    "blocked",
    "0",
    "error KERN_INVALID_ARGUMENT",
    "error KERN_NO_SPACE",
    "panic \"page fault\"",
    "panic \"\"",
];

pub struct Generator<'d> {
    dice: &'d mut Dice,
    style: Style,
    lines: Vec<String>,
    pieces: Vec<Piece>,
    /// Names that stand for numbers.
    names: Vec<String>,
    /// Threads that were started, but not joined.
    busy: Vec<u64>,
    /// Allocations so far.
    allocated: u64,
    /// The number of dumps that exist.
    images: u64,
    depth: u64,
}

impl<'d> Generator<'d> {
    pub fn new(dice: &'d mut Dice, style: Style) -> Self {
        Self {
            dice,
            style,
            lines: Vec::new(),
            pieces: Vec::new(),
            names: Vec::new(),
            busy: Vec::new(),
            allocated: 0,
            images: 0,
            depth: 0,
        }
    }

    /// The lines of a script.
    pub fn script(mut self) -> Vec<String> {
        self.say("m = kmem_suballoc kernel_map 64K".to_owned());
        self.say("s = kmem_suballoc kernel_map 64K system".to_owned());
        self.say("let b = 4097".to_owned());
        self.names.push("b".to_owned());
        self.allocate();
        for _ in 0..self.dice.between(1, 25) {
            self.statement();
        }
        self.lines
    }

    fn say(&mut self, line: String) {
        self.lines.push(line);
    }

    fn size(&mut self) -> String {
        numbers::size(self.dice)
    }

    fn expression(&mut self) -> String {
        numbers::expression(self.dice, &self.names, self.style.clock)
    }

    fn statement(&mut self) {
        match self.dice.between(0, 29) {
            0..=5 => self.allocate(),
            6..=9 => self.access(),
            10..=12 => self.free(),
            13..=17 => self.threads(),
            18 | 19 => self.bind(),
            20 | 21 => self.print(),
            22 => self.assert(),
            23 | 24 => self.look(),
            25 => self.image(),
            26 if self.depth < 2 => self.repeat(),
            27 => self.on_lowmem(),
            28 => self.wait(),
            _ => self.odd(),
        }
        let first = self.lines.last().and_then(|line| line.split_whitespace().next());
        let is_verb =
            !first.is_none_or(|word| ["print", "let", "assert", "end", "#"].contains(&word));
        if is_verb && self.depth == 0 && self.dice.once_in(25) {
            let expect = self.dice.word(&EXPECTS);
            self.say(format!("expect {expect}"));
        }
    }
}
