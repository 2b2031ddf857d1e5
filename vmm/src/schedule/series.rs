//! A time series of a guest's memory, of bounded length.

use serde::Serialize;

use super::driver::Moment;

/// Most samples that are kept.
const LENGTH_MAX: usize = 4096;

/// A guest's memory at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// When.
    #[serde(flatten)]
    pub at: Moment,
    /// Free pages.
    pub free: u64,
    /// Pages in the balloon.
    pub balloon: u64,
    /// Seized pages.
    pub seized: u64,
    /// Threads that sleep for memory.
    pub sleepers: u64,
    /// Page faults since the boot.
    pub faults: u64,
    /// Invocations of vm_lowmem since the boot.
    pub lowmem_events: u64,
}

/// Samples in the order of time. When there are too many, every second one goes, and from then on
/// half as many are kept: which ones depends on nothing but their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    samples: Vec<Sample>,
    stride: u64,
    seen: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self { samples: Vec::new(), stride: 1, seen: 0 }
    }
}

impl Series {
    /// Adds a sample.
    pub fn push(&mut self, sample: Sample) {
        let number = self.seen;
        self.seen += 1;
        if !number.is_multiple_of(self.stride) {
            return;
        }
        if self.samples.len() == LENGTH_MAX {
            let mut number = 0_u64;
            self.samples.retain(|_| {
                number += 1;
                !number.is_multiple_of(2)
            });
            self.stride *= 2;
            if !(self.seen - 1).is_multiple_of(self.stride) {
                return;
            }
        }
        self.samples.push(sample);
    }

    /// Adds a sample, if there is one.
    pub fn extend(&mut self, sample: Option<Sample>) {
        sample.into_iter().for_each(|sample| self.push(sample));
    }

    /// The samples that were kept.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Every how many samples one was kept.
    #[must_use]
    pub fn stride(&self) -> u64 {
        self.stride
    }
}
