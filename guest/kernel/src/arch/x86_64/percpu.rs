//! The structure of one CPU: its TSS and the words that the nucleus reads through GS.
//!
//! GS base points here at both privileges, so `swapgs` is never needed. The assembly in
//! [`super::entry`] and [`super::nucleus`] addresses the fields by the offsets below.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence};

use kmem::kern::idle::IdleCpu;
pub use kmem::kern::idle::Polling;
use kmem::kern::shootdown::Shootdown;
use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{Pcpu, Thread};

use super::stack::Stack;
use super::tlb;

/// Bytes of a trap frame's slot: the frame, and below it room for the words with which a nested
/// trap returns to a handler whose RSP is still at the frame.
pub const SLOT: usize = 896;

/// Offset of the TSS's IST1: where the next trap frame's slot ends. Each trap moves it down by
/// [`SLOT`], and each return moves it up again.
pub const IST1: usize = offset_of!(PerCpu, tss) + offset_of!(Tss, ist);
/// Offset of [`PerCpu::body_cs`].
pub const BODY_CS: usize = offset_of!(PerCpu, body_cs);
/// Offset of [`PerCpu::body_ss`].
pub const BODY_SS: usize = offset_of!(PerCpu, body_ss);
/// Offset of [`PerCpu::body_flags`].
pub const BODY_FLAGS: usize = offset_of!(PerCpu, body_flags);
/// Offset of [`PerCpu::trap_entry`].
pub const TRAP_ENTRY: usize = offset_of!(PerCpu, trap_entry);
/// Offset of [`PerCpu::fatal_entry`].
pub const FATAL_ENTRY: usize = offset_of!(PerCpu, fatal_entry);
/// Offset of [`PerCpu::stack_low`].
pub const STACK_LOW: usize = offset_of!(PerCpu, stack_low);
/// Offset of [`PerCpu::stack_high`].
pub const STACK_HIGH: usize = offset_of!(PerCpu, stack_high);
/// Offset of [`PerCpu::slots_low`].
pub const SLOTS_LOW: usize = offset_of!(PerCpu, slots_low);
/// Offset of [`PerCpu::slots_high`].
pub const SLOTS_HIGH: usize = offset_of!(PerCpu, slots_high);
/// Offset of [`PerCpu::emergency_stack`].
pub const EMERGENCY_STACK: usize = offset_of!(PerCpu, emergency_stack);
/// Offset of the first word of [`PerCpu::idle`].
pub const IDLE_ARMED: usize = offset_of!(PerCpu, idle) + IdleCpu::ARMED;
/// Offset of [`PerCpu::mask_depth`].
pub const MASK_DEPTH: usize = offset_of!(PerCpu, mask_depth);
/// Offset of [`PerCpu::deferred`].
pub const DEFERRED: usize = offset_of!(PerCpu, deferred);
/// Offset of [`PerCpu::gdt_pointer`], less the two bytes that are padding.
pub const GDT_POINTER: usize = offset_of!(PerCpu, gdt_pointer);
/// Offset of [`PerCpu::this`].
pub const THIS: usize = offset_of!(PerCpu, this);

