//! Why a request could not be answered, and what the caller is told.
use crate::{
    keys::{InvalidStream, InvalidTenant, InvalidThread},
    store,
};
use dashstream_core::position::OutOfRange;
use std::{sync::Arc, time::Duration};
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Stream(#[from] InvalidStream),
    #[error(transparent)]
    Position(#[from] OutOfRange),
    #[error("{field} is missing: expected {expected}")]
    Missing { field: &'static str, expected: &'static str },
    #[error("{field} is {value}: expected {expected}")]
    Invalid { field: &'static str, value: String, expected: &'static str },
    #[error(transparent)]
    Thread(#[from] InvalidThread),
    #[error("page_token is none of this service's")]
    PageToken,
    #[error("no thread {0:?} is kept")]
    NoThread(String),
    #[error(transparent)]
    Tenant(#[from] InvalidTenant),
    #[error("no schema is expected of graph {0:?}")]
    NoSchema(String),
    #[error("the expected schema has another version: read it again")]
    SchemaVersion,
    #[error("the tenant has {0} expected schemas, the most: delete some")]
    TooManySchemas(usize),
    #[error("{limit} reads are in flight, the most: try again in {retry_after:?}")]
    Busy { limit: u32, retry_after: Duration },
    #[error("the store's memory is used up: nothing can be appended until it has more, or keeps less")]
    Full(#[source] redis::RedisError),
    #[error("the store failed: {0}")]
    Store(#[source] store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        if let store::Error::Unavailable(cause) = error {
            return if is_full(&cause) { Self::Full(cause) } else { Self::Store(cause.into()) };
        }
        Self::Store(error)
    }
}

impl From<Error> for Status {
    /// The text goes to the client. The cause, which may name hosts, stays in the process.
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Stream(_)
            | Error::Position(_)
            | Error::Missing { .. }
            | Error::Invalid { .. }
            | Error::Thread(_)
            | Error::Tenant(_)
            | Error::PageToken => Code::InvalidArgument,
            Error::NoThread(_) | Error::NoSchema(_) => Code::NotFound,
            Error::SchemaVersion => Code::FailedPrecondition,
            Error::Busy { .. } | Error::Full(_) | Error::TooManySchemas(_) => Code::ResourceExhausted,
            Error::Store(store::Error::Unavailable(_) | store::Error::NotReplicated { .. }) => {
                Code::Unavailable
            }
            Error::Store(store::Error::Corrupt(_) | store::Error::Malformed(_)) => Code::DataLoss,
        };
        let mut status = Self::new(code, error.to_string());
        if let Error::Busy { retry_after, .. } = &error {
            // As gRPC's own retries have it.
            status.metadata_mut().insert("grpc-retry-pushback-ms", (retry_after.as_millis() as u64).into());
        }
        status.set_source(Arc::new(error));
        status
    }
}

/// Redis refuses writes because its memory is used up. A pipeline's error has no code of its own.
fn is_full(error: &redis::RedisError) -> bool {
    error.code() == Some("OOM") || error.to_string().contains("OOM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_service_says_when_to_come_back() {
        let status = Status::from(Error::Busy { limit: 3, retry_after: Duration::from_secs(1) });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
    }
}
