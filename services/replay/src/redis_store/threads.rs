//! Threads: the directory, one thread's summary, its records.
use super::{RedisStore, as_text, parse_epoch, parse_link, text};
use crate::{
    filling::{Bounds, Filling},
    keys::{Key, Stream, ThreadName},
    store::{Error, ListPlace},
    stored,
    threads::{After, IndexEntry, Summary, ThreadPage, plan, stand_in},
};
use bytes::Bytes;
use dashstream_core::{
    batch::Span,
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, RunStatus};
use std::collections::HashMap;
use tokio::time::Instant;

/// Names fetched beyond what was asked, for those that share a moment with the place to go on from.
const TIES: usize = 64;

const SUMMARY_FIELDS: [&str; 12] =
    ["e", "tenant", "status", "graph", "first", "last", "n", "errors", "tokens", "cost", "o", "wo"];

type Hash = HashMap<String, Bytes>;

impl RedisStore {
    pub(super) async fn summary(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<Option<Summary>, Error> {
        let (epoch, mut hashes) = self.hashes(stream, partition, std::slice::from_ref(name)).await?;
        summary(partition, name, &hashes.pop().unwrap_or_default(), epoch)
    }

    /// The partition's epoch and the hashes of these threads, in one round trip.
    async fn hashes(
        &self,
        stream: &Stream,
        partition: Partition,
        names: &[ThreadName],
    ) -> Result<(Option<Epoch>, Vec<Hash>), Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGET").arg(Key::Meta(stream, partition).to_string()).arg("e");
        for name in names {
            pipeline.cmd("HMGET").arg(Key::Thread(stream, partition, name).to_string()).arg(&SUMMARY_FIELDS);
        }
        let mut answers: Vec<redis::Value> = self.ask_all(&pipeline).await?;
        let hashes = answers.split_off(1).into_iter().map(|answer| {
            let values: Vec<Option<Bytes>> =
                redis::from_redis_value(answer).map_err(redis::RedisError::from)?;
            let named = SUMMARY_FIELDS
                .iter()
                .zip(values)
                .filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
            Ok(named.collect())
        });
        let hashes = hashes.collect::<Result<Vec<Hash>, Error>>()?;
        let epoch: Option<String> =
            answers.pop().map_or(Ok(None), redis::from_redis_value).map_err(redis::RedisError::from)?;
        Ok((parse_epoch(&epoch.unwrap_or_default())?, hashes))
    }

    pub(super) async fn list(
        &self,
        stream: &Stream,
        partition: Partition,
        below: Option<&ListPlace>,
        limit: usize,
    ) -> Result<Vec<(ListPlace, Summary)>, Error> {
        let mut window = limit + TIES;
        let places = loop {
            let mut command = redis::cmd("ZRANGE");
            let from = below.map_or_else(|| "+inf".into(), |place| place.active_ms.to_string());
            command.arg(Key::Directory(stream, partition).to_string()).arg(from).arg("-inf");
            command.arg(&["BYSCORE", "REV", "LIMIT", "0"]).arg(window).arg("WITHSCORES");
            let found: Vec<(String, f64)> = self.ask(&command).await?;
            let (got, wanted) = (found.len(), found.into_iter().filter_map(place));
            let mut places: Vec<_> = wanted.filter(|place| is_below(place, below)).collect();
            if places.len() >= limit || got < window {
                places.truncate(limit);
                break places;
            }
            window *= 2;
        };
        let names: Vec<_> = places.iter().map(|place| place.name.clone()).collect();
        let (epoch, hashes) = self.hashes(stream, partition, &names).await?;
        let mut listed = Vec::with_capacity(places.len());
        for (place, hash) in places.into_iter().zip(hashes) {
            if let Some(summary) = summary(partition, &place.name, &hash, epoch)? {
                listed.push((place, summary));
            }
        }
        Ok(listed)
    }

