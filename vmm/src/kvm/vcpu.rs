//! A vCPU's thread: creates the vCPU, runs it, serves its exits, and records how it ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_INTERNAL_ERROR_EMULATION, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_msr_entry,
};
use kvm_ioctls::{Error, Kvm, VcpuExit, VcpuFd};
use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::paging::Paging;

use super::KvmError;
use super::boot::{Begin, set_entry_state};
use super::crew::Crew;
use super::gate::{Gate, Held, Position};
use super::io::{Demand, Io, Port};
use super::ioctl::{Patience, ioctl};
use super::kick::{KickSlot, KickableVcpu};
use super::load::Load;
use super::place::Place;
use super::regs::{self, CpuFailure, CpuFault};
use super::stop::StopReason;
use super::vm::KvmVm;
use crate::inspect::{CpuState, Registers, RunState, Standing, Unstoppable};

/// How long a vCPU's thread may take to exit from the guest. It takes microseconds, unless the host
/// itself is stuck.
const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for a quiescent point before checking whether the vCPU has ended.
const END_AGAIN: Duration = Duration::from_millis(1);
/// How long to wait before a kick is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// How a vCPU's life ended.
#[derive(Clone, Debug)]
pub(crate) enum VcpuEnd {
    /// It was told to stop, with these registers.
    Stopped(Box<Registers>),
    /// The guest wrote this value to the exit port.
    Exit(u8),
    /// It could not go on.
    Failed(CpuFailure),
    /// It could not be created or set to its initial state.
    Unprepared(KvmError),
    /// Its thread ended without a result: the launch was abandoned, or the thread panicked.
    Lost,
}

/// What a vCPU's thread and the rest of the process share.
#[derive(Debug)]
pub(crate) struct VcpuState {
    /// The vCPU's number, which is also its APIC ID.
    pub(crate) id: u32,
    /// State shared with the guest's other vCPUs.
    pub(super) crew: Arc<Crew>,
    /// How it ended.
    pub(crate) end: OnceLock<VcpuEnd>,
    kick: Arc<KickSlot>,
    stopping: AtomicBool,
    gate: Gate,
    place: Place,
    /// Its state when it last stopped at the gate, or at its end.
    seen: Mutex<Option<CpuState>>,
    /// What KVM is asked each time the vCPU stops at the gate.
    questions: Mutex<Questions>,
}

/// Addresses, and the results of KVM's own walk of the guest's page tables for them.
#[derive(Debug, Default)]
struct Questions {
    addresses: Vec<GuestVirt>,
    answers: Option<Result<Vec<Option<GuestPhys>>, KvmError>>,
}

impl VcpuState {
    pub(super) fn new(id: u32, crew: Arc<Crew>) -> Self {
        Self {
            id,
            crew,
            end: OnceLock::new(),
            kick: Arc::default(),
            stopping: AtomicBool::new(false),
            gate: Gate::default(),
            place: Place::default(),
            seen: Mutex::new(None),
            questions: Mutex::default(),
        }
    }

