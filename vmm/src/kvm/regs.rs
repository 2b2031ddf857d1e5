//! A vCPU's registers, and the ways in which a vCPU can fail.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};
use thiserror::Error;
use vmkern_abi::addr::GuestVirt;

use super::KvmError;

/// Names of [`Registers::gpr`], in the order of their x86 encoding.
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Registers of a CPU that stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Registers {
    /// Instruction pointer.
    pub rip: GuestVirt,
    /// Flags.
    pub rflags: u64,
    /// General registers, in the order of their x86 encoding ([`GPR_NAMES`]).
    pub gpr: [u64; 16],
    /// CR0; 0 where it is not known.
    pub cr0: u64,
    /// The address that faulted last.
    pub cr2: GuestVirt,
    /// Root page table.
    pub cr3: u64,
    /// CR4; 0 where it is not known.
    pub cr4: u64,
    /// EFER; 0 where it is not known.
    pub efer: u64,
    /// Selector of the code segment; its two low bits are the CPL. 0 where it is not known.
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

    /// The privilege level of the code that ran, where the code segment is known.
    #[must_use]
    pub fn cpl(&self) -> Option<u16> {
        (self.cs != 0).then_some(self.cs & 3)
    }

    pub(crate) fn from_kvm(regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        Self {
            rip: GuestVirt::new(regs.rip),
            rflags: regs.rflags,
            gpr: [
                regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
                regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
            ],
            cr0: sregs.cr0,
            cr2: GuestVirt::new(sregs.cr2),
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cs: sregs.cs.selector,
        }
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

/// Why a vCPU cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CpuFault {
    /// Three exceptions, each while the one before was being delivered; or a shutdown for another
    /// reason.
    #[error("triple fault")]
    TripleFault,
    /// KVM could not go on (`KVM_EXIT_INTERNAL_ERROR`). Suberror 1 is an instruction that KVM
    /// cannot emulate.
    #[error("KVM internal error, suberror {suberror}{}", emulation(*.suberror, .instruction))]
    Internal {
        /// KVM's number for the reason.
        suberror: u32,
        /// The bytes at RIP, as far as they are known.
        instruction: Vec<u8>,
    },
    /// The processor refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`), with its reason.
    #[error("the processor refused to enter the guest, reason {reason:#x}")]
    FailEntry {
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM stopped for a reason that this VMM never asked for.
    #[error("unexpected exit {0}")]
    Unexpected(String),
    /// `KVM_RUN` failed, with the system's error number.
    #[error("KVM_RUN: {}", std::io::Error::from_raw_os_error(*.0))]
    Run(i32),
}

fn emulation(suberror: u32, instruction: &[u8]) -> String {
    let mut text = String::new();
    if suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION {
        text.push_str(" (an instruction that KVM cannot emulate)");
    }
    if !instruction.is_empty() {
        text.push_str(", instruction bytes");
        for byte in instruction {
            text.push_str(&format!(" {byte:02x}"));
        }
    }
    text
}

/// A vCPU's end, with where it happened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("vCPU {cpu}: {fault}\n{registers}")]
pub struct CpuFailure {
    /// The vCPU.
    pub cpu: u32,
    /// Why.
    pub fault: CpuFault,
    /// Its registers.
    pub registers: Box<Registers>,
}

impl CpuFailure {
    /// What the host was short of, where that is why the vCPU cannot go on.
    pub(crate) fn shortage(&self) -> Option<KvmError> {
        let CpuFault::Run(errno) = self.fault else { return None };
        let error = KvmError { operation: format!("KVM_RUN of vCPU {}", self.cpu), errno };
        error.is_shortage().then_some(error)
    }
}
