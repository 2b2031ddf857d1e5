//! The doctor's guest: a few instructions that use everything that a kernel needs.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_dtable, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit};
use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::boot::Privilege;
use vmkern_abi::control::DOORBELL_VECTOR;

use super::{Check, Need, Trouble};
use crate::devices::{DeviceThread, Offset, Slot};
use crate::kernel::elf::Entry;
use crate::kvm::KvmError;
use crate::kvm::boot::{Begin, set_entry_state};
use crate::kvm::ioctl::{Patience, ioctl};
use crate::kvm::kick::{KickSlot, KickableVcpu};
use crate::kvm::line::Msi;
use crate::kvm::memory::GuestRam;
use crate::kvm::vcpu::{tsc_khz_of, vcpu_cpuid};
use crate::kvm::vm::{Delivery, KvmVm};

/// Memory of the doctor's guest.
const MEMORY: usize = 2 << 20;
/// Time limit of a run of a few instructions.
const LIMIT: Duration = Duration::from_secs(5);
/// Where things lie.
const GDT: GuestPhys = GuestPhys::new(0x1000);
const IDT: GuestPhys = GuestPhys::new(0x2000);
const COUNTER: GuestPhys = GuestPhys::new(0x3000);
const STACK_TOP: GuestPhys = GuestPhys::new(0x5000);
const CODE: GuestPhys = GuestPhys::new(0x10_0000);

/// A port without a device.
const PORT: u8 = 0xf4;
/// Where the doctor's device lies, its register there, and what is written to it.
const DEVICE: GuestPhys = GuestPhys::new(0xfeb0_0000);
const REGISTER: Offset = Offset(0x50);
const WRITTEN: u32 = 1;
/// The vector on which it interrupts. Its class is above that of the doorbell's, which no handler
/// has ended.
const DEVICE_VECTOR: u8 = 0x60;
/// Rounds of a loop of two instructions.
const ROUNDS: u32 = 256;

/// `mov al, 1; out PORT, al; mov ecx, ROUNDS; dec ecx; jnz -3; mov al, 2; out PORT, al`
fn timed_loop() -> Vec<u8> {
    let mut code = vec![0xb0, 1, 0xe6, PORT, 0xb9];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd, 0xb0, 2, 0xe6, PORT]);
    code
}

/// Enables the local APIC, reports that, and waits for an interrupt, whose handler reports, too:
/// `mov dword [0xfee000f0], 0x1ff; mov al, 3; out PORT, al; sti; hlt; jmp -3; handler: mov al, 4;
/// out PORT, al`
fn interrupted() -> (Vec<u8>, u32) {
    let mut code = vec![0xc7, 0x05];
    code.extend(0xfee0_00f0u32.to_le_bytes());
    code.extend(0x1ffu32.to_le_bytes());
    code.extend([0xb0, 3, 0xe6, PORT, 0xfb, 0xf4, 0xeb, 0xfd]);
    let handler = 18;
    code.extend([0xb0, 4, 0xe6, PORT]);
    (code, handler)
}

/// Writes a register of a device, and waits for its interrupt, whose handler says so: `mov dword
/// [DEVICE + REGISTER], WRITTEN; sti; hlt; jmp -3; handler: mov al, 5; out PORT, al`
fn served_by_device() -> (Vec<u8>, u32) {
    let register = DEVICE.add(REGISTER.0);
    let mut code = vec![0xc7, 0x05];
    code.extend(register.get().to_le_bytes()[..4].iter());
    code.extend(WRITTEN.to_le_bytes());
    code.extend([0xfb, 0xf4, 0xeb, 0xfd]);
    let handler = 14;
    code.extend([0xb0, 5, 0xe6, PORT]);
    (code, handler)
}

/// Counts in memory forever: `inc dword [COUNTER]; jmp -8`
fn counting() -> Vec<u8> {
    let mut code = vec![0xff, 0x05];
    code.extend(0x3000u32.to_le_bytes());
    code.extend([0xeb, 0xf8]);
    code
}

