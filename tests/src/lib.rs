//! The harness of the system's tests: the real Kafka, the real Redis and our own binaries as child
//! processes, waiting without sleeping, and connections that break on command.
//!
//! Everything listens on loopback, lives in a temporary folder and ends with the value that stands
//! for it, or with the test process, however that ends.

mod certificates;
pub mod collector;
pub mod eventually;
pub mod feed;
mod folder;
pub mod kafka;
pub mod kafka_doors;
pub mod letters;
pub mod net;
pub mod operator;
pub mod proxy;
pub mod redis;
pub mod redis_fleet;
pub mod services;
pub mod stack;
pub mod v1_client;
pub mod viewer;
pub mod warden;
pub mod watcher;
pub mod writer;

pub use crate::{
    collector::Collector,
    eventually::eventually,
    feed::{Feed, Log},
    kafka::Kafka,
    kafka_doors::Door,
    letters::letters,
    operator::Operator,
    proxy::Proxy,
    redis::Redis,
    services::{Kind, Service, dashstream},
    stack::{Links, Shape, Stack},
    viewer::{Viewer, Want},
    warden::Stop,
    watcher::Watcher,
    writer::Writer,
};
