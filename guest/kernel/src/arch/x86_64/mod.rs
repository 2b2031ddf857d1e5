//! Everything x86_64, and everything privileged.

pub mod ap;
pub mod apic;
mod boot_cpu;
pub mod clock;
pub mod cpus;
mod entry;
mod flush;
pub mod instr;
pub mod interrupt;
pub mod ioapic;
mod mem;
pub mod nucleus;
pub mod percpu;
pub mod probe;
pub mod stack;
pub mod step;
pub mod switch;
pub mod tlb;
pub mod trap;
pub mod vectors;

/// Bytes from KERNBASE on that the image's two page tables map: low memory, the image and the
/// APIC's page.
pub const IMAGE_WINDOW_BYTES: u64 = 4 << 20;
