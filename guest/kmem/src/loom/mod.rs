//! Locks, sleep queue and scheduler under every order of events that loom finds: `scripts/loom.sh`
//! runs these models.
//!
//! [`locks`] has the words of mutexes on several CPUs. [`sleep`] has kernel threads on one CPU:
//! there the order of events depends on the moments of interrupts, and [`machine`] lets them arrive
//! at every moment at which they may. [`smp`] has kernel threads on two CPUs, each with its idle
//! thread, which waits and is woken. [`pages`] has two CPUs with caches of free pages; these three
//! share the machine in [`bare`]. [`tlb`] has two CPUs that make each other flush translations. All
//! run the kernel's own code.
//!
//! loom never lets a load see a store that comes later in time, as a CPU that reorders a load after
//! a store might. x86_64 never does that.

mod bare;
mod locks;
mod machine;
mod pages;
mod sleep;
mod smp;
mod tlb;
