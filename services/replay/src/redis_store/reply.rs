//! What Redis answers, read into types.
use crate::store::Error;
use bytes::Bytes;
use dashstream_core::position::{Epoch, Link, Offset};
use redis::{FromRedisValue, Value};

/// The stored form of a position, '' for none.
pub(super) fn text(link: Link) -> String {
    link.map_or_else(String::new, |offset| offset.to_string())
}

pub(super) fn as_text(bytes: &Bytes) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|error| Error::Corrupt(error.to_string()))
}

pub(super) fn parse_epoch(text: &str) -> Result<Option<Epoch>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(|value| Some(Epoch::new(value))).map_err(|_| Error::Corrupt(format!("epoch {text:?}")))
}

pub(super) fn parse_link(text: &str) -> Result<Link, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let corrupt = || Error::Corrupt(format!("offset {text:?}"));
    Offset::new(text.parse().map_err(|_| corrupt())?).map(Some).map_err(|_| corrupt())
}

pub(super) fn parse_time(text: &str) -> Result<i64, Error> {
    text.parse().map_err(|_| Error::Corrupt(format!("time {text:?}")))
}

/// What append.lua returns.
#[derive(Debug)]
pub(super) struct Reply {
    outcome: String,
    epoch: String,
    held: String,
    stored_ms: String,
}

#[derive(Debug)]
pub(super) enum Parsed {
    Stored { last: Offset, stored_ms: i64 },
    Epoch { epoch: Option<Epoch>, held: Link },
    Link { held: Link },
}

impl FromRedisValue for Reply {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        let (outcome, epoch, held, stored_ms) = redis::from_redis_value(value)?;
        Ok(Self { outcome, epoch, held, stored_ms })
    }
}

impl Reply {
    pub(super) fn parse(&self) -> Result<Parsed, Error> {
        let held = parse_link(&self.held)?;
        match (self.outcome.as_str(), held) {
            ("stored", Some(last)) => Ok(Parsed::Stored { last, stored_ms: parse_time(&self.stored_ms)? }),
            ("epoch", held) => Ok(Parsed::Epoch { epoch: parse_epoch(&self.epoch)?, held }),
            ("link", held) => Ok(Parsed::Link { held }),
            (other, _) => Err(Error::Corrupt(format!("outcome {other:?}"))),
        }
    }
}
