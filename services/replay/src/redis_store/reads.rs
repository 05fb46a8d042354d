//! Reads of a partition's log, in fetches of one round trip each.
use super::{RedisStore, as_text, evalsha, parse_epoch, parse_link, reply::parse_time};
use crate::{
    filling::{Bounds, Filling},
    keys::{Key, Stream},
    store::{Error, From, Page, Raw, from_time, page},
    stored,
};
use bytes::Bytes;
use dashstream_core::{batch::Span, position::Partition};
use dashstream_proto::log::v1::Batch;
use tokio::time::Instant;

/// Of what read.lua returns, what comes before the batches.
const HEAD_PARTS: usize = 4;

impl RedisStore {
    pub(super) async fn read_log(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
    ) -> Result<Page, Error> {
        let began = Instant::now();
        let From::AtTime(time_ms) = from else {
            return page(partition, from, self.fetch_all(stream, partition, from, bounds, began).await?);
        };
        let Some(behind) = self.seek(stream, partition, time_ms).await? else { return Ok(Page::Seeding) };
        let mut raw = self.fetch_all(stream, partition, behind, bounds, began).await?;
        from_time(&mut raw.batches, time_ms)?;
        page(partition, from, raw)
    }

    /// The position of the first record of a time or later.
    async fn seek(&self, stream: &Stream, partition: Partition, time_ms: i64) -> Result<Option<From>, Error> {
        let meta = Key::Meta(stream, partition);
        let mut command = evalsha(&self.seek, &[meta, Key::Log(stream, partition)]);
        command.arg(time_ms);
        let (epoch, held, before, after_all): (String, String, Bytes, String) =
            self.call(&self.seek, meta, &command).await?;
        let Some(epoch) = parse_epoch(&epoch)? else { return Ok(None) };
        if after_all == "1" {
            return Ok(Some(From::After { epoch, at: parse_link(&held)? }));
        }
        Ok(Some(match before.is_empty() {
            true => From::Earliest,
            false => From::After { epoch, at: Some(stored::decode(before)?.last()) },
        }))
    }

    /// Fetches until the page has enough, or the log no more.
    async fn fetch_all(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
        began: Instant,
    ) -> Result<Raw, Error> {
        let mut filling = Filling::new(bounds);
        let first = filling.next_bytes().unwrap_or(0);
        let mut raw = self.fetch(stream, partition, from, first, &mut filling).await?;
        while let Some(rest) = raw.rest()
            && filling.goes_on(began.elapsed())
            && let Some(bytes) = filling.next_bytes()
        {
            let more = self.fetch(stream, partition, rest, bytes, &mut filling).await?;
            if !raw.join(more) {
                break;
            }
        }
        Ok(raw)
    }

    async fn fetch(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bytes_max: u64,
        filling: &mut Filling,
    ) -> Result<Raw, Error> {
        self.inventory.used(stream);
        // An entry's id is its last offset plus one: what follows `at` ends at `at + 1` or later.
        let (first, bytes_max, epoch) = match from {
            From::Earliest | From::AtTime(_) => ("-".into(), bytes_max.max(1), String::new()),
            From::Latest => ("-".into(), 0, String::new()),
            From::After { epoch, at } => {
                let first = at.map_or_else(|| "-".into(), |at| format!("{}-0", at.get() + 2));
                (first, bytes_max.max(1), epoch.to_string())
            }
        };
        let meta = Key::Meta(stream, partition);
        let mut command = evalsha(&self.read, &[meta, Key::Log(stream, partition)]);
        command.arg(first).arg(bytes_max).arg(epoch);
        let mut answer: Vec<Bytes> = self.call(&self.read, meta, &command).await?;
        if answer.len() < HEAD_PARTS || !answer.len().is_multiple_of(2) {
            return Err(Error::Corrupt(format!("a page of {} parts", answer.len())));
        }
        let mut batches = Vec::with_capacity(answer.len() / 2);
        for entry in answer.split_off(HEAD_PARTS).chunks_exact(2) {
            let stored_ms = Some(parse_time(as_text(&entry[1])?)?);
            let batch = Batch { stored_ms, ..stored::decode(entry[0].clone())? };
            filling.add(batch.record_count as usize, entry[0].len() as u64);
            batches.push(batch);
        }
        let (records, oldest) = (as_text(&answer[2])?, &answer[3]);
        Ok(Raw {
            epoch: parse_epoch(as_text(&answer[0])?)?,
            held: parse_link(as_text(&answer[1])?)?,
            earliest: if oldest.is_empty() { None } else { Some(stored::decode(oldest.clone())?.first()) },
            records: records.parse().map_err(|_| Error::Corrupt(format!("{records:?} records")))?,
            batches,
        })
    }
}
