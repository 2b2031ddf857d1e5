//! Options that describe a guest.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Args, Command};
use vmkern::guest::{DEFAULT_MEMORY, DEFAULT_TIMEOUT, FailSite, FailSpec, KernelImage};
use vmkern::script::{EnvironmentReport, GuestOptions, values};
use vmkern::{GuestBuilder, LaunchError, Privilege, TimeMode};

/// Parses `SITE=SPEC`. Values of other options are short, and the parser of the command line quotes
/// them as a whole; here the error shows the place, as for a script.
#[derive(Clone)]
struct FailPoint;

impl TypedValueParser for FailPoint {
    type Value = (FailSite, FailSpec);

    fn parse_ref(
        &self,
        _: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        values::fail_point(&value.to_string_lossy()).map_err(|wrong| {
            let option = arg.map_or_else(String::new, |arg| format!(" for '{arg}'"));
            let text =
                format!("invalid value{option}: {wrong}\n\nFor more information, try '--help'.\n");
            clap::Error::raw(ErrorKind::ValueValidation, text)
        })
    }
}

/// The guest to boot.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Guest")]
pub struct GuestArgs {
    /// Memory of the guest: 8M to 64G, with a suffix of K M G. 64M by default.
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    memory: Option<u64>,
    /// CPUs of the guest: 1 to 64; 1 by default. More CPUs than this machine has cores are slow.
    #[arg(long, value_name = "COUNT")]
    vcpus: Option<u32>,
    /// Privilege of the kernel's body: `auto`, the default, takes what is faster here.
    #[arg(long, value_name = "auto|supervisor|user", value_parser = privilege)]
    privilege: Option<Privilege>,
    /// How the kernel's clock moves: `virtual`, the default, jumps over sleeps, `real` takes their
    /// time.
    #[arg(long, value_name = "virtual|real", value_parser = time_mode)]
    time: Option<TimeMode>,
    /// Time limit of a run, with a suffix of us ms s. 60s by default.
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    timeout: Option<Duration>,
    /// Seed of rand() in scripts. 0 by default.
    #[arg(long, value_name = "NUMBER", value_parser = values::number)]
    seed: Option<u64>,
    /// Binds a name before the first line of a script, as `let` does; a `let` of that name in the
    /// script is then skipped. Can be given several times.
    #[arg(long = "let", value_name = "NAME=VALUE", value_parser = values::binding)]
    lets: Vec<(String, u64)>,
    /// Sets a kernel tunable by its name, see the list below; can be given several times.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = values::setting)]
    settings: Vec<(String, u64)>,
    /// Arms a fail point before the kernel's first instruction: `[N%][M*]action[(argument)][->...]`
    /// at a site of the list below; can be given several times.
    #[arg(long = "fail", value_name = "SITE=SPEC", value_parser = FailPoint)]
    fails: Vec<(FailSite, FailSpec)>,
    /// Boots this kernel image, an ELF file with a PVH entry note or vmkern's own beside it, in
    /// place of the built-in one.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
}

/// The side that counts where the command line and a script's `guest` line differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    /// The command line's: `vmkern run`.
    CommandLine,
    /// The script's: `vmkern test`.
    Script,
}

/// The options of the command line and of a script's `guest` line together.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The options that count.
    pub guest: GuestArgs,
    /// The keys for which the side that does not count has another value.
    pub overruled: Vec<String>,
}

/// The value of two that counts, and whether the other is different.
fn pick<T: Clone + PartialEq>(
    ours: &Option<T>,
    theirs: &Option<T>,
    precedence: Precedence,
) -> (Option<T>, bool) {
    let (first, second) = match precedence {
        Precedence::CommandLine => (ours, theirs),
        Precedence::Script => (theirs, ours),
    };
    let differ = matches!((first, second), (Some(first), Some(second)) if first != second);
    (first.clone().or_else(|| second.clone()), differ)
}