/// Runs all checks in order, up to the first that fails. Returns the time of an instruction at CPL0
/// in nanoseconds, if it was measured.
pub(super) fn run(kvm: &Kvm, checks: &mut Vec<Check>) -> Option<u64> {
    // 1. Each step is a check. The first that fails ends the function.
    let mut step = |name: &'static str, result: Result<String, Trouble>| match result {
        Ok(detail) => {
            checks.push(Check::ok(name, Need::Required, detail));
            Some(())
        }
        Err(trouble) => {
            checks.push(Check::failed(name, Need::Required, trouble));
            None
        }
    };
    let took = |start: Instant| format!("{} us", start.elapsed().as_micros());
    let cloned = |error: &KvmError| Trouble::from(error.clone());

    // 2. A VM with memory and a vCPU.
    let start = Instant::now();
    let made = KvmVm::create(kvm);
    step("create a VM", made.as_ref().map(|_| took(start)).map_err(cloned))?;
    let mut vm = made.ok()?;
    let start = Instant::now();
    let ram = GuestRam::new(MEMORY as u64).map(Arc::new);
    let given = ram.clone().and_then(|ram| vm.set_ram(ram));
    step("give it memory", given.map(|()| took(start)).map_err(Trouble::from))?;
    let ram = ram.ok()?;
    let start = Instant::now();
    step(
        "give it local APICs",
        vm.enable_split_irqchip().map(|()| took(start)).map_err(Trouble::from),
    )?;
    let vm = Arc::new(vm);
    let start = Instant::now();
    let slot = Arc::<KickSlot>::default();
    let vcpu = vm.create_vcpu(0).and_then(|vcpu| KickableVcpu::new(vcpu, Arc::clone(&slot)));
    step("create a vCPU", vcpu.as_ref().map(|_| took(start)).map_err(cloned))?;
    let mut guest = Probe { vcpu: vcpu.ok()?, slot, ram };
    // 3. The vCPU's CPUID and TSC.
    let cpuid = vcpu_cpuid(kvm, 0).and_then(|cpuid| {
        ioctl("KVM_SET_CPUID2", || guest.vcpu.set_cpuid2(&cpuid))?;
        Ok(format!("{} leaves", cpuid.as_slice().len()))
    });
    step("tell it its CPUID", cpuid.map_err(Trouble::from))?;
    let tsc = tsc_khz_of(&guest.vcpu);
    step("know its TSC", tsc.map(|khz| format!("{khz} kHz")).map_err(Trouble::from))?;

    // 4. The guest runs, and can be interrupted and stopped.
    let time = guest.instruction_time();
    step(
        "run a guest",
        time.clone().map(|ns| format!("it ran to a port, {ns} ns an instruction at CPL0")),
    )?;
    step("interrupt a guest", guest.interrupt(&vm))?;
    step("stop a guest", guest.stop())?;
    // 5. Optional: guests also run without these.
    for (name, result) in
        [("log dirty pages", guest.dirty_log(&vm)), ("serve a device", guest.device(&vm))]
    {
        checks.push(match result {
            Ok(detail) => Check::ok(name, Need::Optional, detail),
            Err(trouble) => Check::failed(name, Need::Optional, trouble),
        });
    }
    time.ok()
}

struct Probe {
    vcpu: KickableVcpu,
    slot: Arc<KickSlot>,
    ram: Arc<GuestRam>,
}

/// The host could not create a thread to watch the guest.
fn no_thread(error: io::Error) -> Trouble {
    KvmError::io("starting a thread that watches the guest", &error).into()
}

impl Probe {
    /// Writes `code` to memory and sets the vCPU to its start.
    fn load(&mut self, code: &[u8]) -> Result<(), Trouble> {
        self.write(CODE, code)?;
        let begin = Begin { entry: Entry::Pvh(CODE), privilege: Privilege::Auto };
        Ok(set_entry_state(&self.vcpu, &begin)?)
    }

