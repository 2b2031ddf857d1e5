//! Seeded damage to the bytes of a dump.

use std::ops::Range;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmkern::GuestPhys;
use vmkern::dump::Dump;
use vmkern::inspect::Source as _;
use vmkern_tests::damage::anatomy::{Anatomy, Part};

/// A dump to be damaged.
pub struct Victim {
    /// The undamaged file.
    pub bytes: Vec<u8>,
    /// Where the fields of structures lie in the file, grouped by structure and field.
    fields: Vec<Vec<Range<usize>>>,
    /// Bytes of the headers and notes.
    head: usize,
}

/// The changes to the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Offsets, with the bytes that are written there.
    pub patches: Vec<(usize, Vec<u8>)>,
    /// Its new length, if that changes.
    pub len: Option<usize>,
}

/// Values that often cause errors.
const AWKWARD: [u64; 12] = [
    0,
    1,
    u64::MAX,
    u32::MAX as u64,
    1 << 31,
    1 << 63,
    0xfff,
    0xffff_ff00_0000_0000,
    0xffff_ff7f_ffff_fff8,
    0xffff_ffff_ffff_f000,
    0x0000_8000_0000_0000,
    0x000f_ffff_ffff_f000,
];

impl Victim {
    /// The file with these bytes, from which `image` was opened.
    pub fn new(bytes: Vec<u8>, image: &Dump) -> Self {
        let mut parts: Vec<Part> = Anatomy::of(image).parts;
        parts.sort_by_key(|part| (part.structure, part.field));
        let runs = Runs::of(&bytes);
        let mut fields: Vec<Vec<Range<usize>>> = Vec::new();
        for group in parts.chunk_by(|a, b| (a.structure, a.field) == (b.structure, b.field)) {
            let places = group.iter().filter_map(|part| {
                let at = runs.offset(part.at)?;
                Some(at..at + usize::try_from(part.size).expect("a field is small"))
            });
            let places: Vec<_> = places.collect();
            if !places.is_empty() {
                fields.push(places);
            }
        }
        // The first words of the control region.
        let control =
            runs.offset(image.anchors().control).expect("the control region was written to");
        fields.push((0..24).map(|word| control + word * 8..control + word * 8 + 8).collect());
        Self { head: runs.head, bytes, fields }
    }

    /// The damage of case number `seed`.
    pub fn damage(&self, seed: u64) -> Damage {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut draw = |below: usize| {
            usize::try_from(random.next_u64() % below.max(1) as u64).expect("it fits")
        };
        let mut damage = Damage::default();
        let kind = draw(100);
        if kind < 6 {
            damage.len = Some(if draw(8) == 0 {
                self.bytes.len() + draw(1 << 16)
            } else {
                draw(self.bytes.len() + 1)
            });
            return damage;
        }
        let times = [1, 1, 1, 2, 3, 8, 40][draw(7)];
        for _ in 0..times {
            let place = match kind {
                6..26 => self.within(0..self.head, draw(self.head), 1 + draw(8)),
                26..36 => self.within(0..self.bytes.len(), draw(self.bytes.len()), 1 + draw(8)),
                36..40 => self.within(0..self.bytes.len(), draw(self.bytes.len()) & !0xfff, 4096),
                _ => {
                    let group = &self.fields[draw(self.fields.len())];
                    let field = group[draw(group.len())].clone();
                    let word = field.start + draw(field.len().div_ceil(8)) * 8;
                    word..field.end.min(word + 8)
                }
            };
            let old = &self.bytes[place.clone()];
            let new = match draw(8) {
                0..3 => {
                    let mut new = old.to_vec();
                    new[draw(old.len())] ^= 1 << draw(8);
                    new
                }
                3 => old.iter().map(|_| u8::try_from(draw(256)).expect("it is a byte")).collect(),
                4 => AWKWARD[draw(AWKWARD.len())]
                    .to_le_bytes()
                    .into_iter()
                    .cycle()
                    .take(old.len())
                    .collect(),
                5 => {
                    let mut word = [0; 8];
                    let len = old.len().min(8);
                    word[..len].copy_from_slice(&old[..len]);
                    let step = [1, 8, 64, 4096, u64::MAX, u64::MAX - 63][draw(6)];
                    let moved = u64::from_le_bytes(word).wrapping_add(step).to_le_bytes();
                    moved.into_iter().cycle().take(old.len()).collect()
                }
                6 => {
                    // The content of another field.
                    let group = &self.fields[draw(self.fields.len())];
                    let from = group[draw(group.len())].start.min(self.bytes.len() - old.len());
                    self.bytes[from..from + old.len()].to_vec()
                }
                _ => vec![0; old.len()],
            };
            damage.patches.push((place.start, new));
        }
        damage
    }

    fn within(&self, range: Range<usize>, start: usize, len: usize) -> Range<usize> {
        let start = start.min(range.end - 1);
        start..(start + len).min(range.end).min(self.bytes.len())
    }
}

/// Which parts of memory the file holds, and where, from its program headers.
struct Runs {
    runs: Vec<(u64, u64, u64)>,
    head: usize,
}

impl Runs {
    fn of(bytes: &[u8]) -> Self {
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let (table, count) = (
            usize::try_from(word(32)).expect("it fits"),
            usize::from(bytes[56]) | usize::from(bytes[57]) << 8,
        );
        let mut runs = Vec::new();
        let mut head = 0;
        for header in (0..count).map(|index| table + index * 56) {
            let (kind, offset, phys, stored) = (
                word(header) & 0xffff_ffff,
                word(header + 8),
                word(header + 24),
                word(header + 32),
            );
            if kind == 1 && stored > 0 {
                runs.push((phys, stored, offset));
                let offset = usize::try_from(offset).expect("it fits");
                head = if head == 0 { offset } else { head.min(offset) };
            }
        }
        Self { runs, head }
    }

    fn offset(&self, at: GuestPhys) -> Option<usize> {
        let at = at.get();
        let (phys, _, offset) =
            self.runs.iter().find(|(phys, len, _)| (*phys..phys + len).contains(&at))?;
        usize::try_from(offset + at - phys).ok()
    }
}
