//! What the host tells the kernel at boot: one line of text, the PVH command line.
//!
//! Text, because the same image boots under any PVH loader: `-append "selftest privilege=user"`
//! tells QEMU's guest what [`BootArgs`] tells ours. Words are separated by blanks; a word is `key`
//! or `key=value`. Memory comes from the PVH memory map, not from here.

use core::fmt;
use core::ops::RangeInclusive;

use crate::addr::{GuestPhys, PAGE_SIZE};
use crate::codes::codes;
use crate::crash::{CrashKind, FatalFault};
use crate::virtio::mmio::{self, MmioDevice, MmioDevices};

codes! {
    /// The privilege level at which the kernel body runs.
    #[derive(Default)]
    pub enum Privilege {
        /// The kernel times a few CPL0 instructions on its way in and chooses the faster level.
        #[default]
        Auto => "auto",
        /// CPL0.
        Supervisor => "supervisor",
        /// CPL3 on top of a small CPL0 nucleus.
        User => "user",
    }
}

codes! {
    /// How the kernel's clock moves.
    #[derive(Default)]
    pub enum TimeMode {
        /// The clock jumps to the next timeout when nothing is runnable.
        #[default]
        Virtual => "virtual",
        /// The clock follows the TSC.
        Real => "real",
    }
}

/// A row of the table of tunables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunable {
    /// FreeBSD's name.
    pub name: &'static str,
    /// The values that it can have.
    pub range: RangeInclusive<u64>,
    /// What it sets, its unit and its default.
    pub says: &'static str,
}

macro_rules! tunables {
    ($($(#[doc = $doc:literal])* $field:ident = $name:literal in $range:expr),* $(,)?) => {
        /// Kernel tunables, by FreeBSD's names. `None` leaves FreeBSD's default.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        pub struct Tunables {
            $($(#[doc = $doc])* pub $field: Option<u64>,)*
        }

        impl Tunables {
            /// Every name that [`Tunables::set`] knows.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Every tunable, in the order of [`Tunables::NAMES`]: for help and documentation.
            pub const TABLE: &'static [Tunable] = &[$(
                Tunable { name: $name, range: $range, says: concat!($($doc),*).trim_ascii() }
            ),*];

            /// Sets the tunable called `name`.
            ///
            /// # Errors
            /// When no tunable has that name, or `value` is outside of [`Tunables::range`]. Nothing
            /// has changed then.
            pub fn set(&mut self, name: &str, value: u64) -> Result<(), TunableError> {
                let range = Self::range(name).ok_or(TunableError::Unknown)?;
                if !range.contains(&value) {
                    return Err(TunableError::OutOfRange { min: *range.start(), max: *range.end() });
                }
                match name {
                    $($name => self.$field = Some(value),)*
                    _ => return Err(TunableError::Unknown),
                }
                Ok(())
            }

            /// The values that the tunable called `name` can have, if there is one.
            #[must_use]
            pub fn range(name: &str) -> Option<RangeInclusive<u64>> {
                let found = Self::TABLE.iter().find(|tunable| tunable.name == name);
                found.map(|tunable| tunable.range.clone())
            }

            /// The tunables that are set, by name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let all = [$(($name, self.$field)),*];
                all.into_iter().filter_map(|(name, value)| Some((name, value?)))
            }
        }
    };
}

/// The largest value of what is an `int` in FreeBSD.
const INT_MAX: u64 = i32::MAX as u64;

