//! Threads over all partitions: where one is, and the list of all, newest first.
use crate::{
    error::Error,
    keys::{Stream, ThreadName},
    store::{ListPlace, Store},
    threads::Summary,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use dashstream_core::position::{Offset, Partition};
use dashstream_proto::{
    log::v1::Cursor,
    replay::v1::{ListThreadsRequest, ListThreadsResponse, Thread},
};
use futures_util::future::try_join_all;
use std::cmp::Reverse;

const PAGE_SIZE_DEFAULT: u32 = 50;
const PAGE_SIZE_MAX: u32 = 500;
/// Threads looked at for one page; beyond it the page comes short, with a token to go on.
const LOOKED_AT_MAX: usize = 5_000;

/// Whose threads are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked(Vec<String>);

impl Asked {
    /// As requests have it: one tenant, or several, or anybody's.
    pub(crate) fn new(tenant_id: &str, tenant_ids: &[String]) -> Self {
        let one = Some(tenant_id.to_owned()).filter(|id| !id.is_empty());
        Self(one.into_iter().chain(tenant_ids.iter().cloned()).collect())
    }

    pub(crate) fn allow(&self, tenant_id: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|asked| asked == tenant_id)
    }
}

/// The partition that carries a thread; of several, the one with its newest record.
///
/// # Errors
/// When the store fails, or the thread is unknown.
pub(crate) async fn find<S: Store>(
    store: &S,
    stream: &Stream,
    name: &ThreadName,
    tenants: &Asked,
) -> Result<Summary, Error> {
    let partitions = store.partitions(stream).await?;
    let asked = partitions.into_iter().map(|partition| store.describe_thread(stream, partition, name));
    let found = try_join_all(asked).await?.into_iter().flatten();
    let ours = found.filter(|summary| tenants.allow(&summary.tenant_id));
    ours.max_by_key(|summary| (summary.last_time_ms, summary.last))
        .ok_or_else(|| Error::NoThread(name.id().chars().take(64).collect()))
}

/// A page of the list.
///
/// # Errors
/// When the store fails, or the token is none of ours.
pub(crate) async fn list<S: Store>(
    store: &S,
    stream: &Stream,
    request: &ListThreadsRequest,
) -> Result<ListThreadsResponse, Error> {
    let size = match request.page_size {
        0 => PAGE_SIZE_DEFAULT,
        asked => asked.min(PAGE_SIZE_MAX),
    } as usize;
    let mut after = Token::parse(&request.page_token)?;
    let (mut threads, mut looked_at) = (Vec::new(), 0);
    let partitions = store.partitions(stream).await?;
    loop {
        let places = next_places(store, stream, &partitions, after.as_ref(), size).await?;
        let exhausted = places.len() < size;
        for (partition, place, summary) in places {
            if place.active_ms < request.active_since_ms {
                return Ok(ListThreadsResponse { threads, next_page_token: String::new() });
            }
            looked_at += 1;
            after = Some(Token { active_ms: place.active_ms, partition, name: place.name });
            if matches(&summary, request) {
                threads.push(thread(summary));
                if threads.len() == size {
                    let next_page_token = after.map(|token| token.text()).unwrap_or_default();
                    return Ok(ListThreadsResponse { threads, next_page_token });
                }
            }
        }
        if exhausted || looked_at >= LOOKED_AT_MAX {
            let more = after.filter(|_| !exhausted);
            return Ok(ListThreadsResponse {
                threads,
                next_page_token: more.map(|token| token.text()).unwrap_or_default(),
            });
        }
    }
}

/// The next threads behind a place, over all partitions: by activity, then partition, then name.
async fn next_places<S: Store>(
    store: &S,
    stream: &Stream,
    partitions: &[Partition],
    after: Option<&Token>,
    limit: usize,
) -> Result<Vec<(Partition, ListPlace, Summary)>, Error> {
    let of = async |partition: Partition| {
        let below = after.map(|token| token.below(partition));
        let below = match below {
            None => None,
            Some(below) => Some(below?),
        };
        let listed = store.list_threads(stream, partition, below.as_ref(), limit).await?;
        Ok::<_, Error>(listed.into_iter().map(move |(place, summary)| (partition, place, summary)))
    };
    let all = try_join_all(partitions.iter().map(|partition| of(*partition))).await?;
    let mut places: Vec<_> = all.into_iter().flatten().collect();
    places.sort_by_cached_key(|(partition, place, _)| {
        (Reverse(place.active_ms), *partition, Reverse(place.name.clone()))
    });
    places.truncate(limit);
    Ok(places)
}

fn matches(summary: &Summary, request: &ListThreadsRequest) -> bool {
    let status = i32::from(summary.status);
    (request.tenant_ids.is_empty() || request.tenant_ids.contains(&summary.tenant_id))
        && (request.statuses.is_empty() || request.statuses.contains(&status))
        && (request.graph_name.is_empty() || request.graph_name == summary.graph_name)
}

/// As clients are told.
pub(crate) fn thread(summary: Summary) -> Thread {
    let cursor = |offset: Offset| Cursor {
        epoch: summary.epoch.get(),
        partition: summary.partition.get(),
        offset: Some(offset.get()),
    };
    Thread {
        thread_id: summary.name.id(),
        last: Some(cursor(summary.last)),
        whole_state: summary.whole_state.map(cursor),
        tenant_id: summary.tenant_id,
        partition: summary.partition.get(),
        status: summary.status.into(),
        graph_name: summary.graph_name,
        first_time_ms: summary.first_time_ms,
        last_time_ms: summary.last_time_ms,
        records: summary.records,
        errors: summary.errors,
        tokens: summary.tokens,
        cost: summary.cost,
    }
}

/// The last thread of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    active_ms: i64,
    partition: Partition,
    name: ThreadName,
}

impl Token {
    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{} {} {}", self.active_ms, self.partition, self.name.as_str()))
    }

    fn parse(text: &str) -> Result<Option<Self>, Error> {
        if text.is_empty() {
            return Ok(None);
        }
        let read = || {
            let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
            let mut parts = decoded.splitn(3, ' ');
            Some(Self {
                active_ms: parts.next()?.parse().ok()?,
                partition: Partition::new(parts.next()?.parse().ok()?).ok()?,
                name: ThreadName::parse(parts.next()?).ok()?,
            })
        };
        read().map(Some).ok_or(Error::PageToken)
    }

    /// Where a partition goes on: threads of the same moment come by partition.
    fn below(&self, partition: Partition) -> Result<ListPlace, Error> {
        let active_ms = match partition.cmp(&self.partition) {
            // All of this moment came before.
            std::cmp::Ordering::Less => self.active_ms,
            std::cmp::Ordering::Equal => {
                return Ok(ListPlace { active_ms: self.active_ms, name: self.name.clone() });
            }
            // None of this moment came yet.
            std::cmp::Ordering::Greater => self.active_ms.saturating_add(1),
        };
        // The least name, so that nothing of the moment itself is below.
        Ok(ListPlace { active_ms, name: ThreadName::new("-")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_and_any_other_text_is_refused() {
        let token = Token {
            active_ms: 1_763_885_000_123,
            partition: Partition::new(7).unwrap(),
            name: ThreadName::new("a thread: größe").unwrap(),
        };
        assert_eq!(Token::parse(&token.text()).unwrap(), Some(token));
        assert_eq!(Token::parse("").unwrap(), None);
        for bad in ["x", "!!", "MSAy", &URL_SAFE_NO_PAD.encode("1 -2 a")] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }
}
