//! The configuration of a guest.
//!
//! A setting is checked when it is made, and the first error is kept: the chain of settings is
//! never interrupted, and [`GuestBuilder::launch`] returns the error instead of a guest.

use std::io::Write;
use std::time::Duration;

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::{MAX_VCPUS, Privilege, TimeMode, TunableError, Tunables};
use vmkern_abi::crash::{CrashKind, FatalFault};
use vmkern_abi::fail::{FailSite, FailSpec};

use super::error::{ConfigError, LaunchError};
use super::fail;
use super::handle::Guest;
use super::launch::{self, BootReport, Selftest};
use crate::inspect::{MEMORY_MAX, MEMORY_MIN};
use crate::kernel::KernelImage;

/// Default memory of a guest, in bytes.
pub const DEFAULT_MEMORY: u64 = 64 << 20;
/// Default time limit of a guest.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Configures a guest and launches it.
///
/// No setting fails by itself. [`GuestBuilder::launch`] (and its variants, and
/// [`GuestBuilder::validate`]) returns an error for the first invalid value, with the name of the
/// setting, the value, and the valid range; a second call with a valid value does not clear it.
///
/// ```
/// use vmkern::guest::{ConfigError, LaunchError};
/// use vmkern::{Guest, GuestBuilder};
///
/// let asked: GuestBuilder = Guest::builder().memory(16 << 20).tunable("kern.hz", 20_000).vcpus(2);
/// let error = asked.launch().expect_err("no clock ticks that fast");
/// assert!(matches!(error, LaunchError::Config(ConfigError::TunableRange { max: 10_000, .. })));
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it launches"]
pub struct GuestBuilder {
    pub(super) memory: u64,
    pub(super) vcpus: u32,
    pub(super) privilege: Privilege,
    pub(super) time: TimeMode,
    pub(super) seed: u64,
    pub(super) tunables: Tunables,
    pub(super) timeout: Duration,
    pub(super) kernel: KernelImage,
    pub(super) crash: Option<CrashKind>,
    pub(super) fault: Option<FatalFault>,
    /// Sites that are armed before the kernel runs.
    pub(super) armed: Vec<(FailSite, FailSpec)>,
    /// Call stacks that do not fail, if the list of them is in use.
    pub(super) stacks: Option<Vec<u64>>,
    /// Whether the guest has a balloon.
    pub(super) balloon: bool,
    /// The first invalid setting.
    wrong: Option<ConfigError>,
}

impl Default for GuestBuilder {
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
            fault: None,
            armed: Vec::new(),
            stacks: None,
            balloon: false,
            wrong: None,
        }
    }
}

