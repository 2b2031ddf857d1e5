//! `vmmeter`: the counters that scripts and reports name.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::field::Field;

macro_rules! meter {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters and thresholds (`struct vmmeter`), in pages or events.
        #[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
        #[repr(C)]
        pub struct VmMeter {
            $($(#[$doc])* pub $name: Field<u64>,)*
        }

        crate::describe!(VmMeter { $($name),* });

        impl VmMeter {
            /// Every counter's name, in order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// The counter called `name`.
            #[must_use]
            pub fn by_name(&self, name: &str) -> Option<&Field<u64>> {
                match name {
                    $(stringify!($name) => Some(&self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

meter! {
    /// Pages under management.
    v_page_count,
    /// Pages that can be allocated.
    v_free_count,
    /// Pages of the cache queue.
    v_cache_count,
    /// Pages of the active queue.
    v_active_count,
    /// Pages of the inactive queue.
    v_inactive_count,
    /// Wired pages.
    v_wire_count,
    /// NORMAL allocations stop here.
    v_free_reserved,
    /// Sleepers are woken from here on.
    v_free_min,
    /// Faults wait for pages below here.
    v_free_severe,
    /// The pagedaemon works up to here.
    v_free_target,
    /// The pagedaemon's own sleep ends here.
    v_pageout_free_min,
    /// Target size of the cache queue in pages.
    v_cache_min,
    /// Maximum size of the cache queue in pages.
    v_cache_max,
    /// Target size of the inactive queue in pages.
    v_inactive_target,
    /// SYSTEM allocations stop here.
    v_interrupt_free_min,
    /// Calls of `vm_fault`.
    v_faults,
    /// Pages zero-filled on demand.
    v_zfod,
    /// Pages read from swap.
    v_swapin,
    /// Pages written to swap.
    v_swapout,
    /// Times the pagedaemon was woken because pages were short.
    v_pdwakeups,
    /// Invocations of the vm_lowmem event.
    lowmem_events,
    /// Operations stored for the vm_lowmem event that failed when the event occurred.
    lowmem_failures,
    /// Kernel threads.
    thread_count,
    /// Clock ticks since boot.
    ticks,
    /// Ticks a second.
    hz,
    /// CPUs.
    ncpu,
}
