//! The contents of memory: writes patterns, and checks them later.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::Op;

use super::World;
use crate::sim::histories::naive::{Allows, Content, Memory, What, pages};

impl World {
    /// A seed for a pattern.
    pub fn seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// Writes a new pattern into memory that the model knows; only into both ends if there is much
    /// of it.
    pub fn fill(&mut self, start: u64, bytes: u64) {
        let most = 4 * PAGE_SIZE;
        if bytes > 2 * most {
            self.fill(start, most);
            return self.fill(start + bytes - most, most);
        }
        let seed = self.seed();
        self.ok(Op::Fill { addr: GuestVirt::new(start), size: bytes, seed });
        self.filled(start, bytes, seed);
    }

    /// Records that memory that the model knows has a new pattern.
    pub fn filled(&mut self, start: u64, bytes: u64, seed: u64) {
        for va in pages(start, bytes) {
            if let Some(memory) = self.naive.memory.get_mut(&va) {
                memory.content = Content::Pattern(seed);
            }
        }
    }

    /// Checks that the memory of `[start, end)` holds what it should, where it can be read.
    pub fn verify(&mut self, start: u64, end: u64) {
        let mut known: Vec<(u64, u64, Content)> = Vec::new();
        for (&va, memory) in self.naive.memory.range(start..end) {
            if !memory.allows.reads() {
                continue;
            }
            match known.last_mut() {
                Some((at, bytes, content)) if *at + *bytes == va && *content == memory.content => {
                    *bytes += PAGE_SIZE
                }
                _ => known.push((va, PAGE_SIZE, memory.content)),
            }
        }
        for (at, size, content) in known {
            let addr = GuestVirt::new(at);
            match content {
                Content::Unknown => {}
                Content::Zero => self.ok(Op::VerifyZero { addr, size }),
                Content::Pattern(seed) => self.ok(Op::Verify { addr, size, seed }),
            }
        }
    }

    /// Checks a new allocation of wired memory, and fills it.
    pub fn arrived(&mut self, start: u64, bytes: u64, what: What, content: Content) {
        self.naive.back(start, bytes, what, content);
        self.verify(start, start + bytes);
        self.fill(start, bytes);
    }

    /// Records that pages of a pageable range, which allows this, exist.
    pub fn exist(&mut self, start: u64, bytes: u64, allows: Allows) {
        let new = Memory { content: Content::Zero, what: What::Pageable, allows };
        for va in pages(start, bytes) {
            self.naive.memory.entry(va).or_insert(new);
        }
    }

    /// Records that pages of a pageable range, which can be written, exist.
    pub fn touched(&mut self, start: u64, bytes: u64) {
        let allows = self.naive.allows(start);
        self.exist(start, bytes, allows);
        self.verify(start, start + bytes);
        self.fill(start, bytes);
    }
}
