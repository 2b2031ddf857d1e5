//! Schedules of memory pressure: what the host takes of a guest, and when.
//!
//! A schedule is a TOML file. Its steps begin at a time of the guest's clock (`at = "250ms"`) or
//! after a number of operations (`after = 100`):
//!
//! ```
//! # #[cfg(feature = "schedules")] {
//! use vmkern::schedule::Schedule;
//!
//! let text = r#"
//!     [[step]]
//!     kind = "seize"
//!     after = 100
//!     target = "16M"
//!     ramp = 50
//!     hold = 200
//!     repeat = 3
//!
//!     [keep]
//!     free = ["2M", "4M"]
//! "#;
//! let schedule = Schedule::parse("pressure.toml", text)?;
//! assert_eq!(schedule.steps.len(), 1);
//! # }
//! # Ok::<(), vmkern::schedule::ScheduleError>(())
//! ```
//!
//! A [`Driver`] carries a schedule out, on anything that can be squeezed ([`Squeeze`]). It acts
//! when it is polled, and what it does depends on the moment alone: the guest's clock, the
//! operations so far, and what the guest has free. In virtual time none of these depends on the
//! host, so the same script with the same seed and schedule gives the same run.
//!
//! **Protocol.** The driver is polled between two operations of the guest. Each poll brings what
//! is held to the amount that the steps say for that moment, and then lets the closed loop correct
//! it. At the end everything is given back.

mod driver;
mod error;
mod keep;
mod model;
#[cfg(feature = "schedules")]
mod parse;
mod series;
#[cfg(all(test, feature = "schedules"))]
mod tests;

pub use self::driver::{Driver, Event, Happened, Moment, Squeeze};
pub use self::error::ScheduleError;
pub use self::keep::Left;
pub use self::model::{Base, Keep, Kind, Schedule, Step, Target};
pub use self::series::{Sample, Series};
