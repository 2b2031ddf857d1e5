//! Errors of a guest, before it runs and while it runs.

use std::time::Duration;

use thiserror::Error;
use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::{BootArgs, Tunables};
use vmkern_abi::control::{Corrupt, WireError};

use super::thread::ThreadId;
use crate::inspect::{
    AbiMismatch, Crash, Location, MEMORY_MAX, MEMORY_MIN, NoCrashRecord, Unstoppable,
};
use crate::kernel::KernelError;
use crate::kvm::{CpuFailure, KvmError, NoKvm};

/// A guest could not be started.
#[derive(Clone, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// This host cannot run guests.
    #[error(transparent)]
    NoKvm(#[from] NoKvm),
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel image cannot be booted.
    #[error(transparent)]
    Image(#[from] KernelError),
    /// The kernel should run at CPL0, but this host's KVM emulates CPL0 and does not support every
    /// instruction.
    #[error(transparent)]
    Unemulated(#[from] Unemulated),
    /// The guest started, but did not become ready.
    #[error("the guest did not become ready: {0}")]
    Guest(#[from] GuestError),
    /// The host refused something: memory, a file, a thread, a vCPU, a KVM operation.
    #[error("{error}. {remedy}", error = .0, remedy = .0.remedy())]
    Io(#[from] KvmError),
}

/// A host whose KVM emulates code at CPL0 met an instruction there that it does not know.
#[derive(Clone, PartialEq, Eq, Error)]
#[error(
    "this host's KVM emulates code at CPL0 and cannot emulate every instruction: the kernel at \
     CPL0 was stopped at {at}{}. Run its main part at CPL3 with `--privilege user`, or with \
     `auto`, which detects it; or use a host with hardware virtualization. QEMU's own CPU \
     emulation runs the self-test at CPL0: see `vmkern kernel --help`.",
    bytes(.instruction)
)]
#[non_exhaustive]
pub struct Unemulated {
    /// Where the instruction is.
    pub at: Box<Location>,
    /// The bytes there, as far as they are known: the instruction and the bytes after it.
    pub instruction: Vec<u8>,
}

fn bytes(instruction: &[u8]) -> String {
    let words: Vec<String> = instruction.iter().map(|byte| format!("{byte:02x}")).collect();
    if words.is_empty() { String::new() } else { format!(", before the bytes {}", words.join(" ")) }
}

/// A setting of a guest that breaks a rule.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Too little or too much memory.
    #[error(
        "memory must be 8M to 64G ({MEMORY_MIN} to {MEMORY_MAX} bytes), got {0} bytes ({0:#x})"
    )]
    MemorySize(u64),
    /// Memory is not a whole number of pages.
    #[error(
        "memory must be a multiple of the page size, {PAGE_SIZE} bytes, got {0} bytes ({0:#x})"
    )]
    MemoryAlignment(u64),
    /// More or fewer vCPUs than the kernel can use.
    #[error("vcpus must be 1 to 64, got {0}")]
    Vcpus(u32),
    /// No tunable has this name.
    #[error(
        "unknown tunable `{0}`{near}; the tunables are: {list}",
        near = meant(.0),
        list = Tunables::NAMES.join(" ")
    )]
    UnknownTunable(String),
    /// A fail point cannot be armed as asked.
    #[error(transparent)]
    Fail(#[from] super::fail::FailError),
    /// The value is outside the tunable's range.
    #[error("tunable {name} must be {}, got {value} ({value:#x})", bounds(*.min, *.max))]
    TunableRange {
        /// The tunable.
        name: String,
        /// The requested value.
        value: u64,
        /// The least valid value.
        min: u64,
        /// The greatest valid value.
        max: u64,
    },
    /// The kernel's command line is too long.
    #[error(
        "the kernel's command line must be shorter than {max} bytes, got {0} bytes",
        max = BootArgs::MAX_LEN
    )]
    CommandLine(usize),
}

/// A request that cannot be sent.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The thread does not exist.
    #[error("thread must be t0 to t{max}, got {0}", max = ThreadId::COUNT - 1)]
    Thread(u16),
    /// A thread that sleeps in an operation cannot start another one.
    #[error("thread {0} is blocked: join its operation first")]
    ThreadBlocked(ThreadId),
    /// A join needs a blocked thread, and one join at a time.
    #[error("thread {0} is not blocked, or has been joined already: there is nothing to join")]
    NothingToJoin(ThreadId),
}

