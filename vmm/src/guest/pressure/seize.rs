//! Taking pages and giving them back.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::control::PAGES_VECTOR;
use vmkern_abi::seize::{Contents, Frames, Refused, Seize};

use super::{Pages, Pressure, PressureError, PressureReport, PressureTarget, Refusal};
use crate::guest::PAUSE_LIMIT;
use crate::kvm::memory::GuestRam;

/// For how long a running guest is held again and again until no lock is owned that guards the free
/// lists. Such locks are owned for microseconds.
const LOCK_LIMIT: Duration = Duration::from_millis(100);

/// The bytes of `frames`.
fn addresses(frames: &Frames) -> Range<GuestPhys> {
    GuestPhys::from_pfn(frames.start)..GuestPhys::from_pfn(frames.end)
}

/// What a seizure has recorded in the guest's structures.
#[derive(Debug)]
pub(crate) struct Record {
    /// Pages asked for.
    asked: u64,
    /// Pages that were seized before.
    before: u64,
    /// Pages that are seized now.
    held: u64,
    /// The pages that were taken.
    pub(crate) frames: Vec<Range<GuestPhys>>,
    /// What ended it early.
    damage: Option<Refused>,
}

impl Pressure<'_> {
    /// Takes free pages of the guest as `target` says, or all that are free if there are fewer: as
    /// allocations of class INTERRUPT on another CPU would, fresh memory first, then the largest
    /// blocks, then pages in CPUs' caches. The memory goes back to the host. Nobody in the guest is
    /// woken, and no instruction of it runs, except that a running guest is held as by
    /// [`Guest::pause`](crate::Guest::pause).
    ///
    /// # Errors
    /// [`PressureError`]; nothing was taken then.
    pub fn seize(&mut self, target: PressureTarget) -> Result<PressureReport, PressureError> {
        let memory = Pages(self.ram().size() / PAGE_SIZE);
        if let PressureTarget::More(asked) = target
            && asked > memory
        {
            return Err(PressureError::TooMuch { asked, memory });
        }
        // 1. Record the pages in the guest's structures, while it stands still.
        let resident = self.ram().resident();
        let Record { asked, before, held, frames, damage } = self.record(target)?;
        // 2. Give the memory behind them back to the host. The guest goes on meanwhile.
        let discarded = self.discard(&frames);
        let taken = held - before;
        let refused = match (discarded, damage) {
            (Err(error), _) => {
                self.guest.undiscarded = true;
                Some(Refusal::NotDiscarded(error.to_string()))
            }
            (_, Some(damage)) => Some(Refusal::Damaged(damage.to_string())),
            _ if taken < asked => Some(Refusal::NotFree),
            _ => None,
        };
        let back = resident.saturating_sub(self.ram().resident());
        Ok(PressureReport {
            asked: Pages(asked),
            taken: Pages(taken),
            held: Pages(held),
            back: Pages(back / PAGE_SIZE),
            refused,
        })
    }

    /// Records pages as seized, as `target` says. They are not discarded yet.
    pub(crate) fn record(&mut self, target: PressureTarget) -> Result<Record, PressureError> {
        let mut frames = Vec::new();
        let (asked, before, held, damage) = self.with_structures(|seize| {
            let asked = match target {
                PressureTarget::More(Pages(pages)) => pages,
                PressureTarget::Leave(Pages(left)) => seize.free().saturating_sub(left),
            };
            let before = seize.seized()?;
            let taken = seize.take(asked, |piece| frames.push(addresses(&piece)));
            Ok((asked, before, seize.seized()?, taken.err()))
        })?;
        Ok(Record { asked, before, held, frames, damage })
    }

    /// Gives the memory behind `frames`, which are recorded as seized, back to the host.
    pub(crate) fn discard(&mut self, frames: &[Range<GuestPhys>]) -> io::Result<()> {
        self.ram().discard(frames)
    }

    /// Gives `pages` seized pages back to the guest, or all if there are fewer. Threads that wait
    /// for pages go on as after a free. Returns how many pages are still seized.
    ///
    /// # Errors
    /// [`PressureError`]; nothing was given back then, except with [`PressureError::Untold`].
    pub fn release(&mut self, Pages(pages): Pages) -> Result<Pages, PressureError> {
        let contents = if self.guest.undiscarded { Contents::Kept } else { Contents::Discarded };
        let held = self.with_structures(|seize| {
            seize.give_back(pages, contents, drop)?;
            seize.seized()
        })?;
        if held == 0 {
            self.guest.undiscarded = false;
        }
        if self.guest.hypervisor.vcpus.crew.end.get().is_none() {
            let _ = self.guest.hypervisor.vm.signal(0, PAGES_VECTOR)?;
        }
        Ok(Pages(held))
    }

    /// Pages that are seized.
    ///
    /// # Errors
    /// [`PressureError`].
    pub fn seized(&mut self) -> Result<Pages, PressureError> {
        Ok(Pages(self.with_structures(|seize| seize.seized())?))
    }

    fn ram(&self) -> &GuestRam {
        &self.guest.hypervisor.ram
    }

    /// Calls `f` with the guest's structures. The guest is held meanwhile if it could change, at a
    /// point where no lock is owned that guards free pages.
    fn with_structures<T>(
        &self,
        f: impl FnOnce(&Seize<'_, GuestRam>) -> Result<T, Refused>,
    ) -> Result<T, PressureError> {
        let roots = self.guest.link.region().roots.get();
        if roots.is_null() {
            return Err(PressureError::NotReady);
        }
        let limit = Instant::now() + LOCK_LIMIT;
        loop {
            // 1. Hold the guest. One that stands still anyway runs no instruction for it.
            let hypervisor = &self.guest.hypervisor;
            let runs = self.guest.may_change() && hypervisor.vcpus.crew.end.get().is_none();
            let held = if runs { Some(hypervisor.pause(PAUSE_LIMIT)?) } else { None };
            match Seize::new(self.ram(), roots) {
                // 2. If a lock is owned, the guest goes on, for its owner to release it.
                Err(Refused::Locked { .. }) if held.is_some() && Instant::now() < limit => {}
                Err(refused) => return Err(self.explain(refused)),
                Ok(seize) => return f(&seize).map_err(|refused| self.explain(refused)),
            }
            drop(held);
            std::thread::yield_now();
        }
    }

    /// `refused`, with the names of threads.
    fn explain(&self, refused: Refused) -> PressureError {
        PressureError::of(refused, |tid| {
            let threads = self.guest.threads().unwrap_or_default();
            let found = threads.iter().find(|thread| thread.tid == tid);
            found.map_or_else(
                || format!("thread {tid}"),
                |thread| format!("thread {}", thread.label()),
            )
        })
    }
}
