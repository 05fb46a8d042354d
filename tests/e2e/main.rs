//! What users are promised, tried on the real thing. One binary, so that all share one Kafka.

mod harness;