    /// Tells the vCPU to stop. It ends soon after, unless it has ended already. May be called
    /// again.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.gate.set(Position::Open);
        self.kick.kick();
    }

    /// Waits until the vCPU, if it was held and released, has had its share of time to run.
    pub(super) fn let_run(&self) {
        self.gate.wait_gone();
    }

    /// Another holder of the vCPU, and whether it is the first: the first must bring the vCPU to
    /// the gate.
    pub(super) fn hold(&self) -> (Held<'_>, bool) {
        Held::new(&self.gate)
    }

    /// Lets the vCPU continue to a quiescent point, and keeps it there.
    pub(super) fn let_go_to_quiescent_point(&self) {
        self.gate.set(Position::HoldsQuiescent);
    }

    /// Waits until the vCPU stands at a quiescent point or has ended. Returns where it stands, or
    /// `None` if neither has happened by `deadline`.
    pub(super) fn wait_for_quiescent_point(&self, deadline: Instant) -> Option<Standing> {
        // A vCPU that ends in the meantime never comes to the gate.
        while self.end.get().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(standing) = self.gate.wait_parked(left.min(END_AGAIN)) {
                return Some(standing);
            }
            if left.is_zero() {
                return None;
            }
        }
        Some(Standing::Anywhere)
    }

    /// Whether the vCPU's thread needs the CPU that runs this.
    pub(super) fn is_here(&self) -> bool {
        self.place.is_here()
    }

    /// Tells the vCPU's thread to come to the gate and stay there.
    pub(super) fn call_to_gate(&self) {
        self.gate.set(Position::Closed);
        self.kick.kick();
    }

    /// Closes the gate and brings the vCPU there, wherever it stands. Returns where.
    ///
    /// # Errors
    /// When the vCPU's thread does not return from the host's kernel.
    pub(super) fn bring_to_gate(&self) -> Result<Standing, Unstoppable> {
        self.gate.set(Position::Closed);
        let deadline = Instant::now() + HOLD_LIMIT;
        while self.end.get().is_none() {
            self.kick.kick();
            if let Some(standing) = self.gate.wait_parked(KICK_AGAIN) {
                return Ok(standing);
            }
            if Instant::now() >= deadline {
                return Err(Unstoppable);
            }
        }
        Ok(Standing::Anywhere)
    }

    /// The state of the vCPU, which must be held or have ended. `None` if it never began.
    pub(crate) fn cpu_state(&self) -> Option<CpuState> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, makes KVM translate these addresses each time the vCPU stops at the gate.
    pub(crate) fn ask(&self, addresses: Vec<GuestVirt>) {
        *self.questions.lock().unwrap_or_else(PoisonError::into_inner) =
            Questions { addresses, answers: None };
    }

    /// KVM's answers from the vCPU's last stop. Ends the asking.
    pub(crate) fn take_answers(&self) -> Option<Result<Vec<Option<GuestPhys>>, KvmError>> {
        std::mem::take(&mut *self.questions.lock().unwrap_or_else(PoisonError::into_inner)).answers
    }

    fn answer(&self, vcpu: &KickableVcpu) {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        if questions.addresses.is_empty() {
            return;
        }
        let translate = |&va: &GuestVirt| {
            let translation =
                ioctl(format!("KVM_TRANSLATE of {va}"), || vcpu.translate_gva(va.get()))?;
            Ok((translation.valid != 0).then(|| GuestPhys::new(translation.physical_address)))
        };
        questions.answers = Some(questions.addresses.iter().map(translate).collect());
    }

    fn see(&self, state: RunState, vcpu: &KickableVcpu) {
        let seen = CpuState { cpu: self.id, state, registers: registers(vcpu), tsc: tsc(vcpu) };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// The CPUID that KVM supports, in the form that guests see. KVM is asked once per process.
pub(crate) fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    static CPUID: OnceLock<CpuId> = OnceLock::new();
    if let Some(cpuid) = CPUID.get() {
        return Ok(cpuid.clone());
    }
    let cpuid =
        ioctl("KVM_GET_SUPPORTED_CPUID", || kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
    Ok(CPUID.get_or_init(|| cpuid).clone())
}

/// The CPUID of vCPU `id`, with its APIC ID filled in: KVM reports the ID of the host's CPU that
/// asked.
pub(crate) fn vcpu_cpuid(kvm: &Kvm, id: u32) -> Result<CpuId, KvmError> {
    let mut cpuid = supported_cpuid(kvm)?;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x0000_ffff | 1 << 16 | id << 24,
            0xb | 0x1f => entry.edx = id,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// The TSC's frequency in kHz, as `vcpu` sees it.
pub(crate) fn tsc_khz_of(vcpu: &VcpuFd) -> Result<u32, KvmError> {
    // kvm-ioctls returns the ioctl's result in place of the error number.
    ioctl("KVM_GET_TSC_KHZ", || vcpu.get_tsc_khz().map_err(|_| Error::last()))
}

/// The requirements of a CPU with this CPUID for page-table entries.
fn paging(cpuid: &CpuId) -> Paging {
    Paging::of_cpuid(|leaf| {
        let entry =
            cpuid.as_slice().iter().find(|entry| entry.function == leaf && entry.index == 0);
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    })
}

/// Takes the TSC's frequency in kHz and the CPUs' requirements for page-table entries, completes
/// the guest's memory, and returns how to begin.
pub(crate) type Finish = Box<dyn FnOnce(u32, Paging) -> Result<Begin, KvmError> + Send>;

/// The VM and the devices that a vCPU belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    /// The VM.
    pub(crate) vm: Arc<KvmVm>,
    /// The devices.
    pub(crate) io: Arc<dyn Io>,
}

/// What the launching thread sends to a vCPU's thread, in this order.
pub(crate) struct Orders {
    /// The VM and the devices, once they exist.
    pub(crate) board: Receiver<Board>,
    /// How the vCPU begins.
    pub(crate) start: Start,
}

/// How a vCPU begins.
pub(crate) enum Start {
    /// At the kernel's entry: `entry` arrives once the image is in memory and all vCPUs have been
    /// created.
    Boot {
        /// Work to do while it waits, once there is memory.
        load: Receiver<Arc<Load>>,
        /// The last step before the entry.
        entry: Receiver<Finish>,
    },
    /// When another vCPU starts it. It sends a message when it has been created.
    Wait(Sender<()>),
}

/// Announces the vCPU's end, however its thread ends.
struct Farewell<'a>(&'a VcpuState);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        // Keeps the end that the thread recorded itself.
        let end = self.0.end.get_or_init(|| VcpuEnd::Lost);
        self.0.crew.ended(end);
    }
}

