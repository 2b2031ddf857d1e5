//! Fail points (`fail(9)`): places in the kernel at which a test can make it fail, wait or die.
//!
//! The host arms a site by a programme of [terms](FailTerm) in the control region, and the kernel
//! executes the programme each time it comes to the site. Nothing else is involved: no operation,
//! no thread of the kernel. So a site can be armed before the kernel's first instruction, and while
//! the kernel does not answer.
//!
//! **Protocol.** A bit of [`ControlRegion::fail_armed`](crate::control::ControlRegion) says whether
//! a site is armed; the kernel reads nothing else at a site that is not. The host changes a
//! programme while [`FailPoint::generation`] is odd. The kernel reads the generation before and
//! after it has chosen a term, and executes nothing when the generation has changed or is odd.
//! Counts of remaining executions are taken atomically, so a term with a count of 1 is executed by
//! one CPU. They stand beside a tag of their programme, so a CPU that is late takes nothing from
//! the next programme.
//!
//! **Evaluation** is that of `fail(9)`: terms in order, probability before count, and the first
//! term that executes ends the evaluation. Only a `print` with an argument other than 0 goes on to
//! the next term, of the same programme.

#[cfg(all(test, loom))]
mod loom;
mod site;
mod spec;
#[cfg(test)]
mod tests;

use zerocopy::{FromBytes, KnownLayout};

pub use self::site::{FailSite, Returns, Sleeps};
pub use self::spec::{FailSpec, SpecError, SpecRule, Term};
use crate::addr::GuestVirt;
use crate::atomic::{Ordering, fence};
use crate::codes::codes;
use crate::crash::FRAMES_MAX;
use crate::field::{Code, Field, Flag};

codes! {
    /// What a term does (`enum fail_point_t`).
    pub enum FailAction: u32 {
        /// Nothing: the site behaves as if it were not armed.
        Off = 1 => "off",
        /// The function fails, with the argument as its value.
        Return = 2 => "return",
        /// The thread sleeps for as many milliseconds as the argument says.
        Sleep = 3 => "sleep",
        /// The CPU spins for as many microseconds as the argument says.
        Delay = 4 => "delay",
        /// The kernel panics.
        Panic = 5 => "panic",
        /// The kernel writes a line to its log.
        Print = 6 => "print",
    }
}

/// Terms of a programme.
pub const TERMS_MAX: usize = 8;

/// Parts of a probability: this many are 100 %.
pub const CHANCE_MAX: u32 = 1_000_000;

/// Bits of a count in [`FailTerm::left`].
const COUNT_BITS: u32 = 48;

/// The count of a term without a limit; a greater one is none, either.
pub const UNLIMITED: u64 = (1 << COUNT_BITS) - 1;

/// The tag of a programme of this generation, beside its counts. Tags repeat after 2^16 programmes,
/// which no evaluation lasts for.
const fn tag(generation: u32) -> u64 {
    (generation as u64 >> 1) << COUNT_BITS
}

/// A term of a programme.
#[derive(Debug, Default, FromBytes, KnownLayout)]
#[repr(C)]
pub struct FailTerm {
    /// Executions that remain, or [`UNLIMITED`], in the low 48 bits; the programme's tag above.
    pub left: Field<u64>,
    /// The argument, as the action understands it.
    pub argument: Field<u64>,
    /// The probability of an execution in millionths, 1 to [`CHANCE_MAX`].
    pub chance: Field<u32>,
    /// What is executed.
    pub action: Field<Code<FailAction>>,
}

/// A site's programme and counts (`struct fail_point`).
#[derive(Debug, Default, FromBytes, KnownLayout)]
#[repr(C)]
pub struct FailPoint {
    /// Odd while the host changes the programme; the host writes it.
    pub generation: Field<u32>,
    /// Terms of the programme, at most [`TERMS_MAX`].
    pub length: Field<u32>,
    /// How often the kernel came to the site while it was armed.
    pub hits: Field<u64>,
    /// How often it executed a term other than `off`.
    pub fires: Field<u64>,
    /// The programme.
    pub terms: [FailTerm; TERMS_MAX],
}

/// The last execution of a term other than `off` or `print`, for reports.
#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C)]
pub struct FireRecord {
    /// The site's number ([`FailSite`]); valid if any site's `fires` is not 0.
    pub site: Field<Code<FailSite>>,
    /// The thread's number, or `u32::MAX` if there were no threads yet.
    pub thread: Field<u32>,
    /// Which hit of the site it was, counted from 1.
    pub hit: Field<u64>,
    /// Words of `frames` in use.
    pub frames_len: Field<u32>,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// Return addresses, innermost first.
    pub frames: [Field<GuestVirt>; FRAMES_MAX],
}

/// Call stacks in [`FailStacks`].
pub const STACKS_MAX: usize = 1024;

/// The call stacks that have failed already. While the list is in use, a term executes only on a
/// stack that is not in it, and adds that stack.
#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C)]
pub struct FailStacks {
    /// Whether the list is in use; the host writes it before the kernel runs.
    pub on: Field<Flag>,
    /// Hashes in the list, at most [`STACKS_MAX`]. The host writes the first ones before the kernel
    /// runs, and the kernel adds to them.
    pub length: Field<u32>,
    /// Hashes of site and return addresses.
    pub hashes: [Field<u64>; STACKS_MAX],
}

/// All sites, in the control region.
#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C)]
pub struct FailPoints {
    /// State of the generator for probabilities. The host writes it before the kernel runs.
    pub random: Field<u64>,
    /// The sites, by number.
    pub points: [FailPoint; FailSite::COUNT],
    /// The last execution.
    pub last: FireRecord,
    /// Call stacks that do not fail again.
    pub stacks: FailStacks,
}

