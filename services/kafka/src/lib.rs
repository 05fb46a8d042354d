//! How Kafka is reached, by whoever reaches it: the settings of a connection, what a topic is, and what Kafka's
//! client complains of.

pub mod admin;
pub mod connection;
pub mod security;
pub mod topic;
pub mod trouble;

pub use admin::Admin;
pub use connection::Connection;
pub use topic::Topic;
pub use trouble::Trouble;
