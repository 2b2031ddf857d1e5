//! From a checked configuration to a guest that serves requests.
//!
//! Two threads share the work: while this one makes the VM and loads the image, the vCPU's own asks KVM for its CPUID.
//! This one never waits for the other, so that a launch on a busy machine loses no time to the scheduler.

use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use vmkern_abi::boot::{BootArgs, Privilege};
use vmkern_abi::control::{ExitCode, Phase};

use super::bell::Bell;
use super::builder::Builder;
use super::environment::{Environment, KvmKind};
use super::error::{ConfigError, ContractError, GuestError, LaunchError};
use super::guest::Guest;
use super::link::Link;
use super::logs::Logs;
use super::machine::{Machine, stop_thread};
use super::wait::Woken;
use crate::devices::{Console, PortBus};
use crate::kvm::memory::{GuestRam, NotRam};
use crate::kvm::vcpu::{self, Orders, VcpuState};
use crate::kvm::vm::Vm;
use crate::kvm::{KvmError, boot, host};

/// How long a launch looks for the kernel before it sleeps: a boot takes about so long.
const LOOK_FOR_READY: Duration = Duration::from_millis(3);
/// Instructions that the kernel times on its way in.
const TIMED_INSTRUCTIONS: u64 = 64;

/// What a kernel did that was booted to run by itself.
#[derive(Clone, Debug)]
pub struct BootReport {
    /// What it wrote to the exit port.
    pub exit: u8,
    /// What it said, over the serial line and in its log.
    pub output: Vec<u8>,
}

impl BootReport {
    /// Whether it left with [`ExitCode::Success`].
    #[must_use]
    pub fn success(&self) -> bool {
        ExitCode::from_code(self.exit) == Some(ExitCode::Success)
    }
}

/// Starts the machine. Nobody waits for the kernel yet.
pub(super) fn start(config: &Builder, selftest: Selftest) -> Result<Guest, LaunchError> {
    let deadline = Instant::now() + config.timeout;
    let kvm = Arc::new(host::open()?);
    let bell = Bell::new()?;
    let state = Arc::new(VcpuState::new(bell));
    let console = Console::default();
    let (sender, orders) = channel();
    let ports = PortBus::new(console.clone());
    let thread = {
        let (kvm, state) = (Arc::clone(&kvm), Arc::clone(&state));
        thread::Builder::new()
            .name("vmkern-vcpu0".to_owned())
            .spawn(move || vcpu::thread(&kvm, 0, &orders, &state, ports))
            .map_err(|error| KvmError::io("starting the vCPU's thread", &error))?
    };
    let prepare = || -> Result<_, LaunchError> {
        let ram = Arc::new(GuestRam::new(config.memory)?);
        let vm = Arc::new(Vm::new(&kvm, Arc::clone(&ram))?);
        let vcpu = vm.create_vcpu(0)?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(KvmError::of("KVM_GET_TSC_KHZ"))?;
        let entry = boot::load_image(&ram, &config.kernel)?;
        let link = Link::new(&ram, boot::CONTROL).map_err(not_ram)?;
        let line = command_line(config, selftest, Some(tsc_khz))?;
        boot::write_start_info(&ram, &line).map_err(not_ram)?;
        sender.send(Orders { vcpu, entry }).map_err(|_| GuestError::from(ContractError::LostVcpu))?;
        Ok((vm, ram, link, tsc_khz))
    };
    let prepared = prepare();
    // A closed channel ends a thread that still waits for its orders.
    drop(sender);
    let (vm, ram, link, tsc_khz) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = stop_thread(thread, &state);
            return Err(error);
        }
    };
    let machine = Machine { vm, ram, state, thread: Some(thread) };
    let environment = Environment {
        accelerator: "kvm",
        kvm: KvmKind::Software,
        privilege: config.privilege,
        vcpus: config.vcpus,
        memory: config.memory,
        seed: config.seed,
        abi: vmkern_abi::ABI_VERSION,
        tsc_khz,
        boot_cycles: 0,
    };
    Ok(Guest::new(link, machine, environment, Logs::new(console), config.kernel.clone(), deadline, config.timeout))
}