impl GuestArgs {
    /// The guest that they describe.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn builder(&self) -> Result<GuestBuilder, LaunchError> {
        let mut builder = self.options().builder();
        builder.validate()?;
        for (site, spec) in &self.fails {
            builder = builder.arm(*site, spec);
        }
        if let Some(path) = &self.kernel {
            let image = KernelImage::from_file(path)?;
            image.check(self.memory())?;
            builder = builder.kernel(image);
        }
        Ok(builder)
    }

    /// The same as a `guest` line would say it: all except the kernel and fail points.
    fn options(&self) -> GuestOptions {
        let Self { memory, vcpus, privilege, time, timeout, seed, .. } = *self;
        GuestOptions {
            memory,
            vcpus,
            privilege,
            time,
            timeout,
            seed,
            tunables: self.settings.clone(),
        }
    }

    /// What a report of a run says of a guest that there is not.
    pub fn asked(&self) -> EnvironmentReport {
        EnvironmentReport::asked(self.vcpus(), self.memory(), self.seed())
    }

    /// Names that are bound before the first line of a script.
    pub fn lets(&self) -> &[(String, u64)] {
        &self.lets
    }

    /// These options together with a script's own.
    pub fn with(&self, script: &GuestOptions, precedence: Precedence) -> Merged {
        let mut guest = self.clone();
        let mut overruled = Vec::new();
        macro_rules! merge {
            ($($key:ident),*) => {$(
                let differ;
                (guest.$key, differ) = pick(&self.$key, &script.$key, precedence);
                if differ {
                    overruled.push(stringify!($key).to_owned());
                }
            )*};
        }
        merge!(memory, vcpus, privilege, time, timeout, seed);
        for (name, value) in &script.tunables {
            match guest.settings.iter_mut().find(|(known, _)| known == name) {
                None => guest.settings.push((name.clone(), *value)),
                Some((_, ours)) if ours == value => {}
                Some((_, ours)) => {
                    overruled.push(name.clone());
                    if precedence == Precedence::Script {
                        *ours = *value;
                    }
                }
            }
        }
        Merged { guest, overruled }
    }

    /// The kernel image in place of the built-in one.
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
    }

    /// The options of the guest as a command line has them, each with a blank before it.
    pub fn flags(&self) -> String {
        let mut flags = self.machine();
        if let Some(seed) = self.seed {
            flags.push_str(&format!(" --seed {seed}"));
        }
        for (name, value) in &self.lets {
            flags.push_str(&format!(" --let {name}={value}"));
        }
        flags
    }

    /// Those of the options that a boot depends on.
    pub fn machine(&self) -> String {
        let mut flags = String::new();
        if let Some(memory) = self.memory {
            flags.push_str(&format!(" --memory {memory}"));
        }
        if let Some(privilege) = self.privilege {
            flags.push_str(&format!(" --privilege {}", privilege.name()));
        }
        for (name, value) in &self.settings {
            flags.push_str(&format!(" --set {name}={value}"));
        }
        if let Some(kernel) = &self.kernel {
            flags.push_str(&format!(" --kernel {}", kernel.display()));
        }
        flags
    }

    /// How the kernel's clock moves.
    pub fn time(&self) -> TimeMode {
        self.time.unwrap_or_default()
    }

    /// CPUs.
    pub fn vcpus(&self) -> u32 {
        self.vcpus.unwrap_or(1)
    }

    /// Bytes of memory.
    pub fn memory(&self) -> u64 {
        self.memory.unwrap_or(DEFAULT_MEMORY)
    }

    /// Seed of `rand`.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// The same with another seed.
    pub fn seeded(&self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self.clone() }
    }

    /// Time limit of a run.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }
}

fn privilege(text: &str) -> Result<Privilege, String> {
    Privilege::from_name(text).ok_or_else(|| "expected auto, supervisor or user".to_owned())
}

fn time_mode(text: &str) -> Result<TimeMode, String> {
    TimeMode::from_name(text).ok_or_else(|| "expected virtual or real".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_both_speak_the_one_counts_that_has_precedence_and_the_difference_is_told() {
        let args = GuestArgs {
            memory: Some(1 << 30),
            vcpus: Some(2),
            settings: vec![("kern.hz".to_owned(), 100), ("vm.kmem_size".to_owned(), 1)],
            ..GuestArgs::default()
        };
        let script = GuestOptions {
            memory: Some(8 << 20),
            vcpus: Some(2),
            seed: Some(7),
            tunables: vec![("kern.hz".to_owned(), 1000), ("kern.nbuf".to_owned(), 4)],
            ..GuestOptions::default()
        };
        for (precedence, memory, hz) in
            [(Precedence::CommandLine, 1 << 30, 100), (Precedence::Script, 8 << 20, 1000)]
        {
            let Merged { guest, overruled } = args.with(&script, precedence);
            assert_eq!(
                (guest.memory(), guest.vcpus(), guest.seed()),
                (memory, 2, 7),
                "{precedence:?}"
            );
            let settings: Vec<_> =
                guest.settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            assert_eq!(
                settings,
                [("kern.hz", hz), ("vm.kmem_size", 1), ("kern.nbuf", 4)],
                "{precedence:?}"
            );
            assert_eq!(overruled, ["memory", "kern.hz"], "{precedence:?}");
        }
    }
}
