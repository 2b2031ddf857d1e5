//! From a checked configuration to a guest that serves requests.
//!
//! Two threads share the work: while this one creates the VM, the vCPU's own thread fills the
//! guest's memory ([`Load`]), and asks KVM for its CPUID when it is told to hold. Then this thread
//! continues with the memory while the other creates the vCPU, and the one that finishes first
//! helps. This thread never waits for the other, so a launch on a busy machine loses no time to the
//! scheduler.

use std::io::Write;
use std::mem::offset_of;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::Kvm;
use vmkern_abi::ABI_VERSION;
use vmkern_abi::boot::{BootArgs, Privilege};
use vmkern_abi::control::{ControlRegion, ExitCode, Phase};
use vmkern_abi::describe;
use vmkern_abi::entry::TIMED_INSTRUCTIONS;
use vmkern_abi::paging::Paging;
use vmkern_abi::virtio::mmio::MmioDevices;
use vmkern_inspect::{Handshake, shake};

use super::balloon::BalloonDevice;
use super::builder::GuestBuilder;
use super::environment::{Environment, KvmKind};
use super::error::{ConfigError, ContractError, GuestError, LaunchError, Unemulated};
use super::fail;
use super::handle::Guest;
use super::hypervisor::{Hypervisor, Vcpus};
use super::link::Link;
use super::live::Hold;
use super::logs::{Collector, Keeper, Logs};
use super::wait::Woken;
use crate::deadline;
use crate::devices::{Console, Devices, Wires};
use crate::inspect::NotRam;
use crate::kvm::bell::Bell;
use crate::kvm::load::Load;
use crate::kvm::memory::GuestRam;
use crate::kvm::vcpu::{self, Board, Finish, Orders, Start};
use crate::kvm::vm::KvmVm;
use crate::kvm::{CpuFailure, CpuFault, KvmError, boot, host};

/// How long a launch polls for the kernel before it sleeps: about the time of a boot.
const LOOK_FOR_READY: Duration = Duration::from_millis(3);
/// How often a launch that sleeps looks at the version of the kernel's ABI. A kernel of another
/// version may put its phase elsewhere, and does not know how to wake the host.
const LOOK_AT_ABI: Duration = Duration::from_millis(20);
/// How long a kernel may take to write the rest of the handshake behind the first word of it.
const HANDSHAKE: Duration = Duration::from_millis(10);

/// The result of a kernel that was booted to run by itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BootReport {
    /// The value that it wrote to the exit port.
    pub exit: u8,
    /// Its output, over the serial line and in its log.
    pub output: Vec<u8>,
}

impl BootReport {
    /// Whether it exited with [`ExitCode::Success`].
    #[must_use]
    pub fn success(&self) -> bool {
        ExitCode::from_code(self.exit) == Some(ExitCode::Success)
    }
}

/// Starts the machine, without waiting for the kernel.
pub(super) fn start(
    config: &GuestBuilder,
    selftest: Selftest,
    log: Option<Box<dyn Write + Send>>,
) -> Result<Guest, LaunchError> {
    // 1. The vCPUs' threads, which are stopped again if anything fails.
    let deadline = deadline::after(config.timeout);
    let kvm = Arc::new(host::open()?);
    let mut vcpus = Vcpus::new(Bell::new()?, config.vcpus);
    let console = Console::default();
    let started = start_vcpus(config, selftest, &kvm, &mut vcpus, &console, log);
    let Started { vm, ram, link, logs, balloon } = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = vcpus.stop();
            return Err(error);
        }
    };
    // 2. A guest. Values that are unknown before the kernel is ready are filled in then.
    let hypervisor = Hypervisor { vm, ram, vcpus };
    let environment = Environment {
        accelerator: "kvm",
        kvm: KvmKind::Software,
        privilege: config.privilege,
        vcpus: config.vcpus,
        time: config.time,
        memory: config.memory,
        seed: config.seed,
        abi: ABI_VERSION,
        tsc_khz: 0,
        boot_cycles: 0,
    };
    Ok(Guest::new(
        balloon,
        link,
        hypervisor,
        environment,
        logs,
        config.kernel.clone(),
        deadline,
        config.timeout,
    ))
}

/// The channels to and from the vCPUs' threads.
struct Threads {
    load: Sender<Arc<Load>>,
    entry: Sender<Finish>,
    boards: Vec<Sender<Board>>,
    made: Receiver<()>,
}

