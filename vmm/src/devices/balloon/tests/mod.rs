//! The device against a driver that lives in the test: well-behaved, and not.

mod driver;
mod protocol;
mod rubbish;