    fn write(&self, at: GuestPhys, bytes: &[u8]) -> Result<(), Trouble> {
        self.ram.write(at, bytes).map_err(|error| error.to_string().into())
    }

    /// Runs until the guest exits, and returns what `read` makes of the exit; `None` when the vCPU
    /// was kicked. Other signals are ignored.
    fn run<T>(
        &mut self,
        kicked: &AtomicBool,
        read: impl Fn(VcpuExit<'_>) -> T,
    ) -> Result<Option<T>, Trouble> {
        let mut patience = Patience::default();
        loop {
            match self.vcpu.run() {
                Ok(exit) => return Ok(Some(read(exit))),
                Err(error) if error.errno() == libc::EINTR && kicked.load(Ordering::SeqCst) => {
                    return Ok(None);
                }
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) if error.errno() == libc::EAGAIN && patience.lasts() => {}
                Err(error) => return Err(KvmError::of("KVM_RUN")(error).into()),
            }
        }
    }

    /// Runs until the guest writes to a port, and returns the value. A guest that does not is
    /// stopped after [`LIMIT`].
    fn run_to_port(&mut self) -> Result<u8, Trouble> {
        let (done, waiting) = channel::<()>();
        let (slot, kicked) = (Arc::clone(&self.slot), AtomicBool::new(false));
        thread::scope(|scope| {
            let flag = &kicked;
            let watch = move || {
                if waiting.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                    flag.store(true, Ordering::SeqCst);
                    slot.kick();
                }
            };
            thread::Builder::new().spawn_scoped(scope, watch).map_err(no_thread)?;
            let written = self.run(&kicked, |exit| match exit {
                VcpuExit::IoOut(port, &[value, ..]) if port == u16::from(PORT) => Ok(value),
                exit => Err(Trouble::from(format!("unexpected exit {exit:?}"))),
            });
            drop(done);
            written?.ok_or_else(|| format!("no answer within {LIMIT:?}"))?
        })
    }

    fn expect(&mut self, value: u8) -> Result<(), Trouble> {
        match self.run_to_port()? {
            written if written == value => Ok(()),
            written => {
                Err(format!("the guest wrote {written} where it should write {value}").into())
            }
        }
    }

    /// Nanoseconds of one instruction at CPL0.
    fn instruction_time(&mut self) -> Result<u64, Trouble> {
        self.load(&timed_loop())?;
        self.expect(1)?;
        let start = Instant::now();
        self.expect(2)?;
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(nanoseconds / u64::from(2 * ROUNDS))
    }

    /// Puts `code` in place, whose handler of `vector` begins `handler` bytes behind its start.
    fn load_with_handler(&mut self, code: &[u8], vector: u8, handler: u32) -> Result<(), Trouble> {
        self.load(code)?;
        // Flat code and data, and a gate to the handler.
        for (index, descriptor) in
            [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate()
        {
            self.write(GDT.add(index as u64 * 8), &descriptor.to_le_bytes())?;
        }
        let target = CODE.get() + u64::from(handler);
        let gate = (target & 0xffff) | 8 << 16 | 0x8e << 40 | (target >> 16) << 48;
        self.write(IDT.add(u64::from(vector) * 8), &gate.to_le_bytes())?;
        let mut sregs = ioctl("KVM_GET_SREGS", || self.vcpu.get_sregs())?;
        let table =
            |base: GuestPhys, limit| kvm_dtable { base: base.get(), limit, ..Default::default() };
        (sregs.gdt, sregs.idt) = (table(GDT, 23), table(IDT, 256 * 8 - 1));
        ioctl("KVM_SET_SREGS", || self.vcpu.set_sregs(&sregs))?;
        let regs = ioctl("KVM_GET_REGS", || self.vcpu.get_regs())?;
        let regs = kvm_regs { rsp: STACK_TOP.get(), ..regs };
        Ok(ioctl("KVM_SET_REGS", || self.vcpu.set_regs(&regs))?)
    }

    fn interrupt(&mut self, vm: &KvmVm) -> Result<String, Trouble> {
        let (code, handler) = interrupted();
        self.load_with_handler(&code, DOORBELL_VECTOR, handler)?;
        self.expect(3)?;
        let start = Instant::now();
        if vm.signal(0, DOORBELL_VECTOR)? == Delivery::Dropped {
            return Err("the APIC dropped an MSI".to_owned().into());
        }
        self.expect(4)?;
        Ok(format!("an MSI arrived after {} us", start.elapsed().as_micros()))
    }

    /// Hears of a register on the device thread, and interrupts from there. The APIC is on.
    fn device(&mut self, vm: &Arc<KvmVm>) -> Result<String, Trouble> {
        let thread = DeviceThread::default();
        let slot = Slot::new(Arc::clone(vm), DEVICE, thread.watcher());
        let line = slot.line(Msi { apic: 0, vector: DEVICE_VECTOR })?;
        let heard = Arc::new(OnceLock::new());
        let hears = Arc::clone(&heard);
        let _register = slot.on_write(REGISTER, WRITTEN, move || {
            let _ = hears.set(Instant::now());
            line.trigger();
        })?;
        let (code, handler) = served_by_device();
        self.load_with_handler(&code, DEVICE_VECTOR, handler)?;
        let start = Instant::now();
        self.expect(5)?;
        let end = Instant::now();
        let heard = *heard.get().ok_or_else(|| "an interrupt that nobody raised".to_owned())?;
        Ok(format!(
            "its register was heard after {} us, its interrupt arrived {} us later",
            heard.saturating_duration_since(start).as_micros(),
            end.saturating_duration_since(heard).as_micros()
        ))
    }

    /// Kicks a vCPU that is inside the guest.
    fn stop(&mut self) -> Result<String, Trouble> {
        // 1. A guest that counts forever, and a thread that stops it once it counts.
        self.load(&counting())?;
        self.write(COUNTER, &[0; 8])?;
        let (slot, ram, kicked) =
            (Arc::clone(&self.slot), Arc::clone(&self.ram), AtomicBool::new(false));
        thread::scope(|scope| {
            let flag = &kicked;
            let kick = move || {
                let deadline = Instant::now() + LIMIT;
                while ram.load(COUNTER) == Ok(0) && Instant::now() < deadline {
                    thread::yield_now();
                }
                let start = Instant::now();
                flag.store(true, Ordering::SeqCst);
                slot.kick();
                start
            };
            let kicker = thread::Builder::new().spawn_scoped(scope, kick).map_err(no_thread)?;
            // 2. Run it here until it is stopped.
            let exit = self.run(&kicked, |exit| format!("{exit:?}"));
            let end = Instant::now();
            // 3. The time from the kick to the end of the run.
            let start = kicker
                .join()
                .map_err(|_| Trouble::from("the kicking thread panicked".to_owned()))?;
            self.vcpu.acknowledge();
            match exit? {
                None => Ok(format!(
                    "{} us after the kick",
                    end.saturating_duration_since(start).as_micros()
                )),
                Some(exit) => Err(format!("unexpected exit {exit}").into()),
            }
        })
    }

    /// Whether KVM reports which pages a guest wrote.
    fn dirty_log(&mut self, vm: &KvmVm) -> Result<String, Trouble> {
        vm.log_dirty_pages()?;
        self.stop()?;
        let pages = vm.dirty_pages(MEMORY)?;
        let page = COUNTER.get() / PAGE_SIZE;
        match pages.first() {
            Some(word) if word >> page & 1 != 0 => Ok("a written page was reported".to_owned()),
            _ => Err("a written page was not reported".to_owned().into()),
        }
    }
}