    pub(super) async fn delete(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<bool, Error> {
        let existed = self.summary(stream, partition, name).await?.is_some();
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("ZREM").arg(Key::Directory(stream, partition).to_string()).arg(name.as_str()).ignore();
        let unlink = pipeline.cmd("UNLINK").arg(Key::Thread(stream, partition, name).to_string());
        unlink.arg(Key::Index(stream, partition, name).to_string()).ignore();
        let () = self.ask_all(&pipeline).await?;
        Ok(existed)
    }

    /// Two round trips for each run of batches: what there is of the thread, then the batches themselves.
    pub(super) async fn read_thread_page(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
        after: After,
        bounds: Bounds,
    ) -> Result<Option<ThreadPage>, Error> {
        let began = Instant::now();
        let mut pipeline = redis::pipe();
        pipeline.cmd("HMGET").arg(Key::Meta(stream, partition).to_string()).arg(&["e", "f"]);
        pipeline.cmd("HMGET").arg(Key::Thread(stream, partition, name).to_string()).arg(&["e", "w"]);
        pipeline.cmd("GET").arg(Key::Index(stream, partition, name).to_string());
        pipeline.cmd("XRANGE").arg(Key::Log(stream, partition).to_string()).arg(&["-", "+", "COUNT", "1"]);
        type Fields = Vec<Option<Bytes>>;
        type Entries = Vec<(String, Hash)>;
        let answer: (Fields, Fields, Option<Bytes>, Entries) = self.ask_all(&pipeline).await?;
        let (meta, thread, index, oldest) = answer;
        let field = |fields: &Fields, at: usize| fields.get(at).cloned().flatten().unwrap_or_default();
        let Some(epoch) = parse_epoch(as_text(&field(&meta, 0))?)? else { return Ok(None) };
        if parse_epoch(as_text(&field(&thread, 0))?)? != Some(epoch) {
            return Ok(None);
        }
        if matches!(after, After::Offset { epoch: asked, .. } if asked != epoch) {
            return Ok(None);
        }
        let oldest = oldest.into_iter().next().and_then(|(_, mut entry)| entry.remove("d"));
        let oldest = oldest.map(stored::decode).transpose()?;
        let entries = IndexEntry::read_all(&index.unwrap_or_default());
        let (batches, gone) = plan(&entries, oldest.as_ref().map(Span::last), after);
        let whole = field(&thread, 1);
        let whole_state = if gone && !whole.is_empty() {
            let oldest = oldest.as_ref().map(Span::first);
            stand_in(&stored::decode(whole)?, oldest, &name.id(), after)?
        } else {
            None
        };
        let (trimmed, records) = (gone, Vec::new());
        let mut page = ThreadPage { partition, epoch, trimmed, whole_state, records, at_end: true };
        self.fill(stream, &mut page, &batches, (&name.id(), after), (bounds, began)).await?;
        Ok(Some(page))
    }

    /// Adds the thread's records of these batches, until there are enough.
    async fn fill(
        &self,
        stream: &Stream,
        page: &mut ThreadPage,
        batches: &[Offset],
        (thread_id, after): (&str, After),
        (bounds, began): (Bounds, Instant),
    ) -> Result<(), Error> {
        let (mut filling, mut rest) = (Filling::new(bounds), batches);
        while !rest.is_empty() && filling.goes_on(began.elapsed()) {
            let (names, later) = rest.split_at(filling.next_batches().min(rest.len()));
            let found = self.batches(stream, page.partition, names, &mut filling).await?;
            for (at, batch) in found.into_iter().enumerate() {
                let is_last = later.is_empty() && at + 1 == names.len();
                match batch.filter(|batch| batch.epoch == page.epoch.get()) {
                    Some(batch) => {
                        if page.add(&batch, thread_id, after, is_last, &mut filling)? {
                            return Ok(());
                        }
                    }
                    // It went between two round trips.
                    None if page.records.is_empty() => (page.trimmed, page.at_end) = (true, is_last),
                    // The next page tells that, and from where on.
                    None => {
                        page.at_end = false;
                        return Ok(());
                    }
                }
            }
            rest = later;
        }
        Ok(())
    }

    async fn batches(
        &self,
        stream: &Stream,
        partition: Partition,
        last_offsets: &[Offset],
        filling: &mut Filling,
    ) -> Result<Vec<Option<Batch>>, Error> {
        let mut pipeline = redis::pipe();
        let log = Key::Log(stream, partition).to_string();
        for last in last_offsets {
            let id = format!("{}-0", last.get() + 1);
            pipeline.cmd("XRANGE").arg(&log).arg(&id).arg(&id);
        }
        let found: Vec<Vec<(String, Hash)>> = self.ask_all(&pipeline).await?;
        let one = |entries: Vec<(String, Hash)>| {
            let stored = entries.into_iter().next().and_then(|(_, mut entry)| entry.remove("d"));
            filling.fetched(stored.as_ref().map_or(0, Bytes::len) as u64);
            stored.map(stored::decode).transpose()
        };
        found.into_iter().map(one).collect()
    }
}

fn place((name, active_ms): (String, f64)) -> Option<ListPlace> {
    Some(ListPlace { active_ms: active_ms as i64, name: ThreadName::parse(&name).ok()? })
}

fn is_below(place: &ListPlace, below: Option<&ListPlace>) -> bool {
    below.is_none_or(|below| (place.active_ms, &place.name) < (below.active_ms, &below.name))
}

/// A thread of the partition's epoch; `None` for one that is gone or of an earlier life.
fn summary(
    partition: Partition,
    name: &ThreadName,
    hash: &Hash,
    epoch: Option<Epoch>,
) -> Result<Option<Summary>, Error> {
    let field = |name: &str| hash.get(name).map(as_text).transpose().map(Option::unwrap_or_default);
    let number = |name: &str| Ok::<_, Error>(field(name)?.parse::<i64>().unwrap_or(0));
    let Some(epoch) = epoch else { return Ok(None) };
    if parse_epoch(field("e")?)? != Some(epoch) {
        return Ok(None);
    }
    let last: Link = parse_link(field("o")?)?;
    Ok(Some(Summary {
        name: name.clone(),
        partition,
        epoch,
        tenant_id: field("tenant")?.to_owned(),
        status: RunStatus::try_from(number("status")? as i32).unwrap_or_default(),
        graph_name: field("graph")?.to_owned(),
        first_time_ms: number("first")?,
        last_time_ms: number("last")?,
        last: last.ok_or_else(|| Error::Corrupt(format!("a thread without a record: {}", text(last))))?,
        records: number("n")? as u64,
        errors: number("errors")? as u64,
        tokens: number("tokens")? as u64,
        cost: field("cost")?.parse().unwrap_or(0.0),
        whole_state: parse_link(field("wo")?)?,
    }))
}