impl GuestBuilder {
    /// Bytes of RAM, [`MEMORY_MIN`] to [`MEMORY_MAX`], a multiple of the page size. The host
    /// allocates only the pages that the guest touches. Default: 64 MiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&bytes) {
            return self.but(ConfigError::MemorySize(bytes));
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return self.but(ConfigError::MemoryAlignment(bytes));
        }
        self
    }

    /// Number of vCPUs, 1 to [`MAX_VCPUS`]. More vCPUs than the host has cores work, but slowly.
    /// Default: 1.
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        if (1..=MAX_VCPUS).contains(&count) { self } else { self.but(ConfigError::Vcpus(count)) }
    }

    /// The privilege at which the kernel's main part runs. Default: [`Privilege::Auto`].
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

    /// Sets a kernel tunable by FreeBSD's name, one of [`Tunables::NAMES`]. Possible errors:
    /// [`ConfigError::UnknownTunable`], which lists the known ones, and
    /// [`ConfigError::TunableRange`].
    pub fn tunable(mut self, name: &str, value: u64) -> Self {
        match self.tunables.set(name, value) {
            Ok(()) => self,
            Err(TunableError::Unknown) => self.but(ConfigError::UnknownTunable(name.to_owned())),
            Err(TunableError::OutOfRange { min, max }) => {
                self.but(ConfigError::TunableRange { name: name.to_owned(), value, min, max })
            }
        }
    }

    /// How long the guest may run after its launch. After that, a wait for it returns
    /// [`GuestError::Timeout`](crate::GuestError::Timeout). [`Guest::restart_clock`] restarts the
    /// limit. Default: 60 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Boots another kernel than the built-in one.
    pub fn kernel(mut self, image: KernelImage) -> Self {
        self.kernel = image;
        self
    }

    /// Gives the guest a virtio balloon, for [`Pressure::squeeze`](super::Pressure::squeeze). A
    /// guest without one has no driver for it either, and pays nothing.
    pub fn balloon(mut self) -> Self {
        self.balloon = true;
        self
    }

    /// Makes the kernel die in this way during its boot, to prove that the report arrives.
    pub fn crash(mut self, kind: CrashKind) -> Self {
        self.crash = Some(kind);
        self
    }

    /// Makes the kernel die of this page fault at the end of its boot, to prove that the report
    /// says why.
    pub fn fault(mut self, fault: FatalFault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// A call stack fails at most once, and the stacks with the hashes `known` do not fail: see
    /// [`Guest::failed_stacks`].
    pub(crate) fn failing_stacks_once(mut self, known: Vec<u64>) -> Self {
        self.stacks = Some(known);
        self
    }

    /// Arms a fail point before the first instruction of the kernel, as
    /// [`Guest::fail`] does later. The last programme of a site counts. Possible error:
    /// [`ConfigError::Fail`].
    pub fn fail(mut self, site: &str, spec: &str) -> Self {
        match fail::parse(site, spec) {
            Ok(armed) => {
                self.armed.push(armed);
                self
            }
            Err(error) => self.but(error.into()),
        }
    }

    /// The same for a programme that has been read.
    pub fn arm(mut self, site: FailSite, spec: &FailSpec) -> Self {
        self.armed.push((site, *spec));
        self
    }

    /// Keeps `error`, unless an earlier setting was invalid.
    fn but(mut self, error: ConfigError) -> Self {
        self.wrong.get_or_insert(error);
        self
    }

    /// Checks the configuration. [`GuestBuilder::launch`] checks the same before it does anything.
    ///
    /// # Errors
    /// The first invalid setting; [`ConfigError::CommandLine`] when all of them together are too
    /// long for the kernel's command line.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match &self.wrong {
            Some(error) => Err(error.clone()),
            None => launch::check_command_line(self),
        }
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
    /// requests. If the kernel dies before that, the guest can be inspected like any dead guest.
    ///
    /// With a `console`, a thread writes every line of the kernel's log there as it arrives, and
    /// the kernel waits for the thread where it may wait; [`Guest::end`] returns the result.
    ///
    /// # Errors
    /// See [`LaunchError`]. Nothing is left behind.
    pub fn start(self, console: Option<Box<dyn Write + Send>>) -> Result<Guest, LaunchError> {
        self.validate()?;
        launch::start(&self, Selftest::No, console)
    }

    /// Boots the guest with `selftest` on its command line, and returns when it has exited through
    /// the exit port.
    ///
    /// # Errors
    /// See [`LaunchError`]; a failed self-test is not an error, but a [`BootReport`] that says so.
    /// Nothing is left behind.
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
        let text =
            |bytes| GuestBuilder::default().memory(bytes).validate().map_err(|e| e.to_string());
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
        let asked = GuestBuilder::default().tunable("kern.hertz", 1).validate();
        let message = asked.expect_err("there is none").to_string();
        assert!(message.contains("kern.hertz") && message.contains("kern.hz"), "{message}");
        assert!(GuestBuilder::default().tunable("kern.hz", 1000).validate().is_ok());
    }

    #[test]
    fn a_tunable_out_of_range_is_refused_with_the_range() {
        let message = |name, value| {
            let asked = GuestBuilder::default().tunable(name, value).validate();
            asked.expect_err("out of range").to_string()
        };
        let text = message("kern.hz", 20_000);
        assert!(
            ["kern.hz", "20000", "at least 1 and at most 10000"]
                .iter()
                .all(|part| text.contains(part)),
            "{text}"
        );
        assert!(message("vm.kmem_size", 1).ends_with("must be at least 4096, got 1 (0x1)"));
    }

    #[test]
    fn no_vcpus_and_too_many_are_refused() {
        assert_eq!(GuestBuilder::default().vcpus(0).validate(), Err(ConfigError::Vcpus(0)));
        assert_eq!(GuestBuilder::default().vcpus(MAX_VCPUS).validate(), Ok(()));
        assert_eq!(GuestBuilder::default().vcpus(65).validate(), Err(ConfigError::Vcpus(65)));
    }

    #[test]
    fn the_first_wrong_setting_waits_for_the_launch() {
        let asked = || GuestBuilder::default().vcpus(65).tunable("kern.hz", 0).memory(5);
        assert_eq!(asked().validate(), Err(ConfigError::Vcpus(65)));
        assert_eq!(asked().memory(MEMORY_MIN).vcpus(2).validate(), Err(ConfigError::Vcpus(65)));
        let error = asked().launch().expect_err("it cannot be");
        assert!(matches!(error, LaunchError::Config(ConfigError::Vcpus(65))), "{error}");
        let error = asked().start(None).expect_err("it cannot be");
        assert!(matches!(error, LaunchError::Config(ConfigError::Vcpus(65))), "{error}");
        let error = asked().run_selftest().expect_err("it cannot be");
        assert!(matches!(error, LaunchError::Config(ConfigError::Vcpus(65))), "{error}");
    }
}