/// Starts the vCPUs' threads, which end by themselves when the returned value is dropped.
fn spawn(kvm: &Arc<Kvm>, vcpus: &mut Vcpus) -> Result<Threads, KvmError> {
    let (load_sender, load) = channel();
    let (entry_sender, entry) = channel();
    let (made_sender, made) = channel();
    let mut boards = Vec::with_capacity(vcpus.states.len());
    let mut boot = Some(Start::Boot { load, entry });
    for state in vcpus.states.clone() {
        let (board_sender, board) = channel();
        boards.push(board_sender);
        let start = boot.take().unwrap_or_else(|| Start::Wait(made_sender.clone()));
        let orders = Orders { board, start };
        let kvm = Arc::clone(kvm);
        let thread = thread::Builder::new()
            .name(format!("vmkern-vcpu{}", state.id))
            .spawn(move || vcpu::thread(&kvm, orders, &state))
            .map_err(|error| KvmError::io("starting a vCPU's thread", &error))?;
        vcpus.has_thread(thread);
    }
    Ok(Threads { load: load_sender, entry: entry_sender, boards, made })
}

/// What a machine consists of besides its vCPUs.
struct Started {
    vm: Arc<KvmVm>,
    ram: Arc<GuestRam>,
    link: Link,
    logs: Logs,
    balloon: Option<BalloonDevice>,
}

/// Starts the vCPUs' threads and, while they start, creates what they need. If this fails, the
/// threads end by themselves.
fn start_vcpus(
    config: &GuestBuilder,
    selftest: Selftest,
    kvm: &Arc<Kvm>,
    vcpus: &mut Vcpus,
    console: &Console,
    log: Option<Box<dyn Write + Send>>,
) -> Result<Started, LaunchError> {
    // 1. The threads: each takes a while to start.
    let threads = spawn(kvm, vcpus)?;
    // 2. The memory, which the first vCPU's thread begins to fill, and the VM.
    let plan = config.kernel.plan(config.memory)?;
    let ram = Arc::new(GuestRam::new(config.memory)?);
    let load = Arc::new(Load::new(Arc::clone(&ram), config.kernel.clone(), &plan));
    // Here and below, ignore a thread that has ended already: the wait for the guest notices it.
    let _ = threads.load.send(Arc::clone(&load));
    let mut vm = KvmVm::create(kvm)?;
    load.hold();
    vm.furnish(Arc::clone(&ram), config.vcpus)?;
    let vm = Arc::new(vm);
    let log_bell = log.is_some().then(Bell::new).transpose()?;
    let wires = Wires {
        console: console.clone(),
        bell: Arc::clone(&vcpus.crew.bell),
        log_bell: log_bell.clone(),
    };
    let mut devices = Devices::new(wires);
    let balloon = config.balloon.then(|| {
        let bell = Arc::clone(&vcpus.crew.bell);
        BalloonDevice::attach(&mut devices, &vm, &ram, &plan, bell)
    });
    let board = Board { vm: Arc::clone(&vm), io: Arc::new(devices) };
    for sender in threads.boards {
        let _ = sender.send(board.clone());
    }
    // 3. Everything that can be done before the memory is filled, and then the rest of the filling.
    let link = Link::new(&ram, boot::CONTROL).map_err(|error| LaunchError::Io(not_ram(error)))?;
    if !config.armed.is_empty() {
        arm(config, &link);
    }
    let logs = logs(&ram, console, log.zip(log_bell))?;
    let args = boot_args(config, selftest);
    let memory = Arc::clone(&ram);
    let begin = boot::Begin { entry: plan.entry, privilege: config.privilege };
    let finish = move |tsc_khz: u32, paging: Paging| {
        let line = BootArgs { tsc_khz: Some(tsc_khz.into()), ..args }.to_string();
        let written =
            write_paging(&memory, paging).and_then(|()| boot::write_start_info(&memory, &line));
        written.map(|()| begin).map_err(not_ram)
    };
    load.finish();
    // The kernel must find all CPUs that it will start. If one could not be created, the wait for
    // the guest notices it.
    let _made = threads.made.iter().take(vcpus.states.len() - 1).count();
    let _ = threads.entry.send(Box::new(finish) as Finish);
    Ok(Started { vm, ram, link, logs, balloon })
}

/// Chooses what moves the log out of the guest: a thread, if all of it must be written to `log`.
fn logs(
    ram: &Arc<GuestRam>,
    console: &Console,
    log: Option<(Box<dyn Write + Send>, Arc<Bell>)>,
) -> Result<Logs, LaunchError> {
    let Some((log, bell)) = log else {
        return Ok(Logs::Collected(Collector::new(console.clone())));
    };
    let region = ram.shared::<ControlRegion>(boot::CONTROL).map_err(not_ram)?;
    Ok(Logs::Kept(Keeper::start(region, console.clone(), log, bell)?))
}

/// Arms the sites that the configuration names, before the kernel runs.
fn arm(config: &GuestBuilder, link: &Link) {
    let region = link.region();
    region.fail.random.set(config.seed);
    for (site, spec) in &config.armed {
        fail::arm(region, *site, spec);
    }
    if let Some(known) = &config.stacks {
        fail::list_stacks(region, known);
    }
}

