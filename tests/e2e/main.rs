//! What users are promised, tried on the real thing. One binary, so that all share one Kafka.

mod crowd;
mod delivery;
mod harness;
mod kept;
mod kills;
mod legacy;
mod legacy_served;
mod local;
mod operations;
mod pages;
mod redis_fleet;
mod redis_rights;
mod retention;
mod starts;
mod store;
mod store_faults;
mod threads;
mod unwell;