/// What a site must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fire {
    /// The generation of the programme.
    generation: u32,
    /// The place of the term in its programme.
    pub term: usize,
    /// What it does.
    pub action: FailAction,
    /// The argument.
    pub argument: u64,
}

impl FailPoints {
    /// The site `site`.
    #[must_use]
    pub fn point(&self, site: FailSite) -> &FailPoint {
        &self.points[site.index()]
    }

    /// Makes `spec` the programme of `site`, which the bits in `armed` announce. The host calls it,
    /// one thread at a time; the kernel may run.
    pub fn arm(&self, armed: &Field<u64>, site: FailSite, spec: &FailSpec) {
        let point = self.point(site);
        // 1. The kernel executes nothing from here on.
        armed.clear_bits(site.bit());
        let generation = point.generation.get();
        point.generation.set_release(generation.wrapping_add(1));
        fence(Ordering::SeqCst);
        // 2. The new programme.
        for (term, new) in point.terms.iter().zip(spec.terms()) {
            let count = new.count.map_or(UNLIMITED, |count| count.min(UNLIMITED));
            // A late CPU may take from the old count until now, and finds the new tag afterwards.
            // A plain store would do, but loom takes it as unordered with the CPU's exchange.
            term.left.exchange(tag(generation.wrapping_add(2)) | count);
            term.argument.set(new.argument);
            term.chance.set(new.chance);
            term.action.put(new.action);
        }
        point.length.set(u32::try_from(spec.terms().len()).unwrap_or(0));
        // 3. It holds from here on.
        point.generation.set_release(generation.wrapping_add(2));
        if !spec.is_off() {
            armed.set_bits(site.bit());
        }
    }

    /// The first term of the programme of `site` that executes now. The kernel calls it when it
    /// comes to the site.
    #[must_use]
    pub fn first(&self, site: FailSite) -> Option<Fire> {
        self.next(site, self.point(site).generation.get_acquire(), 0)
    }

    /// The term that executes after `fire`, a `print` that goes on; none if the programme is
    /// another one by now.
    #[must_use]
    pub fn after(&self, site: FailSite, fire: Fire) -> Option<Fire> {
        self.next(site, fire.generation, fire.term + 1)
    }

    /// The first term, from number `from` on, that executes now, if the programme is that of
    /// `generation`, which was read before.
    fn next(&self, site: FailSite, generation: u32, from: usize) -> Option<Fire> {
        let point = self.point(site);
        if !generation.is_multiple_of(2) {
            return None;
        }
        // 1. The term. It may be one of a programme that comes just now.
        let length = usize::try_from(point.length.get()).unwrap_or(0);
        let mut terms = point.terms.iter().enumerate().take(length).skip(from);
        let (number, term) = terms.find(|(_, term)| {
            (term.chance.get() >= CHANCE_MAX || self.random() < term.chance.get())
                && term.take(generation)
        })?;
        let action = term.action.known()?;
        let fire = Fire { generation, term: number, action, argument: term.argument.get() };
        // 2. It counts if nothing has changed meanwhile.
        fence(Ordering::SeqCst);
        (point.generation.get() == generation).then_some(fire)
    }

    /// A number below [`CHANCE_MAX`] (Marsaglia's xorshift64*). CPUs that ask at the same time may
    /// get the same number.
    fn random(&self) -> u32 {
        let mut x = self.random.get();
        if x == 0 {
            x = 0x9e37_79b9_7f4a_7c15;
        }
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        let high = x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * u64::from(CHANCE_MAX)) >> 32) as u32
    }
}

impl FailTerm {
    /// Executions that remain; `None` for no limit.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        Some(self.left.get() & UNLIMITED).filter(|&count| count != UNLIMITED)
    }

    /// Takes one of the executions that remain in the programme of `generation`; `false` if none
    /// remains, or if a counted term is of another programme.
    fn take(&self, generation: u32) -> bool {
        let tag = tag(generation);
        self.remaining().is_none() || self.left.take_within(tag, tag | (UNLIMITED - 1))
    }
}

impl FailStacks {
    /// Whether the list is in use and has the stack with hash `hash`, or is full.
    #[must_use]
    pub fn knows(&self, hash: u64) -> bool {
        let hashes = self.hashes();
        self.on.is_set()
            && (hashes.len() == STACKS_MAX || hashes.iter().any(|known| known.get() == hash))
    }

    /// Adds the stack with hash `hash`, if the list is in use and has room.
    pub fn add(&self, hash: u64) {
        let length = self.hashes().len();
        if self.on.is_set() && length < STACKS_MAX {
            self.hashes[length].set(hash);
            self.length.inc();
        }
    }

    /// The hashes in the list.
    #[must_use]
    pub fn hashes(&self) -> &[Field<u64>] {
        let length = usize::try_from(self.length.get()).unwrap_or(STACKS_MAX);
        &self.hashes[..length.min(STACKS_MAX)]
    }
}

impl FireRecord {
    /// The return addresses, innermost first.
    #[must_use]
    pub fn frames(&self) -> &[Field<GuestVirt>] {
        let length = usize::try_from(self.frames_len.get()).unwrap_or(FRAMES_MAX);
        &self.frames[..length.min(FRAMES_MAX)]
    }

    /// Keeps the call stack `frames`, innermost first, as far as there is room.
    pub fn keep(&self, frames: impl Iterator<Item = GuestVirt>) {
        let mut length = 0;
        for (slot, frame) in self.frames.iter().zip(frames) {
            slot.set(frame);
            length += 1;
        }
        self.frames_len.set(length);
    }
}