/// A vCPU's thread. A channel that closes early means that the launch was abandoned.
pub(crate) fn thread(kvm: &Kvm, orders: Orders, state: &VcpuState) {
    let _farewell = Farewell(state);
    state.place.note();
    let end = match prepare(kvm, orders, state) {
        Ok(Some((mut vcpu, io))) => {
            let end = match run(&mut vcpu, state, io.as_ref()) {
                StopReason::Told => VcpuEnd::Stopped(Box::new(registers(&vcpu))),
                StopReason::Exit(code) => VcpuEnd::Exit(code),
                StopReason::Fault(fault) => {
                    let registers = Box::new(registers(&vcpu));
                    VcpuEnd::Failed(CpuFailure { cpu: state.id, fault, registers })
                }
            };
            state.see(RunState::Ended, &vcpu);
            end
        }
        Ok(None) => return,
        Err(error) => VcpuEnd::Unprepared(error),
    };
    // The vCPU is dropped before its end is known.
    let _ = state.end.set(end);
}

/// A vCPU in its initial state, and the server of its accesses.
type Ready = (KickableVcpu, Arc<dyn Io>);

/// Creates the vCPU and sets it to its initial state; `None` if the launch was abandoned.
fn prepare(
    kvm: &Kvm,
    Orders { board, start }: Orders,
    state: &VcpuState,
) -> Result<Option<Ready>, KvmError> {
    match start {
        // 1. The first vCPU fetches its CPUID while the launching thread creates the VM.
        Start::Boot { load, entry } => {
            let Ok(load) = load.recv() else { return Ok(None) };
            // The CPUID comes after this. KVM computes it in one call of 50 to 120 us, about as
            // long as the launching thread then waits for KVM to take the memory.
            while load.pass_time() {}
            let cpuid = vcpu_cpuid(kvm, state.id)?;
            let Some(Board { vm, io }) = soon(&board) else { return Ok(None) };
            let (vcpu, tsc_khz) = make(&vm, &cpuid, state)?;
            load.finish();
            // 2. Its state, once the kernel is in memory.
            let Some(finish) = soon(&entry) else { return Ok(None) };
            let paging = *state.crew.paging.get_or_init(|| paging(&cpuid));
            set_entry_state(&vcpu, &finish(tsc_khz, paging)?)?;
            Ok(Some((vcpu, io)))
        }
        // 3. The others wait for the kernel to start them.
        Start::Wait(made) => {
            let cpuid = vcpu_cpuid(kvm, state.id)?;
            let Ok(Board { vm, io }) = board.recv() else { return Ok(None) };
            let (vcpu, _) = make(&vm, &cpuid, state)?;
            // If the receiver has given up, that does not matter: the vCPU runs, and waits in KVM
            // for its start-up interrupt.
            let _ = made.send(());
            Ok(Some((vcpu, io)))
        }
    }
}