fn not_ram(error: NotRam) -> LaunchError {
    LaunchError::Io(KvmError { operation: error.to_string(), errno: libc::EFAULT })
}

/// Whether the kernel is to check itself and leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selftest {
    /// It serves requests.
    No,
    /// It checks itself.
    Yes,
}

/// The kernel's command line.
pub(super) fn command_line(config: &Builder, selftest: Selftest, tsc_khz: Option<u32>) -> Result<String, ConfigError> {
    let args = BootArgs {
        privilege: config.privilege,
        time: config.time,
        selftest: selftest == Selftest::Yes,
        zeroed: true,
        control: Some(boot::CONTROL),
        tsc_khz: tsc_khz.map(u64::from),
        crash: config.crash,
        tunables: config.tunables,
    };
    let line = args.to_string();
    if line.len() < BootArgs::MAX_LEN { Ok(line) } else { Err(ConfigError::CommandLine(line.len())) }
}

impl Guest {
    /// Waits until the kernel serves requests.
    pub(super) fn wait_until_ready(&mut self) -> Result<(), GuestError> {
        // A kernel that is dead will have said so through the exit port in a moment.
        let waits = [Phase::Loading as u32, Phase::Dead as u32];
        let phase = |link: &Link| !waits.contains(&link.region().phase.get());
        let woken = self.waiter.wait(&self.link, &self.machine.state, self.deadline, LOOK_FOR_READY, phase);
        self.logs.collect_console();
        self.logs.collect(&self.link.region().log);
        match woken {
            Woken::News if self.machine.state.end.get().is_some() => return Err(self.end()),
            Woken::News => {}
            Woken::Interrupted => return Err(GuestError::Interrupted),
            Woken::Deadline => return Err(self.time_is_up()),
        }
        self.read_published().map_err(|error| self.die(error.into()))
    }

    /// Reads what the kernel published when it became ready.
    fn read_published(&mut self) -> Result<(), ContractError> {
        // The kernel writes `phase` last; this load orders the ones below after it.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        let region = self.link.region();
        let impossible = |field, value| ContractError::Control { field, value };
        let phase = region.phase.get();
        if phase != Phase::Ready as u32 {
            return Err(impossible("phase", phase.into()));
        }
        let guest = region.guest_abi_version.get();
        if guest != vmkern_abi::ABI_VERSION {
            return Err(ContractError::AbiVersion { guest, host: vmkern_abi::ABI_VERSION });
        }
        self.environment.privilege = match region.body_cpl.get() {
            0 => Privilege::Supervisor,
            3 => Privilege::User,
            cpl => return Err(impossible("body_cpl", cpl.into())),
        };
        let picoseconds_per_cycle = 1_000_000_000 / u64::from(self.environment.tsc_khz.max(1));
        let nanoseconds = region.cpl0_cycles.get().saturating_mul(picoseconds_per_cycle) / 1_000 / TIMED_INSTRUCTIONS;
        self.environment.kvm = KvmKind::from_instruction_time(nanoseconds);
        self.environment.boot_cycles = region.ready_tsc.get().saturating_sub(region.entry_tsc.get());
        Ok(())
    }

    /// Waits until the kernel leaves by itself.
    pub(super) fn run_to_exit(mut self) -> Result<BootReport, LaunchError> {
        let woken = self.waiter.wait(&self.link, &self.machine.state, self.deadline, Duration::ZERO, |_| false);
        match (woken, self.machine.state.end.get()) {
            (Woken::News, Some(&vcpu::VcpuEnd::Exit(exit))) if exit != ExitCode::Crash as u8 => {
                Ok(BootReport { exit, output: self.take_log() })
            }
            (Woken::News, _) => Err(self.end().into()),
            (Woken::Interrupted, _) => Err(GuestError::Interrupted.into()),
            (Woken::Deadline, _) => Err(self.time_is_up().into()),
        }
    }
}

/// The symbols of a kernel, read when they are first asked for.
#[derive(Debug)]
pub(super) struct LazySymbols {
    pub(super) kernel: crate::image::KernelImage,
    pub(super) symbols: OnceLock<crate::symbols::Symbols>,
}
