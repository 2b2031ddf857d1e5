//! Locks, sleep queue and scheduler under every order of events that loom finds: `scripts/loom.sh`
//! runs these.
//!
//! [`locks`] has the words of mutexes on several CPUs. [`sleep`] has kernel threads on one CPU:
//! there the order of events is when interrupts come, and [`machine`] lets them come at every
//! moment at which they may. [`smp`] has kernel threads on two CPUs, each with its idle thread,
//! which rests and is woken. [`pages`] has two CPUs with caches of free pages; these three have a
//! machine in common that is [`bare`]. [`tlb`] has two CPUs that have each other forget
//! translations. All run the kernel's own code.
//!
//! What loom does not do: let a load see a store that comes later in time, as a CPU might that
//! reorders a load after a store. x86_64 never does.

mod bare;
mod locks;
mod machine;
mod pages;
mod sleep;
mod smp;
mod tlb;
