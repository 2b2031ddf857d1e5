//! Dumps: a guest's memory and CPUs in a file, to be looked into later and elsewhere.
//!
//! [`Guest::save_dump`](crate::Guest::save_dump) writes one; of a guest that died, as it died.
//! [`Dump::open`] reads it, and believes nothing that stands in it.
//!
//! ```
//! use vmkern::check::Report;
//! use vmkern::dump::Dump;
//! use vmkern::prelude::*;
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("guest.dump");
//! let guest = Guest::builder().launch()?;
//! guest.save_dump(&path)?;
//!
//! let dump = Dump::open(&path)?;
//! assert!(Report::of(&dump)?.is_clean());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use vmkern_inspect::dump::{
    About, Dump, OpenError, OpenFault, OtherKernel, SaveError, Saved, Saving, Sink, save,
};
