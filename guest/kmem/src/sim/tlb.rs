//! A TLB that caches every translation that was ever requested, until it is invalidated.

use std::collections::HashMap;

use vmkern_abi::pte::Pte;

/// Translations by virtual page number.
#[derive(Debug, Default)]
pub struct Tlb(HashMap<u64, Pte>);

impl Tlb {
    /// The cached entry for page `vpn`.
    pub fn get(&self, vpn: u64) -> Option<Pte> {
        self.0.get(&vpn).copied()
    }

    /// Caches the entry for page `vpn`.
    pub fn insert(&mut self, vpn: u64, pte: Pte) {
        self.0.insert(vpn, pte);
    }

    /// Drops the entries of pages `[start, end)`.
    pub fn invalidate(&mut self, start: u64, end: u64) {
        if end - start > self.0.len() as u64 {
            self.0.retain(|vpn, _| !(start..end).contains(vpn));
        } else {
            for vpn in start..end {
                self.0.remove(&vpn);
            }
        }
    }

    /// All cached entries.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Pte)> {
        self.0.iter().map(|(&vpn, &pte)| (vpn, pte))
    }
}