tunables! {
    /// Clock ticks a second; default 1000.
    kern_hz = "kern.hz" in 1..=10_000,
    /// Scales other defaults; default, and meaning of 0, `clamp(P / 512, 32, 384)`.
    kern_maxusers = "kern.maxusers" in 0..=65_536,
    /// Pages that kmem_map keeps for mbuf clusters; default `1024 + 64 * maxusers`.
    kern_ipc_nmbclusters = "kern.ipc.nmbclusters" in 0..=INT_MAX,
    /// Bytes of kmem_map, over every other rule but the last: twice the memory at most.
    vm_kmem_size = "vm.kmem_size" in PAGE_SIZE..=u64::MAX,
    /// One part in this many of memory goes to kmem_map; default 3, 0 for none.
    vm_kmem_size_scale = "vm.kmem_size_scale" in 0..=INT_MAX,
    /// Lower bound of kmem_map's size in bytes; default 0.
    vm_kmem_size_min = "vm.kmem_size_min" in 0..=u64::MAX,
    /// Upper bound of kmem_map's size in bytes, 0 for none; default 400 MiB.
    vm_kmem_size_max = "vm.kmem_size_max" in 0..=u64::MAX,
    /// Buffers, 16 KiB each in buffer_map; default, and meaning of 0, 50 and more by the size of
    /// memory.
    kern_nbuf = "kern.nbuf" in 0..=INT_MAX,
    /// Transfers, 128 KiB each in pager_map; default, and meaning of 0, `clamp(nbuf / 4, 16, 256)`.
    kern_nswbuf = "kern.nswbuf" in 0..=65_536,
    /// Upper bound of buffer_map's size in bytes unless kern.nbuf is given; default 400 MiB, 0 for
    /// none.
    kern_maxbcache = "kern.maxbcache" in 0..=u64::MAX,
    /// Argument buffers, 268 KiB each in exec_map; default 16.
    vm_exec_map_entries = "vm.exec_map_entries" in 1..=65_536,
    /// Bytes of pipe_map; default a twentieth of kmem_map, at least 512 KiB.
    kern_ipc_maxpipekva = "kern.ipc.maxpipekva" in 1..=1 << 38,
    /// 1 to count the cycles that locks are held; default 0.
    debug_lock_prof_enable = "debug.lock.prof.enable" in 0..=1,
    /// 1 to clear free pages while nothing else runs; default 0.
    vm_idlezero_enable = "vm.idlezero_enable" in 0..=1,
    /// Most free pages that a CPU keeps for itself, 0 for no such caches; default 64. With one CPU
    /// there are none.
    vm_pgcache_zone_max_pcpu = "vm.pgcache_zone_max_pcpu" in 0..=65_536,
}

/// A tunable that cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunableError {
    /// No tunable has that name.
    Unknown,
    /// It cannot have that value.
    OutOfRange {
        /// The least value that it can have.
        min: u64,
        /// The greatest.
        max: u64,
    },
}

/// CPUs that a kernel can use (`MAXCPU`).
pub const MAX_VCPUS: u32 = 64;

/// The kernel starts its other CPUs in the pages from page 1 up to here. Loaders put nothing there.
pub const AP_END: GuestPhys = GuestPhys::new(0x6000);

/// Everything the command line can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BootArgs {
    /// `privilege=auto|supervisor|user`.
    pub privilege: Privilege,
    /// `time=virtual|real`.
    pub time: TimeMode,
    /// `selftest`: check traps, paging, timer and kmem, report on the serial line, leave by the
    /// exit port.
    pub selftest: bool,
    /// `selftest=balloon`: fill and verify memory until a balloon has grown and is empty again,
    /// leave by the exit port.
    pub balloon_test: bool,
    /// `zeroed`: all memory is zero except what the loader wrote, so the page array need not be
    /// cleared.
    pub zeroed: bool,
    /// `control=ADDRESS`: where the [`crate::control::ControlRegion`] lies, if there is one.
    pub control: Option<GuestPhys>,
    /// `crash=panic|page-fault|trap|stack-overflow|nucleus`: die in that way, to test that the
    /// report arrives.
    pub crash: Option<CrashKind>,
    /// `fault=hole|nofault|mutex|...`: once memory and CPUs are up, die of that page fault, to test
    /// that the report says why.
    pub fault: Option<FatalFault>,
    /// `tsc_khz=N`: the frequency of the TSC, if the host knows it.
    pub tsc_khz: Option<u64>,
    /// `vcpus=N`: CPUs to use, those with APIC IDs 0 to N - 1; 1 to [`MAX_VCPUS`], 1 unless said
    /// otherwise.
    pub vcpus: Option<u32>,
    /// `NAME=VALUE` for each tunable.
    pub tunables: Tunables,
    /// `virtio_mmio.device=SIZE@BASE:IRQ` for each virtio device, at most [`MmioDevices::MAX`].
    pub devices: MmioDevices,
}

/// A word of the command line that is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWord<'a>(pub &'a str);

impl fmt::Display for BadWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad word `{}` on the kernel command line", self.0)
    }
}

impl BootArgs {
    /// Longest command line in bytes, the final NUL included.
    pub const MAX_LEN: usize = 2048;