/// Creates the vCPU in `vm` and sets its CPUID. Also returns the TSC's frequency in kHz.
fn make(vm: &KvmVm, cpuid: &CpuId, state: &VcpuState) -> Result<(KickableVcpu, u32), KvmError> {
    let vcpu = KickableVcpu::new(vm.create_vcpu(state.id)?, Arc::clone(&state.kick))?;
    let tsc_khz = match state.crew.tsc_khz.get() {
        Some(&known) => known,
        None => tsc_khz_of(&vcpu)?,
    };
    let tsc_khz = *state.crew.tsc_khz.get_or_init(|| tsc_khz);
    ioctl("KVM_SET_CPUID2", || vcpu.set_cpuid2(cpuid))?;
    Ok((vcpu, tsc_khz))
}

/// Receives a value that will arrive soon; `None` if the channel has closed. Polls for a while
/// first, because waking up takes longer than the value takes to arrive.
fn soon<T>(channel: &Receiver<T>) -> Option<T> {
    const WHILE: Duration = Duration::from_micros(100);
    let begun = Instant::now();
    while begun.elapsed() < WHILE {
        match channel.try_recv() {
            // The sending thread may need this CPU.
            Err(TryRecvError::Empty) => std::thread::yield_now(),
            answer => return answer.ok(),
        }
    }
    channel.recv().ok()
}

/// Runs the vCPU until it stops for good, and says why.
fn run(vcpu: &mut KickableVcpu, state: &VcpuState, io: &dyn Io) -> StopReason {
    let mut patience = Patience::default();
    loop {
        // 1. Run the guest until it exits.
        state.place.note();
        let exit = vcpu.run();
        if exit.is_ok() {
            patience.restore();
        }
        // 2. Serve the exit.
        let demand = match serve(exit, io) {
            Served::Demand(demand) => demand,
            Served::Interrupted => {
                vcpu.acknowledge();
                Demand::Nothing
            }
            // A vCPU that was started by another one also returns this, once. If it persists, the
            // host cannot create a thread for KVM.
            Served::NotYet if patience.lasts() => {
                vcpu.acknowledge();
                Demand::Nothing
            }
            Served::NotYet => return StopReason::Fault(CpuFault::Run(libc::EAGAIN)),
            Served::InternalError => return StopReason::Fault(internal_error(vcpu)),
            Served::Fault(fault) => return StopReason::Fault(fault),
        };
        let said = match demand {
            Demand::Exit(code) => return StopReason::Exit(code),
            Demand::Stand(standing) => Some(standing),
            Demand::Yield => {
                std::thread::yield_now();
                None
            }
            Demand::Nothing => None,
        };
        // 3. Pass the gate. The guest may be inspected, and an end may be requested, in the
        //    meantime.
        state.gate.pass(|| {
            let now = run_state(vcpu);
            state.see(now, vcpu);
            state.answer(vcpu);
            // A kernel halts only where it owns no lock, and a vCPU that was never started owns
            // none either.
            match said {
                Some(standing) => standing,
                None if now == RunState::Running => Standing::Anywhere,
                None => Standing::Quiescent,
            }
        });
        if state.stopping() {
            return StopReason::Told;
        }
    }
}