/// A suggestion, if a tunable has a name similar to `name`.
fn meant(name: &str) -> String {
    let near = crate::spelling::closest(name, Tunables::NAMES.iter().copied());
    near.map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

fn bounds(min: u64, max: u64) -> String {
    match max {
        u64::MAX => format!("at least {min}"),
        max => format!("at least {min} and at most {max}"),
    }
}

/// A running guest failed, or a wait for it ended without an answer.
///
/// After [`GuestError::Interrupted`], [`GuestError::NothingInFlight`] and
/// [`GuestError::BadRequest`] the guest goes on. After any other the guest is dead: its vCPUs have
/// stopped, its memory can still be inspected, and each further request gets the same error.
#[derive(Clone, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The kernel died and reported the reason.
    #[error("{0}")]
    Crashed(Box<Crash>),
    /// The guest's time limit has passed. It was stopped at `at`.
    #[error("the guest did not answer within {limit:?}; it was stopped at {at}")]
    Timeout {
        /// The limit.
        limit: Duration,
        /// Where the CPU stood.
        at: Box<Location>,
    },
    /// [`InterruptHandle::interrupt`](crate::guest::InterruptHandle::interrupt) was called.
    #[error("interrupted")]
    Interrupted,
    /// The guest or this VMM broke the protocol between them: a bug of ours, or a guest out of
    /// control.
    #[error("the contract between guest and host is broken: {0}")]
    Contract(#[from] ContractError),
    /// The vCPU cannot continue: a triple fault, an instruction that KVM cannot emulate, ...
    #[error("{failure}\nat {at}")]
    Cpu {
        /// Why, with the registers.
        failure: CpuFailure,
        /// Where the CPU stood.
        at: Box<Location>,
    },
    /// The host refused the running guest something: memory, a thread, a KVM operation.
    #[error("{error}. {remedy}", error = .0, remedy = .0.remedy())]
    Kvm(#[from] KvmError),
    /// A response was requested, but no request is in flight.
    #[error("no request is in flight, so no response will come")]
    NothingInFlight,
    /// The request itself is wrong. It was not sent.
    #[error(transparent)]
    BadRequest(#[from] RequestError),
}

impl GuestError {
    /// Whether the guest still runs after this error.
    #[must_use]
    pub fn guest_lives(&self) -> bool {
        matches!(self, Self::Interrupted | Self::BadRequest(_) | Self::NothingInFlight)
    }
}

/// How the protocol between host and guest was broken.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ContractError {
    /// A ring's counter is impossible.
    #[error("{ring} ring: {corrupt}")]
    Ring {
        /// Which ring.
        ring: &'static str,
        /// The counters.
        corrupt: Corrupt,
    },
    /// The request ring is full although fewer requests are in flight than it has slots.
    #[error("the request ring is full with {0} requests in flight")]
    RingFull(usize),
    /// A response cannot be decoded.
    #[error("response ring: {0}")]
    Response(#[from] WireError),
    /// A response answers a request that was never sent, or that was answered before.
    #[error("response ring: tag {0:#x} belongs to no request in flight")]
    Tag(u32),
    /// A request that runs on no thread was answered as blocked.
    #[error("response ring: tag {0:#x} is reported blocked, but runs on no thread")]
    BlockedNowhere(u32),
    /// Guest and host were built from different sources.
    #[error(transparent)]
    Abi(#[from] Box<AbiMismatch>),
    /// The kernel is ready, but has not published the description of its structures.
    #[error("the kernel has not published its version of the ABI")]
    NoAbi,
    /// A word of the control region is impossible.
    #[error("control region: {field} is {value:#x}")]
    Control {
        /// The word.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The guest exited through the exit port, unasked.
    #[error("the guest exited with code {0:#x}")]
    Exit(u8),
    /// The guest reported its death, but left no valid record.
    #[error(transparent)]
    NoCrashRecord(#[from] NoCrashRecord),
    /// A vCPU's thread ended without a reason.
    #[error("the vCPU's thread ended without a reason")]
    LostVcpu,
    /// The guest cannot be stopped: its vCPU's thread does not return from the host's kernel.
    #[error(transparent)]
    Unstoppable(#[from] Unstoppable),
}

vmkern_inspect::debug_as_printed!(
    LaunchError,
    Unemulated,
    ConfigError,
    RequestError,
    GuestError,
    ContractError
);
