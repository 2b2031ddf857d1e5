//! The kernel's own structures, as they lie in guest memory.
//!
//! The guest uses these very types; the host reads them. Every structure is `repr(C)`, made of
//! [`Field`](crate::field::Field)s, and valid when all zero unless its documentation says
//! otherwise. Field names are FreeBSD's. Each type's size and field offsets are asserted at compile
//! time: a change is a change of the ABI.

mod balloon;
mod boot_region;
mod eventhandler;
mod lock;
mod lock_class;
mod map;
mod meter;
mod object;
mod page;
mod pcpu;
mod roots;
mod stall;
mod thread;
mod zone;

pub use self::balloon::*;
pub use self::boot_region::*;
pub use self::eventhandler::*;
pub use self::lock::*;
pub use self::lock_class::*;
pub use self::map::*;
pub use self::meter::*;
pub use self::object::*;
pub use self::page::*;
pub use self::pcpu::*;
pub use self::roots::*;
pub use self::stall::*;
pub use self::thread::*;
pub use self::zone::*;
