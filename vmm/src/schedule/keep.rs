//! The closed loop: it keeps the number of free pages between two bounds, and knows when it cannot.
//!
//! A correction aims at the middle between the bounds, so the loop does not swing around one of
//! them. If a correction moves nothing, the target may be impossible, or the guest may be in the
//! middle of something. So the loop tries again, but gives up after [`PATIENCE`] of the guest's
//! clock or [`TRIES`] tries in a row, whichever comes first: it never thrashes.

use super::driver::{Moment, Squeeze};
use super::model::{Keep, Kind};
use crate::guest::Pages;

/// Microseconds of the guest's clock without progress after which the loop gives up.
pub(super) const PATIENCE: u64 = 50_000;
/// Tries without progress in a row after which it gives up.
pub(super) const TRIES: u32 = 16;

/// Why the loop gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// In words, with the numbers.
    pub why: String,
}

/// What a poll of the loop came to.
pub(super) enum Corrected {
    /// The free pages are between the bounds, or the loop has given up before.
    No,
    /// This many pages more, or fewer, are held now.
    By(i64),
    /// It gives up.
    Left(Left),
}

/// The state of the loop.
#[derive(Debug)]
pub(super) struct Loop {
    keep: Keep,
    /// When tries without progress began, and their number.
    futile: Option<(u64, u32)>,
    has_left: bool,
}

impl Loop {
    pub fn new(keep: Keep) -> Self {
        Self { keep, futile: None, has_left: false }
    }

    /// Whether it has given up.
    pub fn has_left(&self) -> bool {
        self.has_left
    }

    /// Corrects the number of free pages if it is out of bounds. `held` is what the loop holds.
    pub fn poll(
        &mut self,
        now: Moment,
        held: Pages,
        guest: &mut dyn Squeeze,
    ) -> Result<Corrected, String> {
        if self.has_left {
            return Ok(Corrected::No);
        }
        // 1. Whether the pages are out of bounds.
        let Keep { low, high, .. } = self.keep;
        let free = guest.free_pages()?;
        if (low..=high).contains(&free) {
            self.futile = None;
            return Ok(Corrected::No);
        }
        // 2. Move towards the middle.
        let middle = low.0 + (high.0 - low.0) / 2;
        let (by, refused) = if free < low {
            self.give_back(Pages(middle - free.0), held, guest)
        } else {
            self.take(Pages(free.0 - middle), held, guest)
        };
        if by != 0 {
            self.futile = None;
            return Ok(Corrected::By(by));
        }
        // 3. Nothing moved: give up if that has lasted.
        let (since, tries) = self.futile.unwrap_or((now.micros, 0));
        self.futile = Some((since, tries + 1));
        if tries + 1 < TRIES && now.micros.saturating_sub(since) < PATIENCE {
            return Ok(Corrected::No);
        }
        self.has_left = true;
        let because = match refused {
            Some(refused) => refused,
            None if free < low && held == Pages(0) => {
                "nothing is held that could be given back: the guest uses the rest".to_owned()
            }
            None => "nothing could be moved".to_owned(),
        };
        let why = format!(
            "cannot keep {} to {} pages free: {free} free, {held} held; {because}",
            low.0, high.0
        );
        Ok(Corrected::Left(Left { why }))
    }

    /// Gives `wanted` pages back, or fewer if fewer are held.
    fn give_back(
        &self,
        wanted: Pages,
        held: Pages,
        guest: &mut dyn Squeeze,
    ) -> (i64, Option<String>) {
        let wanted = wanted.min(held);
        if wanted == Pages(0) {
            return (0, None);
        }
        let moved = match self.keep.kind {
            Kind::Seize => guest.release(wanted),
            Kind::Squeeze => guest
                .squeeze(Pages(held.0 - wanted.0))
                .map(|now| Pages(held.0.saturating_sub(now.0))),
        };
        signed(moved, -1)
    }

    fn take(&self, wanted: Pages, held: Pages, guest: &mut dyn Squeeze) -> (i64, Option<String>) {
        let moved = match self.keep.kind {
            Kind::Seize => guest.seize(wanted),
            Kind::Squeeze => guest
                .squeeze(Pages(held.0.saturating_add(wanted.0)))
                .map(|now| Pages(now.0.saturating_sub(held.0))),
        };
        signed(moved, 1)
    }
}

fn signed(moved: Result<Pages, String>, sign: i64) -> (i64, Option<String>) {
    match moved {
        Ok(Pages(pages)) => (sign * i64::try_from(pages).unwrap_or(i64::MAX), None),
        Err(refused) => (0, Some(refused)),
    }
}
