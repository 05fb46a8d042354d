//! Why a request could not be answered, and what the caller is told.
use crate::{keys::InvalidStream, store};
use dashstream_core::position::OutOfRange;
use std::sync::Arc;
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Stream(#[from] InvalidStream),
    #[error(transparent)]
    Position(#[from] OutOfRange),
    #[error("{field} is missing: expected {expected}")]
    Missing { field: &'static str, expected: &'static str },
    #[error("{0} is not implemented by this version")]
    Unimplemented(&'static str),
    #[error("the store failed: {0}")]
    Store(#[from] store::Error),
}

impl From<Error> for Status {
    /// The text goes to the client. The cause, which may name hosts, stays in the process.
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Stream(_) | Error::Position(_) | Error::Missing { .. } => Code::InvalidArgument,
            Error::Unimplemented(_) => Code::Unimplemented,
            Error::Store(store::Error::Unavailable(_)) => Code::Unavailable,
            Error::Store(store::Error::Corrupt(_) | store::Error::Malformed(_)) => Code::DataLoss,
        };
        let mut status = Self::new(code, error.to_string());
        status.set_source(Arc::new(error));
        status
    }
}
