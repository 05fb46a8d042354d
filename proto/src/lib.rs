//! The wire, and nothing else: messages generated from the `.proto` files beside this crate.
//!
//! With the feature `grpc` also the clients and servers of the services.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "the modules below are generated"
)]

/// Descriptors of every file, for gRPC reflection: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// What producers write to Kafka.
pub mod telemetry {
    include!(concat!(env!("OUT_DIR"), "/dashstream.v1.rs"));
}

/// Records, batches, cursors and gaps.
pub mod log {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/dashstream.log.v1.rs"));
    }
}

/// The ingest service.
pub mod ingest {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/dashstream.ingest.v1.rs"));
    }
}

/// The replay service.
pub mod replay {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/dashstream.replay.v1.rs"));
    }
}

/// The query service of the gateway.
pub mod gateway {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/dashstream.gateway.v1.rs"));
    }
}

/// Frames of the websocket protocol `dashstream.v2`.
pub mod session {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/dashstream.session.v1.rs"));
    }
}