/// Tells the kernel its CPUs' requirements for page-table entries.
fn write_paging(ram: &GuestRam, paging: Paging) -> Result<(), NotRam> {
    let at = boot::CONTROL.add(offset_of!(ControlRegion, paging) as u64);
    ram.write(at, &paging.word().to_le_bytes())
}

fn not_ram(error: NotRam) -> KvmError {
    KvmError { operation: error.to_string(), errno: libc::EFAULT }
}

/// Whether the kernel runs its self-test and exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selftest {
    /// It serves requests.
    No,
    /// It checks itself.
    Yes,
}

/// The kernel's arguments, except the TSC's frequency.
fn boot_args(config: &GuestBuilder, selftest: Selftest) -> BootArgs {
    BootArgs {
        privilege: config.privilege,
        time: config.time,
        selftest: selftest == Selftest::Yes,
        balloon_test: false,
        zeroed: true,
        control: Some(boot::CONTROL),
        tsc_khz: None,
        vcpus: (config.vcpus > 1).then_some(config.vcpus),
        crash: config.crash,
        fault: config.fault,
        tunables: config.tunables,
        devices: if config.balloon { BalloonDevice::WORD } else { MmioDevices::default() },
    }
}

/// Checks that the longest command line that `config` can produce fits.
pub(super) fn check_command_line(config: &GuestBuilder) -> Result<(), ConfigError> {
    let longest = BootArgs { tsc_khz: Some(u64::MAX), ..boot_args(config, Selftest::Yes) };
    let length = longest.to_string().len();
    if length < BootArgs::MAX_LEN { Ok(()) } else { Err(ConfigError::CommandLine(length)) }
}

/// Whether the kernel has said that its ABI is not this host's.
fn is_foreign(link: &Link) -> bool {
    let (version, hash) = (link.region().guest_abi_version.get(), link.region().abi_hash.get());
    !matches!(version, 0 | ABI_VERSION) || !matches!(hash, 0 | describe::HASH)
}

impl Guest {
    /// Waits until the kernel serves requests, after [`GuestBuilder::start`].
    ///
    /// # Errors
    /// See [`LaunchError`]. The guest is then dead, except after an interruption, and can be
    /// inspected.
    pub fn await_ready(&mut self) -> Result<(), LaunchError> {
        self.wait_until_ready().map_err(|error| self.launch_error(error))
    }

