//! The common part of all models' machines: some pages of memory behind a direct map. Each model
//! completes it to a machine by defining its CPUs.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::pte::NPTEPG;

use crate::machine::PhysMem;
use crate::num::to_usize;

/// A page of memory.
#[repr(align(4096))]
struct Page([AtomicU64; NPTEPG]);

/// CPUs with memory.
pub struct Bare<C> {
    memory: Vec<Page>,
    cpus: C,
}

impl<C> Bare<C> {
    /// `cpus` with `pages` pages, the first of which is unused.
    pub fn new(cpus: C, pages: usize) -> Self {
        Self {
            memory: (0..pages).map(|_| Page([const { AtomicU64::new(0) }; NPTEPG])).collect(),
            cpus,
        }
    }
}

impl<C> Deref for Bare<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.cpus
    }
}

#[expect(unsafe_code, reason = "the trait is a promise about memory")]
// SAFETY: `frame` returns, for the same address, the same place in a page of atomics that lives as
// long as the machine, and only `window` makes references into it.
unsafe impl<C> PhysMem for Bare<C> {
    fn frame(&self, pa: GuestPhys) -> NonNull<u8> {
        let page = NonNull::from(&self.memory[to_usize(pa.pfn())].0).cast::<u8>();
        // SAFETY: the offset is smaller than the page.
        unsafe { page.add(to_usize(pa.page_offset())) }
    }

    fn zero_page(&self, pa: GuestPhys) {
        unreachable!("nobody clears pages here: {pa}")
    }
}