/// The task-state segment (SDM volume 3, section 8.7), with an I/O bitmap that opens ports 0 to
/// 0x7ff to CPL3.
#[repr(C, packed(4))]
pub struct Tss {
    reserved0: u32,
    rsp: [usize; 3],
    reserved1: u64,
    ist: [*const u8; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
    io_map: [u8; 256],
    io_map_end: u8,
}

/// See the module.
#[repr(C, align(4096))]
pub struct PerCpu {
    tss: UnsafeCell<Tss>,
    /// Code selector of the kernel body.
    body_cs: AtomicU64,
    /// Stack selector of the kernel body.
    body_ss: AtomicU64,
    /// RFLAGS with which a trap handler starts.
    body_flags: AtomicU64,
    /// The body's entry for every trap that can be handled (`trap.rs`).
    trap_entry: unsafe extern "C" fn(),
    /// The body's entry for traps that cannot be handled.
    fatal_entry: unsafe extern "C" fn(),
    /// Bounds of the stack that the running thread uses, and of its trap slots.
    stack_low: AtomicPtr<u8>,
    stack_high: AtomicPtr<u8>,
    slots_low: AtomicPtr<u8>,
    slots_high: AtomicPtr<u8>,
    /// The thread that runs.
    thread: AtomicU64,
    /// Where the memory system's structure of this CPU lies.
    pcpu: AtomicU64,
    /// Top of the stack for crashes.
    emergency_stack: *const u8,
    /// Bytes of it.
    emergency_bytes: u64,
    /// Bottom of the stack for trap frames.
    trap_stack: *const u8,
    /// Whether the CPU may halt: the idle loop sets it, and each interrupt clears it.
    idle: IdleCpu,
    /// Other CPUs' requests for flushes on this one.
    shootdown: Shootdown,
    /// The address of this structure.
    this: *const PerCpu,
    /// Interrupts are deferred while this is not 0.
    mask_depth: AtomicU32,
    /// Interrupts that have arrived while deferred, a bit each ([`super::interrupt::Deferred`]).
    deferred: AtomicU32,
    cpu: u32,
    /// The TSC at which the CPU's timer fires; [`NEVER`] while it stands still. Other CPUs read it.
    timer_at: AtomicU64,
    /// The TSC at which the time slice of the running thread ends; [`NEVER`] while no thread waits
    /// for the CPU.
    slice_end: AtomicU64,
    /// Descriptors of a CPU that did not boot: those of the image, with its own TSS.
    gdt: UnsafeCell<[u64; 8]>,
    /// The operand of `lgdt`: limit, then address.
    gdt_pointer: UnsafeCell<[u16; 8]>,
}

// SAFETY: a CPU uses only its own structure, through GS; words shared with interrupt handlers of
// the same CPU are atomic, and only assembly writes the cells.
unsafe impl Sync for PerCpu {}

/// Limit of the TSS with its I/O bitmap, as `build.rs` puts it into the boot CPU's descriptor.
pub const TSS_LIMIT: u64 = 360;

const _: () = {
    assert!(size_of::<PerCpu>() == 4096);
    assert!(offset_of!(PerCpu, tss) == 0 && offset_of!(Tss, ist) == 0x24);
    assert!(offset_of!(Tss, io_map) == 104);
    // `build.rs` puts this limit into the descriptor.
    assert!(offset_of!(Tss, io_map_end) == 360);
};

/// The stacks of a CPU, each by its bottom and its top.
#[derive(Clone, Copy)]
pub struct Stacks {
    /// The stack of the body.
    pub body: Stack,
    /// The stack for trap frames.
    pub trap: Stack,
    /// The stack on which crashes are reported.
    pub emergency: Stack,
}

/// Where traps enter the body.
#[derive(Clone, Copy)]
pub struct TrapEntries {
    /// The entry for traps that can be handled.
    pub trap: unsafe extern "C" fn(),
    /// The entry for traps that cannot.
    pub fatal: unsafe extern "C" fn(),
}

/// Whether interrupts are still deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// They are not.
    Free,
    /// They are.
    Masked,
}

/// A TSC value that is never reached.
pub const NEVER: u64 = u64::MAX;

/// The bounds of the running thread's stack and of its trap slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackBounds {
    /// Lowest address of the stack.
    pub low: u64,
    /// First address past it.
    pub high: u64,
    /// Lowest address of the trap slots.
    pub slots: u64,
    /// First address past them.
    pub slots_end: u64,
}

impl StackBounds {
    /// Bounds that contain every stack, for the moment of a switch.
    pub const ANY: Self = Self { low: 0, high: u64::MAX, slots: 0, slots_end: 0 };
}

/// The word at `OFFSET` of the calling CPU's structure.
#[inline]
fn word<const OFFSET: usize>() -> u64 {
    let word: u64;
    // SAFETY: GS base points at a `PerCpu` from before the body's first instruction on, and the
    // offset is that of a word.
    unsafe {
        core::arch::asm!(
            "mov {}, gs:[{}]",
            out(reg) word, const OFFSET,
            options(nostack, readonly, preserves_flags)
        );
    }
    word
}

