//! A TLB that remembers every translation it was ever asked for, until it is told to forget.

use std::collections::HashMap;

use vmkern_abi::pte::Pte;

/// Translations by virtual page number.
#[derive(Debug, Default)]
pub struct Tlb(HashMap<u64, Pte>);

impl Tlb {
    /// The entry remembered for page `vpn`.
    pub fn get(&self, vpn: u64) -> Option<Pte> {
        self.0.get(&vpn).copied()
    }

    /// Remembers the entry for page `vpn`.
    pub fn insert(&mut self, vpn: u64, pte: Pte) {
        self.0.insert(vpn, pte);
    }

    /// Forgets pages `[start, end)`.
    pub fn invalidate(&mut self, start: u64, end: u64) {
        if end - start > self.0.len() as u64 {
            self.0.retain(|vpn, _| !(start..end).contains(vpn));
        } else {
            for vpn in start..end {
                self.0.remove(&vpn);
            }
        }
    }

    /// All that is remembered.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Pte)> {
        self.0.iter().map(|(&vpn, &pte)| (vpn, pte))
    }
}
