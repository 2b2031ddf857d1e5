//! The boot CPU.

use super::percpu::{PerCpu, Stacks, TrapEntries};
use super::stack;
use super::trap::{fatal_entry, trap_entry};

/// The boot CPU's structure. `build.rs` puts its address into the TSS descriptor, and `entry.rs`
/// loads GS base with it.
#[unsafe(no_mangle)]
static PERCPU0: PerCpu = PerCpu::new(
    0,
    Stacks { body: stack::BOOT, trap: stack::TRAP, emergency: stack::EMERGENCY },
    TrapEntries { trap: trap_entry, fatal: fatal_entry },
    &raw const PERCPU0,
);
