//! Kicks: making a vCPU's thread return from `KVM_RUN`.
//!
//! A signal alone is lost if it arrives just before the thread enters `KVM_RUN`; the
//! `immediate_exit` byte alone is not noticed by a thread that is inside. Together they leave no
//! gap: the byte is set first, then the signal is sent, and the thread checks its orders each time
//! `KVM_RUN` returns.
//!
//! The signal is a real-time signal whose handler does nothing; it is installed once per process.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::KvmError;

/// The number of the real-time signal, counted from the first.
const SIGNAL_OFFSET: libc::c_int = 7;

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn signal() -> Result<libc::c_int, KvmError> {
    static INSTALLED: OnceLock<Result<libc::c_int, i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let number = SIGRTMIN() + SIGNAL_OFFSET;
            register_signal_handler(number, nothing).map(|()| number).map_err(|error| error.errno())
        })
        .map_err(|errno| KvmError {
            operation: "sigaction for the signal that stops a vCPU".to_owned(),
            errno,
        })
}

/// The byte that makes a vCPU return from `KVM_RUN`. Two threads write it, and only as an atomic.
#[derive(Clone, Copy)]
struct ImmediateExit(NonNull<AtomicU8>);

impl ImmediateExit {
    /// The byte of `vcpu`. It lies in the vCPU's `kvm_run`, which is mapped until the vCPU is
    /// dropped.
    fn of(vcpu: &mut VcpuFd) -> Self {
        // `AtomicU8` has the layout of `u8`.
        Self(NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast())
    }

    /// Writes the byte.
    ///
    /// # Safety
    /// The vCPU is alive.
    unsafe fn store(self, value: u8) {
        // SAFETY: the byte is mapped while the vCPU lives, and this process writes it in no other
        // way.
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }
}

struct Target {
    thread: libc::pthread_t,
    immediate_exit: ImmediateExit,
}

// SAFETY: the byte is only written under the slot's lock, while the vCPU that it belongs to is
// alive, and then as an atomic.
unsafe impl Send for Target {}

/// Names the thread that runs a vCPU, from the vCPU's creation to its end.
#[derive(Default)]
pub(crate) struct KickSlot(Mutex<Option<Target>>);

impl KickSlot {
    /// Makes the vCPU's thread return from `KVM_RUN` now, or as soon as it enters it next. Does
    /// nothing before the vCPU exists and after its end.
    pub(crate) fn kick(&self) {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(target), Ok(number)) = (&*slot, signal()) {
            // SAFETY: the vCPU outlives the slot's entry: its owner clears the entry, under the
            // lock held here, before it drops the vCPU.
            unsafe { target.immediate_exit.store(1) };
            // SAFETY: the thread is alive, as it clears the entry, under the lock held here, before
            // it ends; the signal's handler does nothing.
            unsafe { libc::pthread_kill(target.thread, number) };
        }
    }
}

impl std::fmt::Debug for KickSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KickSlot")
    }
}

/// A vCPU that can be kicked. It stays on the thread that created it.
pub(crate) struct KickableVcpu {
    vcpu: VcpuFd,
    immediate_exit: ImmediateExit,
    slot: Arc<KickSlot>,
    _this_thread: PhantomData<*const ()>,
}

impl KickableVcpu {
    /// Puts `vcpu`, which this thread will run, into `slot`.
    pub(crate) fn new(mut vcpu: VcpuFd, slot: Arc<KickSlot>) -> Result<Self, KvmError> {
        let number = signal()?;
        unblock_signal(number).map_err(|error| {
            KvmError::io(format!("sigprocmask: {error}"), &std::io::Error::last_os_error())
        })?;
        let immediate_exit = ImmediateExit::of(&mut vcpu);
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *slot.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Target { thread, immediate_exit });
        Ok(Self { vcpu, immediate_exit, slot, _this_thread: PhantomData })
    }

    /// Acknowledges a kick, so the next `KVM_RUN` runs the guest again.
    pub(crate) fn acknowledge(&mut self) {
        // SAFETY: the vCPU is a field of this value.
        unsafe { self.immediate_exit.store(0) };
    }
}

impl Deref for KickableVcpu {
    type Target = VcpuFd;

    fn deref(&self) -> &VcpuFd {
        &self.vcpu
    }
}

impl DerefMut for KickableVcpu {
    fn deref_mut(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }
}

impl Drop for KickableVcpu {
    fn drop(&mut self) {
        *self.slot.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
