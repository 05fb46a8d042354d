//! The commands of `dashstream`, the binary for people.

pub mod client;
pub mod demo;
pub mod local;
pub mod output;
pub mod produce;
pub mod runs;
pub mod status;
pub mod tail;
pub mod topics;
