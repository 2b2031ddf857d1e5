//! Memory pressure from outside: the host takes pages of the guest, or asks for them, and gives
//! them back.
//!
//! **Protocol.** [`vmkern_abi::seize`] says what happens to the guest's structures. Here the guest
//! is held for that, unless it stands still anyway, and goes on before the memory behind the pages
//! is given back to the host: the pages are not the guest's any more. A return happens only after
//! that, because both need the [`Pressure`], of which there is one at a time.

mod error;
mod report;
mod seize;
mod squeeze;
#[cfg(test)]
mod tests;

pub use self::error::PressureError;
pub use self::report::{Pages, PressureReport, PressureTarget, Refusal};
use super::Guest;

/// Takes memory of a guest, and gives it back: see [`Guest::pressure`].
#[derive(Debug)]
pub struct Pressure<'a> {
    guest: &'a mut Guest,
}

impl Guest {
    /// Takes memory of this guest, and gives it back, without asking the guest. Also works on a
    /// guest that is deadlocked or dead.
    ///
    /// ```
    /// use vmkern::guest::{Pages, PressureTarget};
    /// use vmkern::prelude::*;
    ///
    /// let mut guest = Guest::builder().memory(64 << 20).launch()?;
    /// let report = guest.pressure().seize(PressureTarget::Leave(Pages(37)))?;
    /// assert_eq!(guest.meter()?.v_free_count.get(), 37);
    /// assert_eq!(report.taken, guest.pressure().seized()?);
    ///
    /// let nowait = MallocFlags::NOWAIT;
    /// let op = Op::KmemMalloc { map: MapId::KMEM, size: 38 * 4096, flags: nowait };
    /// assert_eq!(guest.call(ThreadId::MAIN, op)?.outcome, Outcome::Null);
    /// guest.pressure().release(Pages::ALL)?;
    /// assert!(matches!(guest.call(ThreadId::MAIN, op)?.outcome, Outcome::Value(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pressure(&mut self) -> Pressure<'_> {
        Pressure { guest: self }
    }
}
