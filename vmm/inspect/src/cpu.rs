//! A CPU seen from outside: its registers, its run state, and where it stands while it is held.

use std::fmt;

use thiserror::Error;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::paging::Paging;

/// Names of [`Registers::gpr`], in the order of their x86 encoding.
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Registers of a CPU that stopped.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// Instruction pointer.
    pub rip: GuestVirt,
    /// Flags.
    pub rflags: u64,
    /// General registers, in the order of their x86 encoding ([`GPR_NAMES`]).
    pub gpr: [u64; 16],
    /// CR0; 0 if unknown.
    pub cr0: u64,
    /// The address that faulted last.
    pub cr2: GuestVirt,
    /// Root page table.
    pub cr3: u64,
    /// CR4; 0 if unknown.
    pub cr4: u64,
    /// EFER; 0 if unknown.
    pub efer: u64,
    /// Selector of the code segment; its two low bits are the CPL. 0 if unknown.
    pub cs: u16,
}

impl Registers {
    /// The stack pointer.
    #[must_use]
    pub fn rsp(&self) -> GuestVirt {
        GuestVirt::new(self.gpr[4])
    }

    /// Whether paging is on, so that addresses are virtual.
    #[must_use]
    pub fn paging(&self) -> bool {
        self.cr0 >> 31 & 1 != 0
    }

    /// The privilege level of the code that ran, if the code segment is known.
    #[must_use]
    pub fn cpl(&self) -> Option<u16> {
        (self.cs != 0).then_some(self.cs & 3)
    }
}

/// As `Display`, in one line.
impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        write!(f, "Registers({})", words.join(" "))
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rip {:016x}  rflags {:08x}", self.rip.get(), self.rflags)?;
        if self.cs != 0 {
            write!(f, "  cs {:04x}", self.cs)?;
        }
        for (i, (name, value)) in GPR_NAMES.iter().zip(self.gpr).enumerate() {
            f.write_str(if i % 4 == 0 { "\n" } else { "  " })?;
            write!(f, "{name:<3} {value:016x}")?;
        }
        if self.cr0 == 0 {
            return write!(f, "\ncr2 {:016x}  cr3 {:x}", self.cr2.get(), self.cr3);
        }
        write!(
            f,
            "\ncr0 {:08x}  cr2 {:016x}  cr3 {:x}  cr4 {:x}  efer {:x}",
            self.cr0,
            self.cr2.get(),
            self.cr3,
            self.cr4,
            self.efer
        )
    }
}

/// What a CPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It runs, or would run if it were not held.
    Running,
    /// It waits for an interrupt (`hlt`).
    Halted,
    /// It will not run again: the guest has exited or failed.
    Ended,
}

/// A CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// Its number, from 0.
    pub cpu: u32,
    /// What it is doing.
    pub state: RunState,
    /// Its registers.
    pub registers: Registers,
    /// Its TSC at that moment; 0 if it could not be read.
    pub tsc: u64,
}

/// Where a vCPU stands while it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// At a point where its kernel owns no mutex and no spin lock: the kernel said so, or the vCPU
    /// is halted.
    Quiescent,
    /// At a point inside a loop over pages, with mutexes held: the kernel said so. What those
    /// mutexes guard may be half changed.
    Owning,
    /// Anywhere. Whatever a held lock guards may be half changed. A vCPU that has ended counts as
    /// standing here.
    Anywhere,
}

/// A vCPU cannot be stopped or held: its thread does not return from the host's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[error("the vCPU's thread does not stop")]
pub struct Unstoppable;

crate::debug_as_printed!(Unstoppable);

/// `paging` as it applies on `cpus`: the first of them says whether bit 63 of an entry is reserved.
#[must_use]
pub fn paging_of(paging: Paging, cpus: &[CpuState]) -> Paging {
    const NXE: u64 = 1 << 11;
    match cpus.first() {
        Some(cpu) if cpu.registers.efer & NXE == 0 => paging.without_nx(),
        _ => paging,
    }
}
