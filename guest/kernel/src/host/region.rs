//! Access to the control region.

use core::arch::x86_64::{__cpuid, CpuidResult};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::control::{CONTROL_MAGIC, ControlRegion};
use vmkern_abi::field::Field;
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::paging::Paging;
use vmkern_abi::{ABI_VERSION, describe};

/// First physical address past low memory, which is mapped at KERNBASE for the loader's data and
/// the region.
const LOW_MEMORY_END: u64 = 0xa_0000;

/// What is armed where there is no region: nothing.
static NOTHING: AtomicU64 = AtomicU64::new(0);

/// The region's word of armed sites, so that a site costs two loads and no test for a region.
static FAIL_ARMED: AtomicPtr<Field<u64>> = AtomicPtr::new((&raw const NOTHING).cast_mut().cast());

static REGION: AtomicPtr<ControlRegion> = AtomicPtr::new(core::ptr::null_mut());

/// [`Paging::word`], once it has been determined.
static PAGING: AtomicU32 = AtomicU32::new(0);

/// Why the region cannot be used.
#[derive(Clone, Copy, Debug)]
pub enum RegionError {
    /// It is not page aligned or not in low memory.
    Place,
    /// It does not begin with [`CONTROL_MAGIC`].
    Magic,
}

/// Starts to use the region at `at`.
///
/// # Errors
/// When there is no region there.
pub fn attach(at: GuestPhys) -> Result<&'static ControlRegion, RegionError> {
    let end = at.checked_add(size_of::<ControlRegion>() as u64).ok_or(RegionError::Place)?;
    if !at.is_page_aligned() || at.get() == 0 || end.get() > LOW_MEMORY_END {
        return Err(RegionError::Place);
    }
    let pointer = (KERNBASE.get() + at.get()) as *mut ControlRegion;
    // SAFETY: low memory is mapped at KERNBASE for the kernel's whole life and never managed by it;
    // the region consists of atomics, valid with any content.
    let region = unsafe { &*pointer };
    if region.magic.get() != CONTROL_MAGIC {
        return Err(RegionError::Magic);
    }
    publish_abi(region);
    REGION.store(pointer, Ordering::Relaxed);
    FAIL_ARMED.store((&raw const region.fail_armed).cast_mut(), Ordering::Relaxed);
    Ok(region)
}

/// Publishes the layout of the kernel's structures. The text lies in the image, read-only.
fn publish_abi(region: &ControlRegion) {
    let text = (&raw const describe::TEXT).addr() as u64 - KERNBASE.get();
    region.guest_abi_version.set(ABI_VERSION);
    region.abi_hash.set(describe::HASH);
    region.description.set(GuestPhys::new(text));
    region.description_len.set(describe::LEN as u64);
}

/// The rules of the CPUs for page-table entries: from the host, which runs the CPUs, or from the
/// CPUs themselves.
#[must_use]
#[inline]
pub fn paging() -> Paging {
    match PAGING.load(Ordering::Relaxed) {
        0 => learn_paging(),
        word => Paging::from_word(word),
    }
}

/// Determines the value that [`paging`] returns from then on. On a host that emulates CPL0, CPUID
/// at CPL3 does not show the CPUs' values, so such a host passes the rules in the region.
#[cold]
fn learn_paging() -> Paging {
    let paging = match get().map_or(0, |region| region.paging.get()) {
        0 => Paging::of_cpuid(|leaf| {
            let CpuidResult { eax, ebx, ecx, edx } = __cpuid(leaf);
            [eax, ebx, ecx, edx]
        }),
        word => Paging::from_word(word),
    };
    PAGING.store(paging.word(), Ordering::Relaxed);
    paging
}

/// Sites of [`vmkern_abi::fail`] that are armed.
#[cfg_attr(feature = "no-fail-sites", expect(dead_code, reason = "no site asks"))]
#[must_use]
#[inline(always)]
pub fn fail_armed() -> u64 {
    // SAFETY: only `attach` stores here; what it stores, and the static from before, whose type a
    // `Field` is a face of, are valid for ever.
    unsafe { &*FAIL_ARMED.load(Ordering::Relaxed) }.get()
}

/// The region in use, if there is one.
#[must_use]
pub fn get() -> Option<&'static ControlRegion> {
    // SAFETY: only `attach` stores here, and the reference that it stores is valid for ever.
    unsafe { REGION.load(Ordering::Relaxed).as_ref() }
}
