//! Telemetry of agent graphs into DashStream.
//!
//! An application starts one [`Producer`], asks it for a [`Run`] of each thread, and says there what happens. No call
//! waits or fails, from whatever thread it comes and with or without an async runtime; one thread of the producer's own
//! numbers, redacts, encodes and sends, so that the order in Kafka is the order of the numbers.
//!
//! - **Losses are accounted for.** Accepted = delivered + dropped + failed + in flight, at every reading of [`Books`] and
//!   at every scrape. What is lost leaves a hole in its thread's numbers, and if a state was lost, the next one is sent
//!   as a whole.
//! - **Memory is bounded** by [`Config::budget_bytes`]. Tokens and metrics give way first, the ends of runs last.
//! - **Secrets stay.** Every text of every message is searched for them, as a value, before it becomes JSON or protobuf.
//! - **States** are sent as RFC 6902 patches against what was published before, with a hash over exactly what was
//!   published ([`dashstream_core::canonical`]), and now and then as a checkpoint.
//! - **A new life of a thread**, as after a restart, begins with the number 1; its first event has an attribute
//!   `producer_epoch`, and its first state is whole.
//!
//! A thread's records lie in one partition as long as the topic's number of partitions stays: the key is the thread
//! id, and the partition librdkafka's `consistent_random` of it.
//!
//! [`Producer::shutdown`] says what did not reach Kafka. `std::process::exit` drops nothing, so call it before.

mod books;
mod budget;
mod clean;
mod client;
mod config;
mod diff;
mod flights;
mod graph;
mod metrics;
mod producer;
mod queue;
mod redact;
mod run;
mod say;
mod signal;
mod thread;
mod trace;
mod writer;

pub use books::{Books, Degraded, Dropped, Failed, Row};
pub use budget::Kind;
pub use config::{Config, StartError, StatePolicy};
pub use dashstream_proto::telemetry::{
    AttributeValue, EventType, attribute_value, error::Severity, token_chunk::FinishReason,
};
pub use graph::{END, Graph, NodeType};
pub use producer::{Producer, Report};
pub use queue::Depth;
pub use redact::BadPattern;
pub use run::Run;
pub use say::{Failure, Llm, Measure, Token, ToolCall};
pub use trace::TraceContext;
