//! The map operations, rule by rule, on the simulated machine.
