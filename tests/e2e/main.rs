//! What users are promised, tried on the real thing. One binary, so that all share one Kafka.

mod bad_records;
mod catching_up;
mod delivery;
mod gateway_http;
mod harness;
mod healing;
mod kept;
mod kills;
mod legacy;
mod legacy_served;
mod local;
mod openings;
mod operations;
mod ownership;
mod pages;
mod redis_fleet;
mod redis_rights;
mod retention;
mod schemas;
mod security;
mod services_tls;
mod sparse_topics;
mod store;
mod store_faults;
mod threads;
mod traces;
