//! Reading a subscribe: it is granted whole, or refused with what is wrong.
use super::{CURSORS_MAX, From, Known, Output, Phase, Reader, Session};
use crate::{
    filter::{BadFilter, Filter},
    position::{Epoch, Offset, OutOfRange, Partition},
};
use dashstream_proto::{
    log::v1::Cursor,
    session::v1::{ErrorCode, StartPolicy, Subscribe},
};
use std::{collections::BTreeMap, sync::Arc};

/// Why a subscribe is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Bad {
    #[error("subscribe.start is {0}: expected EARLIEST, LATEST, ACTIVE or TIME")]
    Start(i32),
    #[error(
        "subscribe.start_time_ms is {0}: expected milliseconds since 1970, with start TIME and only then"
    )]
    Time(i64),
    #[error(transparent)]
    Filter(#[from] BadFilter),
    #[error("subscribe.cursors has {0}: expected at most {CURSORS_MAX}")]
    TooMany(usize),
    #[error("subscribe.cursors has: {0}")]
    Cursor(#[from] OutOfRange),
    #[error("subscribe.cursors names partition {0} twice")]
    Twice(Partition),
    #[error("subscribe.cursors names partition {0}, which subscribe.filter.partitions does not")]
    Unread(Partition),
}

impl Bad {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Filter(BadFilter::Tenant(_)) => ErrorCode::PermissionDenied,
            Self::Filter(BadFilter::TooMany(_)) | Self::TooMany(_) => ErrorCode::OverLimit,
            Self::Start(_)
            | Self::Time(_)
            | Self::Filter(BadFilter::Kind(_) | BadFilter::Partition(_))
            | Self::Cursor(_)
            | Self::Twice(_)
            | Self::Unread(_) => ErrorCode::InvalidArgument,
        }
    }
}

impl Session {
    /// Starts the delivery, or starts it anew.
    pub(super) fn subscribe(&mut self, subscribe: Subscribe, known: &[Known]) -> Vec<Output> {
        let request_id = subscribe.request_id;
        match self.read(subscribe) {
            Ok((start, filter, readers)) => {
                self.filter = Arc::new(filter);
                self.readers = readers;
                self.phase = Phase::Subscribed { request_id, start };
                self.announce(known)
            }
            Err(bad) => self.decline(bad.code(), bad.to_string(), request_id),
        }
    }

    fn read(&self, subscribe: Subscribe) -> Result<(From, Filter, BTreeMap<Partition, Reader>), Bad> {
        let Subscribe { request_id: _, cursors, start, filter, start_time_ms } = subscribe;
        let start = read_start(start, start_time_ms)?;
        let filter = match filter {
            Some(asked) => Filter::new(&self.access, asked)?,
            None => Filter::all(self.access.clone()),
        };
        if cursors.len() > CURSORS_MAX {
            return Err(Bad::TooMany(cursors.len()));
        }
        let mut readers = BTreeMap::new();
        for cursor in &cursors {
            let (partition, from) = read_cursor(cursor)?;
            if !filter.reads(partition) {
                return Err(Bad::Unread(partition));
            }
            if readers.insert(partition, Reader::new(partition, from)).is_some() {
                return Err(Bad::Twice(partition));
            }
        }
        Ok((start, filter, readers))
    }
}

fn read_start(start: i32, time_ms: i64) -> Result<From, Bad> {
    let from = match StartPolicy::try_from(start) {
        Ok(StartPolicy::Earliest) => From::Earliest,
        Ok(StartPolicy::Latest) => From::Latest,
        Ok(StartPolicy::Active) => From::Active,
        Ok(StartPolicy::Time) if time_ms > 0 => return Ok(From::Time(time_ms)),
        Ok(StartPolicy::Time) => return Err(Bad::Time(time_ms)),
        Ok(StartPolicy::Unspecified) | Err(_) => return Err(Bad::Start(start)),
    };
    if time_ms == 0 { Ok(from) } else { Err(Bad::Time(time_ms)) }
}

fn read_cursor(cursor: &Cursor) -> Result<(Partition, From), OutOfRange> {
    let at = cursor.offset.map(Offset::new).transpose()?;
    Ok((Partition::new(cursor.partition)?, From::After { epoch: Epoch::new(cursor.epoch), at }))
}
