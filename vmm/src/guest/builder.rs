//! What a guest is to be.

use std::io::Write;
use std::time::Duration;

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::{MAX_VCPUS, Privilege, TimeMode, TunableError, Tunables};
use vmkern_abi::crash::CrashKind;

use super::error::{ConfigError, LaunchError};
use super::handle::Guest;
use super::launch::{self, BootReport, Selftest};
use crate::inspect::{MEMORY_MAX, MEMORY_MIN};
use crate::kernel::KernelImage;

/// Memory of a guest about which nothing was said, in bytes.
pub const DEFAULT_MEMORY: u64 = 64 << 20;
/// Time of a guest about which nothing was said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Describes a guest, and launches it.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it launches"]
pub struct Builder {
    pub(super) memory: u64,
    pub(super) vcpus: u32,
    pub(super) privilege: Privilege,
    pub(super) time: TimeMode,
    pub(super) seed: u64,
    pub(super) tunables: Tunables,
    pub(super) timeout: Duration,
    pub(super) kernel: KernelImage,
    pub(super) crash: Option<CrashKind>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            memory: DEFAULT_MEMORY,
            vcpus: 1,
            privilege: Privilege::Auto,
            time: TimeMode::Virtual,
            seed: 0,
            tunables: Tunables::default(),
            timeout: DEFAULT_TIMEOUT,
            kernel: KernelImage::embedded(),
            crash: None,
        }
    }
}

impl Builder {
    /// Bytes of RAM, [`MEMORY_MIN`] to [`MEMORY_MAX`], a multiple of the page size. Only what the
    /// guest touches costs the host anything. Default: 64 MiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Number of vCPUs, 1 to [`MAX_VCPUS`]. More than the host has cores work, slowly. Default: 1.
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// The privilege at which the kernel body runs. Default: [`Privilege::Auto`].
    pub fn privilege(mut self, privilege: Privilege) -> Self {
        self.privilege = privilege;
        self
    }

    /// How the kernel's clock moves. Default: [`TimeMode::Virtual`].
    pub fn time(mut self, time: TimeMode) -> Self {
        self.time = time;
        self
    }

    /// The run's seed, for reports. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets a kernel tunable by FreeBSD's name ([`Tunables::NAMES`]).
    ///
    /// # Errors
    /// [`ConfigError::UnknownTunable`], which lists the known ones; [`ConfigError::TunableRange`].
    pub fn tunable(mut self, name: &str, value: u64) -> Result<Self, ConfigError> {
        match self.tunables.set(name, value) {
            Ok(()) => Ok(self),
            Err(TunableError::Unknown) => Err(ConfigError::UnknownTunable(name.to_owned())),
            Err(TunableError::OutOfRange { min, max }) => {
                Err(ConfigError::TunableRange { name: name.to_owned(), value, min, max })
            }
        }
    }

    /// How long the guest may run, from its launch on: whoever waits for it then gets
    /// [`GuestError::Timeout`](crate::GuestError::Timeout). [`Guest::restart_clock`] begins anew.
    /// Default: 60 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Boots another kernel than the built-in one.
    pub fn kernel(mut self, image: KernelImage) -> Self {
        self.kernel = image;
        self
    }

    /// Has the kernel die in this way while it boots, to prove that the report arrives.
    pub fn crash(mut self, kind: CrashKind) -> Self {
        self.crash = Some(kind);
        self
    }

    /// Whether a guest like this can be asked for at all. [`Builder::launch`] checks the same
    /// before it does anything.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&self.memory) {
            return Err(ConfigError::MemorySize(self.memory));
        }
        if !self.memory.is_multiple_of(PAGE_SIZE) {
            return Err(ConfigError::MemoryAlignment(self.memory));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        launch::check_command_line(self)
    }

    /// Boots the guest and returns it when its kernel serves requests.
    ///
    /// # Errors
    /// See [`LaunchError`]. Nothing is left behind.
    pub fn launch(self) -> Result<Guest, LaunchError> {
        let mut guest = self.start(None)?;
        guest.await_ready()?;
        Ok(guest)
    }

    /// Starts the guest, whose kernel begins to boot; [`Guest::await_ready`] waits until it serves
    /// requests. A kernel that dies before that leaves a guest that can be looked into like any
    /// other that died.
    ///
    /// With a `console`, a thread writes every line of the kernel's log there as it comes, from the
    /// first on, and the kernel waits for it where it may; [`Guest::end`] says what came of that.
    ///
    /// # Errors
    /// See [`LaunchError`]. Nothing is left behind.
    pub fn start(self, console: Option<Box<dyn Write + Send>>) -> Result<Guest, LaunchError> {
        self.validate()?;
        launch::start(&self, Selftest::No, console)
    }

    /// Boots the guest with `selftest` on its command line, and returns when it has left through
    /// the exit port.
    ///
    /// # Errors
    /// See [`LaunchError`]; a self-test that fails is no error but a [`BootReport`] that
    /// says so. Nothing is left behind.
    pub fn run_selftest(self) -> Result<BootReport, LaunchError> {
        self.validate()?;
        launch::start(&self, Selftest::Yes, None)?.run_to_exit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_out_of_range_is_refused_with_the_rule() {
        let text = |bytes| Builder::default().memory(bytes).validate().map_err(|e| e.to_string());
        for bytes in [0, MEMORY_MIN - PAGE_SIZE, MEMORY_MAX + PAGE_SIZE, 1 << 40, u64::MAX] {
            let message = text(bytes).expect_err("the size is out of range");
            assert!(
                message.contains("8M")
                    && message.contains("64G")
                    && message.contains(&bytes.to_string()),
                "{message}"
            );
        }
        assert!(
            text(MEMORY_MIN + 1)
                .expect_err("the size is odd")
                .contains("multiple of the page size")
        );
        assert_eq!(text(MEMORY_MIN), Ok(()));
        assert_eq!(text(MEMORY_MAX), Ok(()));
    }

    #[test]
    fn an_unknown_tunable_is_refused_with_the_known_ones() {
        let message =
            Builder::default().tunable("kern.hertz", 1).expect_err("there is none").to_string();
        assert!(message.contains("kern.hertz") && message.contains("kern.hz"), "{message}");
        assert!(Builder::default().tunable("kern.hz", 1000).is_ok());
    }

    #[test]
    fn a_tunable_out_of_range_is_refused_with_the_range() {
        let message = |name, value| {
            Builder::default().tunable(name, value).expect_err("out of range").to_string()
        };
        let text = message("kern.hz", 20_000);
        assert!(
            ["kern.hz", "20000", "at least 1 and at most 10000"]
                .iter()
                .all(|part| text.contains(part)),
            "{text}"
        );
        assert!(message("vm.kmem_size", 1).ends_with("at least 4096"));
    }

    #[test]
    fn no_vcpus_and_too_many_are_refused() {
        assert_eq!(Builder::default().vcpus(0).validate(), Err(ConfigError::Vcpus(0)));
        assert_eq!(Builder::default().vcpus(MAX_VCPUS).validate(), Ok(()));
        assert_eq!(Builder::default().vcpus(65).validate(), Err(ConfigError::Vcpus(65)));
    }
}
