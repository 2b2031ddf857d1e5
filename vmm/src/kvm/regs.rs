//! A vCPU's registers from KVM, and the ways in which a vCPU can fail.

use kvm_bindings::{kvm_regs, kvm_sregs};
use thiserror::Error;
use vmkern_abi::addr::GuestVirt;

use super::KvmError;
use crate::inspect::Registers;

/// Registers from KVM's structures.
pub(super) fn registers(regs: &kvm_regs, sregs: &kvm_sregs) -> Registers {
    Registers {
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

/// Why a vCPU cannot continue.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CpuFault {
    /// Three exceptions, each while the one before was being delivered; or a shutdown for another
    /// reason.
    #[error("triple fault")]
    TripleFault,
    /// KVM could not continue (`KVM_EXIT_INTERNAL_ERROR`). Suberror 1 is an instruction that KVM
    /// cannot emulate.
    #[error("KVM internal error, suberror {suberror}{}", emulation(*.suberror, .instruction))]
    Internal {
        /// KVM's number for the reason.
        suberror: u32,
        /// The bytes at RIP, as far as they are known.
        instruction: Vec<u8>,
    },
    /// The processor refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    #[error("the processor refused to enter the guest, reason {reason:#x}")]
    FailEntry {
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM exited for a reason that this VMM does not use.
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

/// A vCPU's failure, and where it happened.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("vCPU {cpu}: {fault}\n{registers}")]
#[non_exhaustive]
pub struct CpuFailure {
    /// The vCPU.
    pub cpu: u32,
    /// Why.
    pub fault: CpuFault,
    /// Its registers.
    pub registers: Box<Registers>,
}

vmkern_inspect::debug_as_printed!(CpuFault, CpuFailure);

impl CpuFailure {
    /// The host's shortage, if that is why the vCPU cannot continue.
    pub(crate) fn shortage(&self) -> Option<KvmError> {
        let CpuFault::Run(errno) = self.fault else { return None };
        let error = KvmError { operation: format!("KVM_RUN of vCPU {}", self.cpu), errno };
        error.is_shortage().then_some(error)
    }
}
