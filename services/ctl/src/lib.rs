//! The commands of `dashstream`, the binary for people.

pub mod cli;
pub mod client;
pub mod dlq;
pub mod local;
pub mod output;
pub mod owners;
pub mod partitions;
pub mod produce;
pub mod runs;
pub mod source;
pub mod status;
pub mod tail;
pub mod topics;
pub mod verify;
