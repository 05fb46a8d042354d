//! The decisions of DashStream: positions, payloads, batches, catch-up, the hot tail, sessions.
//!
//! Nothing here does I/O, reads a clock, draws a random number or looks at the environment; the services
//! drive it and hand those in. So each rule can be tested without any of them.

pub mod backoff;
pub mod batch;
pub mod canonical;
pub mod catch_up;
pub mod chain;
pub mod codec;
pub mod dead_letter;
pub mod filter;
pub mod frame;
pub mod limits;
pub mod policy;
pub mod position;
pub mod rates;
pub mod ring;
pub mod session;
pub mod tail;