    /// Waits until the kernel serves requests.
    fn wait_until_ready(&mut self) -> Result<(), GuestError> {
        // 1. A phase that says so. A dead kernel will report it through the exit port in a
        // moment.
        let waits = [Phase::Loading, Phase::Dead];
        let news = |link: &Link| {
            is_foreign(link) || !waits.iter().any(|&phase| link.region().phase.is(phase))
        };
        let mut look = LOOK_FOR_READY;
        let woken = loop {
            let until = self.deadline.min(Instant::now() + LOOK_AT_ABI);
            let crew = &self.hypervisor.vcpus.crew;
            let woken = self.waiter.wait(&self.link, crew, until, look, news);
            // The log could be full before the kernel is ready.
            self.logs.collect_console();
            self.logs.collect(&self.link.region().log);
            if woken != Woken::Deadline || until == self.deadline {
                break woken;
            }
            look = Duration::ZERO;
        };
        // 2. A kernel that means other things by these words, whatever became of it.
        if is_foreign(&self.link) {
            thread::sleep(HANDSHAKE);
            return self.read_published().map_err(|error| self.die(error.into()));
        }
        // 3. What woke this thread.
        match woken {
            Woken::News if self.hypervisor.vcpus.crew.end.get().is_some() => {
                return Err(self.ended());
            }
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
        let handshake = shake(&self.live(Hold::No)?)?;
        let phase = region.phase.get();
        if !phase.is(Phase::Ready) {
            return Err(impossible("phase", phase.raw().into()));
        }
        if handshake == Handshake::Silent {
            return Err(ContractError::NoAbi);
        }
        self.environment.privilege = match region.body_cpl.get() {
            0 => Privilege::Supervisor,
            3 => Privilege::User,
            cpl => return Err(impossible("body_cpl", cpl.into())),
        };
        self.environment.tsc_khz = self.hypervisor.vcpus.crew.tsc_khz.get().copied().unwrap_or(0);
        self.environment.kvm = self.measured_kvm();
        self.environment.boot_cycles =
            region.ready_tsc.get().saturating_sub(region.entry_tsc.get());
        Ok(())
    }

    /// The kind of KVM, from the time that the kernel measured during its entry. A kernel that did
    /// not get so far has no time.
    fn measured_kvm(&self) -> KvmKind {
        let tsc_khz = self.hypervisor.vcpus.crew.tsc_khz.get().copied().unwrap_or(0);
        let picoseconds_per_cycle = 1_000_000_000 / u64::from(tsc_khz.max(1));
        let cycles = self.link.region().cpl0_cycles.get();
        KvmKind::from_instruction_time(
            cycles.saturating_mul(picoseconds_per_cycle) / 1_000 / TIMED_INSTRUCTIONS,
        )
    }

    /// The launch error for a guest that ended with `error`.
    fn launch_error(&self, error: GuestError) -> LaunchError {
        // In other cases it is a bug: the nucleus uses only instructions that an emulating KVM
        // supports, and a processor supports all of them.
        let at_cpl0 = self.environment.privilege == Privilege::Supervisor
            && self.measured_kvm() == KvmKind::Software;
        match error {
            GuestError::Cpu { failure, at } if at_cpl0 && failure.registers.cpl() == Some(0) => {
                match failure.fault {
                    CpuFault::Internal { suberror: KVM_INTERNAL_ERROR_EMULATION, instruction } => {
                        Unemulated { at, instruction }.into()
                    }
                    fault => {
                        GuestError::Cpu { failure: CpuFailure { fault, ..failure }, at }.into()
                    }
                }
            }
            GuestError::Kvm(error) => error.into(),
            error => error.into(),
        }
    }

    /// Waits until the kernel exits by itself.
    pub(super) fn run_to_exit(mut self) -> Result<BootReport, LaunchError> {
        let woken = self.waiter.wait(
            &self.link,
            &self.hypervisor.vcpus.crew,
            self.deadline,
            Duration::ZERO,
            |_| false,
        );
        match (woken, self.hypervisor.vcpus.crew.end.get()) {
            (Woken::News, Some(&vcpu::VcpuEnd::Exit(exit))) if exit != ExitCode::Crash as u8 => {
                Ok(BootReport { exit, output: self.take_log() })
            }
            (Woken::News, _) => {
                let error = self.ended();
                Err(self.launch_error(error))
            }
            (Woken::Interrupted, _) => Err(GuestError::Interrupted.into()),
            (Woken::Deadline, _) => Err(self.time_is_up().into()),
        }
    }
}

/// The symbols of a kernel, read at the first use.
#[derive(Debug)]
pub(super) struct LazySymbols {
    pub(super) kernel: crate::kernel::KernelImage,
    pub(super) symbols: OnceLock<vmkern_inspect::symbols::Symbols>,
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::PAGE_SIZE;

    use super::*;
    use crate::kernel::KernelImage;

    /// The most pages that are made present for a boot, besides the image's pages and a page
    /// directory for each GiB.
    const FORESEEN: u64 = 136;
    /// Pages that a boot may touch although they were not foreseen: each costs a fault, 26 us. More
    /// memory has larger maps, whose tables and entries do not all lie in the first block.
    const UNFORESEEN: [(u64, u64); 2] = [(64 << 20, 2), (64 << 30, 14)];

    /// Three numbers of pages for a guest with `memory` bytes: those of the image, the others that
    /// are made present for its boot, and the others that it has touched when it is ready.
    fn touched(memory: u64) -> (u64, u64, u64) {
        let kernel = KernelImage::embedded();
        let plan = kernel.plan(memory).expect("the embedded image can be loaded");
        let image: u64 = plan
            .segments
            .iter()
            .map(|segment| (segment.file.len() as u64).div_ceil(PAGE_SIZE))
            .sum();
        let foreseen = Arc::new(GuestRam::new(memory).expect("address space is there"));
        Load::new(Arc::clone(&foreseen), kernel, &plan).finish();
        let guest = Guest::builder().memory(memory).launch().expect("this host can run guests");
        let (foreseen, all) =
            (foreseen.resident() / PAGE_SIZE, guest.resident_memory() / PAGE_SIZE);
        (image, foreseen - image, all - foreseen)
    }

    #[test]
    fn what_a_boot_touches_was_foreseen_and_is_hardly_more_with_more_memory() {
        let most = |memory| {
            UNFORESEEN.iter().find(|(end, _)| memory <= *end).map_or(0, |(_, pages)| *pages)
        };
        for memory in [8 << 20, 15 << 20, 17 << 20, 64 << 20, 1 << 30, 3 << 30, 5 << 30, 64 << 30] {
            let (image, foreseen, surprise) = touched(memory);
            let text = format!(
                "{memory:#x} bytes: image {image}, foreseen {foreseen}, not foreseen {surprise}"
            );
            assert!(foreseen <= FORESEEN + (memory >> 30) && surprise <= most(memory), "{text}");
        }
    }
}