/// The 32-bit word at `OFFSET` of the calling CPU's structure.
#[inline]
fn half<const OFFSET: usize>() -> u32 {
    let half: u32;
    // SAFETY: as for `word`.
    unsafe {
        core::arch::asm!(
            "mov {:e}, gs:[{}]",
            out(reg) half, const OFFSET,
            options(nostack, readonly, preserves_flags)
        );
    }
    half
}

impl PerCpu {
    /// A CPU with these stacks whose body runs at CPL3 until the entry code decides otherwise.
    /// `this` is the address at which the structure will lie.
    #[must_use]
    pub const fn new(cpu: u32, stacks: Stacks, entries: TrapEntries, this: *const Self) -> Self {
        // 1. The stacks that the CPU switches to by itself: for traps, and for crashes.
        let mut ist = [core::ptr::null(); 7];
        ist[0] = stacks.trap.top();
        ist[1] = stacks.emergency.top();
        Self {
            tss: UnsafeCell::new(Tss {
                reserved0: 0,
                rsp: [0; 3],
                reserved1: 0,
                ist,
                reserved2: 0,
                reserved3: 0,
                io_map_base: 104,
                io_map: [0; 256],
                io_map_end: 0xff,
            }),
            // 2. The words that the entry code reads: how the body runs, where to enter it, and the
            // bounds of the stacks.
            body_cs: AtomicU64::new(0x23),
            body_ss: AtomicU64::new(0x1b),
            body_flags: AtomicU64::new(0x202),
            trap_entry: entries.trap,
            fatal_entry: entries.fatal,
            stack_low: AtomicPtr::new(stacks.body.bottom().cast_mut()),
            stack_high: AtomicPtr::new(stacks.body.top().cast_mut()),
            slots_low: AtomicPtr::new(stacks.trap.bottom().cast_mut()),
            slots_high: AtomicPtr::new(stacks.trap.top().cast_mut()),
            thread: AtomicU64::new(0),
            pcpu: AtomicU64::new(0),
            emergency_stack: stacks.emergency.top(),
            emergency_bytes: stacks.emergency.bytes(),
            trap_stack: stacks.trap.bottom(),
            // 3. The words that only the body reads and writes, in their idle state.
            idle: IdleCpu::new(),
            shootdown: Shootdown::new(),
            this,
            mask_depth: AtomicU32::new(0),
            deferred: AtomicU32::new(0),
            timer_at: AtomicU64::new(NEVER),
            slice_end: AtomicU64::new(NEVER),
            gdt: UnsafeCell::new([0; 8]),
            gdt_pointer: UnsafeCell::new([0; 8]),
            cpu,
        }
    }