/// The result of serving an exit.
enum Served {
    /// It was served, with this demand.
    Demand(Demand),
    /// A signal came.
    Interrupted,
    /// The host cannot run the vCPU at the moment.
    NotYet,
    /// KVM could not continue; the vCPU's structure says why.
    InternalError,
    /// The vCPU cannot continue.
    Fault(CpuFault),
}

/// Serves an exit.
fn serve(exit: Result<VcpuExit<'_>, Error>, io: &dyn Io) -> Served {
    match exit {
        Ok(VcpuExit::IoOut(port, data)) => Served::Demand(io.write_port(Port(port), data)),
        Ok(VcpuExit::IoIn(port, data)) => {
            io.read_port(Port(port), data);
            Served::Demand(Demand::Nothing)
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            Served::Demand(io.write_mmio(GuestPhys::new(address), data))
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            io.read_mmio(GuestPhys::new(address), data);
            Served::Demand(Demand::Nothing)
        }
        Ok(VcpuExit::Intr | VcpuExit::IoapicEoi(_) | VcpuExit::IrqWindowOpen) => {
            Served::Demand(Demand::Nothing)
        }
        Ok(VcpuExit::Shutdown) => Served::Fault(CpuFault::TripleFault),
        Ok(VcpuExit::FailEntry(reason, _)) => Served::Fault(CpuFault::FailEntry { reason }),
        Ok(VcpuExit::InternalError) => Served::InternalError,
        Ok(other) => Served::Fault(CpuFault::Unexpected(format!("{other:?}"))),
        Err(error) if error.errno() == libc::EINTR => Served::Interrupted,
        Err(error) if error.errno() == libc::EAGAIN => Served::NotYet,
        Err(error) => Served::Fault(CpuFault::Run(error.errno())),
    }
}

fn registers(vcpu: &KickableVcpu) -> Registers {
    match (ioctl("KVM_GET_REGS", || vcpu.get_regs()), ioctl("KVM_GET_SREGS", || vcpu.get_sregs())) {
        (Ok(regs), Ok(sregs)) => regs::registers(&regs, &sregs),
        (regs, sregs) => {
            log::warn!("the vCPU's registers cannot be read: {:?} {:?}", regs.err(), sregs.err());
            Registers::default()
        }
    }
}

/// The vCPU's TSC.
fn tsc(vcpu: &KickableVcpu) -> u64 {
    const IA32_TSC: u32 = 0x10;
    let entry = kvm_msr_entry { index: IA32_TSC, ..kvm_msr_entry::default() };
    let Ok(mut msrs) = Msrs::from_entries(&[entry]) else { return 0 };
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice()[0].data,
        told => {
            log::warn!("the vCPU's TSC cannot be read: {told:?}");
            0
        }
    }
}

fn run_state(vcpu: &KickableVcpu) -> RunState {
    match ioctl("KVM_GET_MP_STATE", || vcpu.get_mp_state()) {
        Ok(state)
            if [KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED].contains(&state.mp_state) =>
        {
            RunState::Halted
        }
        _ => RunState::Running,
    }
}

fn internal_error(vcpu: &mut KickableVcpu) -> CpuFault {
    let run = vcpu.get_kvm_run();
    // SAFETY: every field of the union consists of plain numbers, and KVM has filled this one,
    // according to the exit's reason. The layout is that of `struct kvm_run`.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let mut instruction = Vec::new();
    // With the flag set, one byte counts the instruction's bytes and fifteen hold them (`struct
    // kvm_run`, emulation_failure).
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION
        && internal.ndata >= 3
        && internal.data[0] & 1 != 0
    {
        let bytes: Vec<u8> =
            internal.data[1..3].iter().flat_map(|word| word.to_le_bytes()).collect();
        instruction.extend_from_slice(&bytes[1..=usize::from(bytes[0]).min(15)]);
    }
    CpuFault::Internal { suberror: internal.suberror, instruction }
}
