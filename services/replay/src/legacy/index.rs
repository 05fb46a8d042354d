//! Exact ranges of an index whose scores are not.
//!
//! The conversion to a double keeps order, but neighbours can get the same score, and among those Redis orders
//! by the bytes of the key: 10000000000000000 before 9999999999999999. So a range of scores that includes both
//! bounds holds all members between them, and the exact ones are picked by the number in the key.
use super::{names::names, uses::Family};
use crate::store::Error;
use bytes::Bytes;
use dashstream_core::position::Partition;
use redis::Cmd;

/// Scores below this are exact.
const EXACT: f64 = (1_u64 << 53) as f64;
/// Most members that are asked for at once. Never more than about 2050 share a score.
const LIMIT_MAX: usize = 1 << 16;

/// A sorted set of keys of rows.
#[derive(Clone, Debug)]
pub(super) struct Index {
    key: String,
    family: Family,
}

/// The key of a row, and the offset or sequence that it ends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) at: u64,
    pub(super) family: Family,
    pub(super) key: Bytes,
}

/// A part of a range: the members behind `after` and before `before`, up to about `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    after: Option<u64>,
    before: Option<u64>,
    count: usize,
    /// How many times more than should be needed is asked for.
    widened: usize,
}

/// What is in a window, in order.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) members: Vec<Member>,
    /// The rest of the range; `None` at its end.
    pub(super) next: Option<Window>,
}

impl Index {
    pub(super) fn of_partition(prefix: &str, partition: Partition) -> Self {
        Self { key: format!("{prefix}:partition:{partition}:offsets"), family: Family::Partition }
    }

    /// One for each name that the rows of a bounded thread id can have.
    pub(super) fn of_thread(prefix: &str, thread: &str) -> Vec<Self> {
        let names = names(thread).into_iter();
        let indexes = names.map(|(form, name)| Self {
            key: format!("{prefix}:thread:{name}:sequences"),
            family: Family::Thread(form),
        });
        indexes.collect()
    }

    /// `None` when it is not the key of a row.
    fn member(&self, key: Bytes) -> Option<Member> {
        let marker: &[u8] = match self.family {
            Family::Partition => b":offset:",
            Family::Thread(_) => b":seq:",
        };
        let digits = key.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (head, number) = key.split_at(key.len() - digits);
        let at = std::str::from_utf8(number).ok().filter(|_| head.ends_with(marker))?.parse().ok()?;
        Some(Member { at, family: self.family, key })
    }
}

impl Window {
    pub(super) fn new(after: Option<u64>, before: Option<u64>, count: usize) -> Self {
        Self { after, before, count, widened: 1 }
    }

    /// Enough to have `count` members behind all those that share the score of `after`.
    fn limit(&self) -> usize {
        (self.count + self.after.map_or(0, ties)) * self.widened
    }

    pub(super) fn command(&self, index: &Index) -> Cmd {
        let bound =
            |at: Option<u64>, none: &str| at.map_or_else(|| none.into(), |at| (at as f64).to_string());
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(&index.key).arg(bound(self.after, "-inf")).arg(bound(self.before, "+inf"));
        command.arg("LIMIT").arg(0).arg(self.limit());
        command
    }

    /// Merges what Redis answered to [`Window::command`] for each of `indexes`.
    ///
    /// # Errors
    /// When an index holds so many members which are not keys of rows that it can't be read.
    pub(super) fn slice(self, indexes: &[Index], answers: Vec<Vec<Bytes>>) -> Result<Slice, Error> {
        let mut members = Vec::new();
        // Where an answer was cut: up to where all are complete.
        let mut reached: Option<Option<u64>> = None;
        for (index, answer) in indexes.iter().zip(answers) {
            let is_cut = answer.len() >= self.limit();
            let mut found: Vec<_> = answer.into_iter().filter_map(|key| index.member(key)).collect();
            if is_cut {
                drop_last_tie(&mut found);
                let here = found.iter().map(|member| member.at).max().max(self.after);
                reached = Some(reached.map_or(here, |reached| reached.min(here)));
            }
            members.append(&mut found);
        }
        members.retain(|member| {
            let is_beyond = self.before.is_some_and(|before| member.at >= before)
                || reached.is_some_and(|reached| Some(member.at) > reached);
            Some(member.at) > self.after && !is_beyond
        });
        members.sort_by_key(|member| member.at);
        if let Some(last) = members.get(self.count.saturating_sub(1)).map(|member| member.at) {
            if members.last().is_some_and(|member| member.at > last) {
                reached = Some(Some(last));
            }
            members.retain(|member| member.at <= last);
        }
        Ok(Slice { next: self.next(reached)?, members })
    }

    fn next(self, reached: Option<Option<u64>>) -> Result<Option<Self>, Error> {
        let Some(reached) = reached else { return Ok(None) };
        let following = reached.map_or(0, |reached| reached.saturating_add(1));
        if self.before.is_some_and(|before| following >= before) {
            return Ok(None);
        }
        if reached > self.after {
            return Ok(Some(Self { after: reached, widened: 1, ..self }));
        }
        if self.limit() > LIMIT_MAX {
            return Err(Error::Corrupt("an index of the predecessor holds no keys of rows".into()));
        }
        Ok(Some(Self { widened: self.widened * 4, ..self }))
    }
}

/// How many numbers can have the score of `at`, or more.
fn ties(at: u64) -> usize {
    let bits = u64::BITS - at.leading_zeros();
    2 << bits.saturating_sub(f64::MANTISSA_DIGITS)
}

/// Takes away the members that share the last score, of which some may not have been answered.
fn drop_last_tie(members: &mut Vec<Member>) {
    let score = |member: &Member| member.at as f64;
    let last = members.iter().map(score).fold(0.0, f64::max);
    if last >= EXACT {
        members.retain(|member| score(member) < last);
    }
}

#[cfg(test)]
mod tests;