    /// Reads a command line.
    ///
    /// # Errors
    /// The first word that is unknown or has a bad value.
    pub fn parse(line: &str) -> Result<Self, BadWord<'_>> {
        let mut args = Self::default();
        for word in line.split_ascii_whitespace() {
            args.word(word).ok_or(BadWord(word))?;
        }
        Ok(args)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        // By parts: a comparison of 16 bytes or more takes vector instructions, which a KVM that
        // emulates CPL0 does not know.
        if let Some(value) = word.strip_prefix(mmio::BUS).and_then(|w| w.strip_prefix(mmio::KEY)) {
            return self.devices.add(MmioDevice::parse(value)?);
        }
        let (key, value) =
            word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("selftest", None) => self.selftest = true,
            ("selftest", Some("balloon")) => self.balloon_test = true,
            ("zeroed", None) => self.zeroed = true,
            ("privilege", Some(value)) => self.privilege = Privilege::from_name(value)?,
            ("time", Some(value)) => self.time = TimeMode::from_name(value)?,
            ("control", Some(value)) => self.control = Some(GuestPhys::new(number(value)?)),
            ("crash", Some(value)) => self.crash = Some(CrashKind::from_name(value)?),
            ("fault", Some(value)) => self.fault = Some(FatalFault::from_name(value)?),
            ("tsc_khz", Some(value)) => self.tsc_khz = Some(number(value).filter(|&khz| khz > 0)?),
            ("vcpus", Some(value)) => {
                let count = u32::try_from(number(value)?).ok()?;
                self.vcpus =
                    Some(count).filter(|count| (1..=MAX_VCPUS).contains(count)).map(Some)?;
            }
            (name, Some(value)) => self.tunables.set(name, number(value)?).ok()?,
            _ => return None,
        }
        Some(())
    }
}

/// The inverse of [`BootArgs::parse`].
impl fmt::Display for BootArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 1. Words that are there or not.
        write!(f, "privilege={} time={}", self.privilege.name(), self.time.name())?;
        if self.selftest {
            f.write_str(" selftest")?;
        }
        if self.balloon_test {
            f.write_str(" selftest=balloon")?;
        }
        if self.zeroed {
            f.write_str(" zeroed")?;
        }
        // 2. Words with a value.
        if let Some(control) = self.control {
            write!(f, " control={control:#x}")?;
        }
        if let Some(kind) = self.crash {
            write!(f, " crash={}", kind.name())?;
        }
        if let Some(fault) = self.fault {
            write!(f, " fault={}", fault.name())?;
        }
        if let Some(khz) = self.tsc_khz {
            write!(f, " tsc_khz={khz}")?;
        }
        if let Some(count) = self.vcpus {
            write!(f, " vcpus={count}")?;
        }
        for (name, value) in self.tunables.iter() {
            write!(f, " {name}={value}")?;
        }
        for device in self.devices.iter() {
            write!(f, " {}{}{device}", mmio::BUS, mmio::KEY)?;
        }
        Ok(())
    }
}

/// A number, decimal or `0x`.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut args = BootArgs {
            privilege: Privilege::User,
            time: TimeMode::Real,
            selftest: true,
            balloon_test: true,
            zeroed: true,
            control: Some(GuestPhys::new(0x2_0000)),
            crash: Some(CrashKind::Nucleus),
            fault: Some(FatalFault::CriticalSection),
            tsc_khz: Some(2_445_000),
            vcpus: Some(2),
            tunables: Tunables::default(),
            devices: MmioDevices::one(MmioDevice { base: mmio::BALLOON_AT, irq: 12 }),
        };
        for (offset, name) in (1..).zip(Tunables::NAMES) {
            let range = Tunables::range(name).expect("a listed name is known");
            args.tunables
                .set(name, (range.start() + offset).min(*range.end()))
                .expect("the value is in range");
        }
        assert_eq!(BootArgs::parse(&args.to_string()), Ok(args));
        assert_eq!(BootArgs::parse(""), Ok(BootArgs::default()));
    }

    #[test]
    fn a_bad_word_is_named() {
        for word in [
            "selftst",
            "privilege=root",
            "kern.hz=fast",
            "vm.kmem_sise=1",
            "tsc_khz=0",
            "vcpus=65",
            "zeroed=1",
            "selftest=all",
            "fault=none",
            "kern.hz=0",
            "virtio_mmio.device=512@0x1000:12",
        ] {
            let line = std::format!("time=real {word}");
            assert_eq!(BootArgs::parse(&line), Err(BadWord(word)));
        }
    }

    #[test]
    fn a_tunable_takes_the_values_in_its_range_and_no_others() {
        for name in Tunables::NAMES {
            let (min, max) = Tunables::range(name).expect("a listed name is known").into_inner();
            let refused = Err(TunableError::OutOfRange { min, max });
            let set = |value| Tunables::default().set(name, value);
            assert_eq!((set(min), set(max)), (Ok(()), Ok(())), "{name}");
            assert!(min.checked_sub(1).is_none_or(|below| set(below) == refused), "{name}");
            assert!(max.checked_add(1).is_none_or(|above| set(above) == refused), "{name}");
        }
        let mut tunables = Tunables::default();
        assert_eq!(
            tunables.set("kern.hz", 0),
            Err(TunableError::OutOfRange { min: 1, max: 10_000 })
        );
        assert_eq!(tunables.set("kern.hertz", 1), Err(TunableError::Unknown));
        assert_eq!(tunables, Tunables::default());
    }
}
