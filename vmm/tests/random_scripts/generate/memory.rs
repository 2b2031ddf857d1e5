//! Statements that allocate, free and use memory.

use super::{Generator, Manners};
use crate::numbers::{self, EDGES, MAPS};

const FLAGS: [&str; 6] = ["", "NOWAIT", "WAITOK", "NOWAIT|ZERO", "ZERO", "NOWAIT|USE_RESERVE"];

/// Memory that a script has allocated.
#[derive(Clone)]
pub struct Piece {
    pub name: String,
    pub map: String,
    pub size: String,
    pub free: &'static str,
    /// Its pages, if it is known to be address space without memory.
    pub window: u64,
}

impl Generator<'_> {
    /// The verb of an allocation with its arguments, and what is needed to free it.
    pub(super) fn allocation(&mut self) -> (String, Piece) {
        let (name, mut size) = (format!("a{}", self.allocated), self.size());
        let (verb, map, free) = match self.dice.between(0, 9) {
            0 => ("kmem_alloc", self.dice.word(&MAPS), "kmem_free"),
            1 => ("kmem_malloc", self.dice.word(&MAPS), "kmem_free"),
            2 => ("kmem_alloc_wait", self.dice.word(&MAPS), "kmem_free_wakeup"),
            3 => ("kmem_alloc", "kernel_map", "kmem_free"),
            4 | 5 => ("kmem_malloc", self.dice.word(&["kmem_map", "$s"]), "kmem_free"),
            6 | 7 => ("kmem_alloc_wait", self.dice.word(&["$m", "exec_map"]), "kmem_free_wakeup"),
            _ => ("kmem_alloc_nofault", self.dice.word(&["kernel_map", "$s"]), "kmem_free"),
        };
        let flags = if verb == "kmem_malloc" { self.dice.word(&FLAGS) } else { "" };
        let mut call = format!("{verb} {map} {size} {flags}").trim_end().to_owned();
        if ["rand", "free", ".", "0xffff", "1844"].iter().any(|part| size.contains(part)) {
            // Later statements use a fixed size: this one varies, or is so large that a range from
            // null on would reach the kernel's memory.
            size = "4K".to_owned();
        }
        if verb == "kmem_alloc" && self.dice.once_in(9) {
            call = call.replace(' ', "\t  ");
        }
        let kilobytes = size.strip_suffix('K').and_then(|size| size.parse().ok());
        let window =
            kilobytes.filter(|_| verb == "kmem_alloc_nofault").map_or(0, |size: u64| size / 4);
        (call, Piece { name, map: map.to_owned(), size, free, window })
    }

    pub(super) fn allocate(&mut self) {
        let (call, mut piece) = self.allocation();
        self.allocated += 1;
        let runner = self.runner();
        if self.dice.once_in(6) {
            // One of a series; in a loop, all of it.
            let place = if self.depth > 0 { "$i" } else { "7 + 0 % 5" };
            self.say(format!("{runner}p{}[{place}] = {call}", piece.name));
            piece.name = format!("p{}[{}]", piece.name, if self.depth > 0 { 0 } else { 2 });
        } else {
            self.say(format!("{runner}{} = {call}", piece.name));
        }
        self.names.push(piece.name.clone());
        self.pieces.push(piece);
    }

    pub(super) fn free(&mut self) {
        if self.style.manners == Manners::Wild && self.dice.once_in(2) {
            let (map, size) = (self.dice.word(&MAPS), self.size());
            let verb = self.dice.word(&["kmem_free", "kmem_free_wakeup"]);
            let address = numbers::edge(self.dice);
            let runner = self.runner();
            return self.say(format!("{runner}{verb} {map} {address} {size}"));
        }
        if self.pieces.is_empty() || self.depth > 0 {
            return self.wait();
        }
        let at = self.dice.below(self.pieces.len());
        if self.style.manners == Manners::Tame && self.pieces[at].window > 0 {
            // It may contain pages, and those of `pmap_qenter` are not freed with it.
            return self.wait();
        }
        let Piece { name, map, size, free, .. } = self.pieces.swap_remove(at);
        let runner = self.runner();
        self.say(format!("{runner}{free} {map} ${name} {size}"));
        if self.style.manners == Manners::Tame {
            // Do not write there any more: the kernel may reuse it.
            self.names.retain(|other| *other != name);
        }
    }

    /// An address and a size: mostly within a piece.
    pub(super) fn range(&mut self) -> (String, String) {
        if self.pieces.is_empty() || self.dice.once_in(12) {
            return (numbers::edge(self.dice), self.size());
        }
        let below = self.pieces.len();
        let Piece { name, size, .. } = self.pieces[self.dice.below(below)].clone();
        match self.dice.between(0, 4) {
            0 => (format!("${name}"), self.dice.between(1, 4096).to_string()),
            1 => (format!("(${name} + {})", self.dice.between(1, 4088)), "1".to_owned()),
            _ => (format!("${name}"), size),
        }
    }

    /// A statement that fills or empties a window. Mapped pages outside allocations would be a
    /// finding.
    fn window(&mut self, address: String) -> String {
        let windows: Vec<&Piece> = self.pieces.iter().filter(|piece| piece.window > 0).collect();
        let (address, count) = if self.style.manners == Manners::Wild {
            (address, self.dice.between(0, 5))
        } else if windows.is_empty() {
            let nowhere = ["0", "4097", "0xffff800000000000", "kernel_map.max"];
            (self.dice.word(&nowhere).to_owned(), self.dice.between(0, 5))
        } else {
            let Piece { name, window, .. } = (*self.dice.pick(&windows)).clone();
            (format!("${name}"), self.dice.between(0, window))
        };
        let verb = self.dice.word(&["pmap_qenter", "pmap_qenter", "pmap_qremove"]);
        format!("{verb} {address} {count}")
    }

    /// Protects a piece. A tame script opens it again, and spares windows: the pages of one that is
    /// closed are lost.
    fn protect(&mut self) {
        let is_tame = self.style.manners == Manners::Tame;
        let pieces: Vec<Piece> =
            self.pieces.iter().filter(|piece| !is_tame || piece.window == 0).cloned().collect();
        if pieces.is_empty() {
            return self.wait();
        }
        let Piece { name, map, size, .. } = self.dice.pick(&pieces).clone();
        let allows = self.dice.word(&["rw", "r", "none"]);
        self.say(format!("protect {map} ${name} {size} {allows}"));
        if is_tame {
            self.say(format!("protect {map} ${name} {size} rw"));
        }
    }

    pub(super) fn access(&mut self) {
        if self.dice.once_in(10) {
            return self.protect();
        }
        let (address, size) = self.range();
        let runner = self.runner();
        let seed = self.dice.between(0, 9);
        // Write only to the script's own memory, or to unmapped addresses.
        let own = if address.starts_with(['$', '(']) && !address.contains('.') {
            address.clone()
        } else {
            self.dice.word(&["0", "0xffff800000000000", "18446744073709551608"]).to_owned()
        };
        let call = match self.dice.between(0, 9) {
            0 | 1 => format!("fill {own} {size} {seed}"),
            2 => format!("verify {address} {size} {seed}"),
            3 => format!("verify {address} {size} zero"),
            4 => format!("read {address}"),
            5 => format!("write {own} {}", self.dice.word(&EDGES)),
            6 => format!("touch {own} {size}"),
            7 | 8 => self.window(address),
            _ => format!("vtop {address}"),
        };
        self.say(format!("{runner}{call}"));
    }
}
