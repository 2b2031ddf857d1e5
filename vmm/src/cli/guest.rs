//! Options that describe a guest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use vmkern::{Builder, DEFAULT_MEMORY, DEFAULT_TIMEOUT, Guest, KernelImage, LaunchError, Privilege, TimeMode};

use super::values;

/// The guest to boot.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Guest")]
pub struct GuestArgs {
    /// Memory of the guest: 8M to 64G, with a suffix of K M G.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = values::size)]
    memory: u64,
    /// CPUs of the guest: 1 to 64. More than this machine has cores are slow.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    vcpus: u32,
    /// Privilege of the kernel's body: `auto` takes what is faster here.
    #[arg(long, value_name = "auto|supervisor|user", default_value = "auto", value_parser = privilege)]
    privilege: Privilege,
    /// How the kernel's clock moves: `virtual` jumps over sleeps, `real` takes their time.
    #[arg(long, value_name = "virtual|real", default_value = "virtual", value_parser = time_mode)]
    time: TimeMode,
    /// Time limit of a run, with a suffix of us ms s.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::time)]
    timeout: Duration,
    /// Seed of rand() in scripts.
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = values::number)]
    seed: u64,
    /// Sets a kernel tunable, by the names that --help lists; may be given several times.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = values::setting)]
    settings: Vec<(String, u64)>,
    /// Boots this kernel image, an ELF file with a PVH entry note, in place of the built-in one.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
}

impl Default for GuestArgs {
    fn default() -> Self {
        Self {
            memory: DEFAULT_MEMORY,
            vcpus: 1,
            privilege: Privilege::Auto,
            time: TimeMode::Virtual,
            timeout: DEFAULT_TIMEOUT,
            seed: 0,
            settings: Vec::new(),
            kernel: None,
        }
    }
}

impl GuestArgs {
    /// The guest that they describe.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn builder(&self) -> Result<Builder, LaunchError> {
        let mut builder = Guest::builder()
            .memory(self.memory)
            .vcpus(self.vcpus)
            .privilege(self.privilege)
            .time(self.time)
            .timeout(self.timeout)
            .seed(self.seed);
        for (name, value) in &self.settings {
            builder = builder.tunable(name, *value)?;
        }
        builder.validate()?;
        if let Some(path) = &self.kernel {
            let image = KernelImage::from_file(path)?;
            image.check(self.memory)?;
            builder = builder.kernel(image);
        }
        Ok(builder)
    }

    /// The kernel image in place of the built-in one.
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
    }

    /// CPUs.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Bytes of memory.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Seed of `rand`.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Time limit of a run.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

fn privilege(text: &str) -> Result<Privilege, String> {
    Privilege::from_name(text).ok_or_else(|| "expected auto, supervisor or user".to_owned())
}

fn time_mode(text: &str) -> Result<TimeMode, String> {
    TimeMode::from_name(text).ok_or_else(|| "expected virtual or real".to_owned())
}
