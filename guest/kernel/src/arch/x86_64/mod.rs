//! Everything x86_64, and everything privileged.

pub mod apic;
pub mod clock;
mod entry;
pub mod instr;
mod mem;
pub mod nucleus;
pub mod percpu;
pub mod stack;
pub mod tlb;
pub mod trap;