    /// Puts the structure of CPU `cpu`, which has not started, into the page at `page`: its idle
    /// thread `thread` runs on `stacks`, and the body at the privilege of the calling CPU.
    ///
    /// # Safety
    /// The page is mapped for ever at this address, and not used otherwise; the same holds for the
    /// stacks.
    pub unsafe fn install(
        page: GuestVirt,
        cpu: u32,
        stacks: Stacks,
        thread: KPtr<Thread>,
        pcpu: KPtr<Pcpu>,
    ) -> &'static Self {
        // 1. The structure, with the entries of the CPU that boots.
        let (at, boot) = (page.get() as *mut Self, Self::current());
        let entries = TrapEntries { trap: boot.trap_entry, fatal: boot.fatal_entry };
        // SAFETY: by this function's contract only this structure uses the page.
        let new = unsafe {
            at.write(Self::new(cpu, stacks, entries, at));
            &*at
        };
        // 2. The body runs as it does on that CPU, on its idle thread.
        for (to, from) in [
            (&new.body_cs, &boot.body_cs),
            (&new.body_ss, &boot.body_ss),
            (&new.body_flags, &boot.body_flags),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        new.set_thread(thread);
        new.set_pcpu(pcpu);
        // 3. The descriptors. Only that of the TSS, which is the start of the page, is its own.
        let tss = page.get();
        let descriptor =
            TSS_LIMIT | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0,
            descriptor,
            tss >> 32,
        ];
        let base = new.gdt.get() as u64;
        let word = |shift: u32| u16::try_from(base >> shift & 0xffff).unwrap_or(0);
        // SAFETY: the CPU has not started: nothing reads its descriptors yet.
        unsafe {
            *new.gdt.get() = gdt;
            *new.gdt_pointer.get() = [63, word(0), word(16), word(32), word(48), 0, 0, 0];
        }
        new
    }

    /// The calling thread, or null before there are threads. One instruction, so a thread that is
    /// moved to another CPU still reads itself.
    #[must_use]
    #[inline]
    pub fn thread() -> KPtr<Thread> {
        KPtr::new(GuestVirt::new(word::<{ offset_of!(Self, thread) }>()))
    }

    /// The memory system's structure of the calling CPU. One instruction, as for
    /// [`PerCpu::thread`].
    #[must_use]
    #[inline]
    pub fn pcpu() -> KPtr<Pcpu> {
        KPtr::new(GuestVirt::new(word::<{ offset_of!(Self, pcpu) }>()))
    }

    /// Defers interrupts on the calling CPU, once more. One instruction, as for [`PerCpu::thread`]:
    /// from then on the thread stays on its CPU.
    #[inline]
    pub fn mask() {
        // SAFETY: GS base points at a `PerCpu` from before the body's first instruction on; only
        // this CPU writes the word.
        unsafe {
            core::arch::asm!(
                "inc dword ptr gs:[{}]",
                const offset_of!(Self, mask_depth),
                options(nostack)
            );
        }
    }

    /// Undoes one [`PerCpu::mask`], in one instruction: after the last one the thread may be moved
    /// to another CPU.
    #[inline]
    #[must_use]
    pub fn unmask() -> Depth {
        let is_free: u8;
        // SAFETY: as for `mask`.
        unsafe {
            core::arch::asm!(
                "dec dword ptr gs:[{}]",
                "sete {}",
                const offset_of!(Self, mask_depth),
                out(reg_byte) is_free,
                options(nostack)
            );
        }
        if is_free != 0 { Depth::Free } else { Depth::Masked }
    }

    /// Whether an interrupt has been recorded on the calling CPU.
    #[inline]
    #[must_use]
    pub fn is_due() -> bool {
        half::<{ offset_of!(Self, deferred) }>() != 0
    }

    /// Sets the memory system's structure of this CPU.
    pub fn set_pcpu(&self, pcpu: KPtr<Pcpu>) {
        self.pcpu.store(pcpu.addr().get(), Ordering::Relaxed);
    }

    /// Sets the running thread.
    pub fn set_thread(&self, thread: KPtr<Thread>) {
        self.thread.store(thread.addr().get(), Ordering::Relaxed);
    }

    /// The bounds of the running thread's stack.
    #[must_use]
    pub fn stack_bounds(&self) -> StackBounds {
        let address = |pointer: &AtomicPtr<u8>| pointer.load(Ordering::Relaxed) as u64;
        StackBounds {
            low: address(&self.stack_low),
            high: address(&self.stack_high),
            slots: address(&self.slots_low),
            slots_end: address(&self.slots_high),
        }
    }

    /// Sets the bounds of the running thread's stack.
    pub fn set_stack_bounds(&self, bounds: StackBounds) {
        let set = |pointer: &AtomicPtr<u8>, address: u64| {
            pointer.store(address as *mut u8, Ordering::Relaxed)
        };
        set(&self.stack_low, bounds.low);
        set(&self.stack_high, bounds.high);
        set(&self.slots_low, bounds.slots);
        set(&self.slots_high, bounds.slots_end);
        compiler_fence(Ordering::SeqCst);
    }

    /// End of the slot that the next trap uses.
    #[must_use]
    pub fn trap_slot(&self) -> u64 {
        // SAFETY: only this CPU changes the word, and traps restore it.
        unsafe { (*self.tss.get()).ist[0] as u64 }
    }

    /// Number of trap frames of the running thread, including that of a halt.
    #[must_use]
    pub fn traps_in_progress(&self) -> u64 {
        // In the middle of a switch there are no bounds, and interrupts are deferred.
        self.stack_bounds().slots_end.saturating_sub(self.trap_slot()) / SLOT as u64
    }

    /// Makes the next trap use the slot that ends at `end`.
    ///
    /// # Safety
    /// There are free slots below `end`, which nothing else uses, as long as the word keeps this
    /// value.
    pub unsafe fn set_trap_slot(&self, end: u64) {
        // SAFETY: as above; the frame goes to the slots that the caller has named.
        unsafe { (*self.tss.get()).ist[0] = end as *const u8 };
        compiler_fence(Ordering::SeqCst);
    }

    /// The calling CPU's structure.
    #[inline]
    #[must_use]
    pub fn current() -> &'static Self {
        let this: *const Self;
        // SAFETY: GS base points at a `PerCpu` from before the body's first instruction on, and
        // `this` in it at itself.
        unsafe {
            core::arch::asm!(
                "mov {}, gs:[{}]",
                out(reg) this, const THIS,
                options(nostack, readonly, preserves_flags)
            );
            &*this
        }
    }

    /// Whether `address` lies on the stack on which this CPU reports crashes.
    #[must_use]
    pub fn on_emergency_stack(&self, address: u64) -> bool {
        let top = self.emergency_stack as u64;
        (top - self.emergency_bytes..top).contains(&address)
    }

    /// The CPU's number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.cpu
    }

    /// Code selector of the kernel body.
    #[must_use]
    pub fn body_cs(&self) -> u64 {
        self.body_cs.load(Ordering::Relaxed)
    }

    /// The CPL at which the body runs, 0 or 3.
    #[must_use]
    pub fn cpl(&self) -> u32 {
        if self.body_is_user() { 3 } else { 0 }
    }

    /// Whether the body runs at CPL3.
    #[must_use]
    pub fn body_is_user(&self) -> bool {
        self.body_cs() & 3 == 3
    }

    /// Ends the idle state after a halt, or before one, because a trap has arrived. Each word is
    /// read in one instruction: a thread that is not idle may be moved to another CPU at any
    /// moment, and finds both words 0 on every CPU.
    #[inline]
    pub fn wake() {
        if half::<IDLE_ARMED>() != 0 {
            Self::current().idle.disarm();
        }
        if half::<{ offset_of!(Self, shootdown) + Shootdown::STATE }>() != 0 {
            tlb::come_back();
        }
    }

    /// The TSC at which this CPU's timer fires, or [`NEVER`]. Another CPU has ordered this read
    /// after the stores that the CPU must see.
    #[must_use]
    pub fn timer_at(&self) -> u64 {
        self.timer_at.load(Ordering::SeqCst)
    }

    /// Sets the TSC at which this CPU's timer fires.
    pub fn set_timer_at(&self, tsc: u64) {
        self.timer_at.store(tsc, Ordering::SeqCst);
    }

    /// The TSC at which the running time slice ends, or [`NEVER`].
    #[must_use]
    pub fn slice_end(&self) -> u64 {
        self.slice_end.load(Ordering::Relaxed)
    }

    /// Sets the TSC at which the running time slice ends.
    pub fn set_slice_end(&self, tsc: u64) {
        self.slice_end.store(tsc, Ordering::Relaxed);
    }

    /// Leaves no room on the trap stack: the next trap is a double fault.
    pub fn exhaust_trap_stack(&self) {
        // SAFETY: the frame would go to the stack's guard page, which causes a double fault and not
        // a write.
        unsafe { (*self.tss.get()).ist[0] = self.trap_stack };
    }

    /// The idle state of the CPU.
    #[must_use]
    pub const fn idle(&self) -> &IdleCpu {
        &self.idle
    }

    /// Other CPUs' requests for flushes on this one.
    #[must_use]
    pub const fn shootdown(&self) -> &Shootdown {
        &self.shootdown
    }

    /// How many [`super::interrupt::Masked`] guards are alive.
    #[must_use]
    pub const fn mask_depth(&self) -> &AtomicU32 {
        &self.mask_depth
    }

    /// Interrupts that are pending until the last guard is dropped.
    #[must_use]
    pub const fn deferred(&self) -> &AtomicU32 {
        &self.deferred
    }
}
