//! What a topic is, and what of it endangers records.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// A topic, as the brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub partitions: usize,
    /// Copies of a partition; of the one with the fewest.
    pub replication: usize,
    /// Copies that must have a record before it is acknowledged to a producer that asks for all.
    pub min_insync: usize,
    /// How long records are kept; `None` for ever.
    pub retention: Option<Duration>,
    /// What becomes of old records: `delete`, `compact` or both.
    pub cleanup: BTreeSet<String>,
    /// Largest batch of records, bytes.
    pub message_bytes_max: u64,
    /// Whether a replica that is behind may become leader, which loses what it does not have.
    pub unclean_election: bool,
    /// Settings of its own, which are not the brokers' defaults.
    pub own: BTreeMap<String, String>,
}

/// What endangers records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Concern {
    #[error("replication factor 1: a broker that is lost takes the only copy with it")]
    OneCopy,
    #[error(
        "min.insync.replicas=1: an acknowledged record may have one copy, and be lost with it; expected 2"
    )]
    OneInSync,
    #[error(
        "min.insync.replicas={min_insync} with replication factor {replication}: no acknowledged record can be written"
    )]
    Unwritable { min_insync: usize, replication: usize },
    #[error(
        "unclean.leader.election.enable=true: a leader that is behind loses acknowledged records; expected false"
    )]
    UncleanElection,
    #[error(
        "retention {} is shorter than replay's {}: a store that was emptied can't be refilled whole",
        humantime::format_duration(*kafka), humantime::format_duration(*replay)
    )]
    ShortRetention { kafka: Duration, replay: Duration },
    #[error("cleanup.policy has compact: records vanish from the middle of the log; expected delete")]
    Compaction,
}

/// A setting that a broker described in a way that is not understood, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} of the topic: expected {expected}, found {found}")]
pub struct Unclear {
    pub setting: &'static str,
    pub expected: &'static str,
    pub found: String,
}

impl Topic {
    /// Reads a topic off its settings: all of them, and those that are its own.
    ///
    /// # Errors
    /// When one is missing or is not what Kafka documents.
    pub fn read(
        name: &str,
        (partitions, replication): (usize, usize),
        settings: &BTreeMap<String, String>,
        own: BTreeMap<String, String>,
    ) -> Result<Self, Unclear> {
        let text = |setting| settings.get(setting).map(String::as_str);
        let number = |setting| {
            let found = text(setting).unwrap_or("nothing");
            found.parse::<i64>().map_err(|_| unclear(setting, "a number", found))
        };
        let flag = |setting| {
            let found = text(setting).unwrap_or("nothing");
            found.parse::<bool>().map_err(|_| unclear(setting, "true or false", found))
        };
        let cleanup = text("cleanup.policy").unwrap_or_default();
        Ok(Self {
            name: name.to_owned(),
            partitions,
            replication,
            min_insync: usize::try_from(number("min.insync.replicas")?).unwrap_or(0),
            // -1 is for ever.
            retention: u64::try_from(number("retention.ms")?).ok().map(Duration::from_millis),
            cleanup: cleanup.split(',').map(|policy| policy.trim().to_owned()).collect(),
            message_bytes_max: u64::try_from(number("max.message.bytes")?).unwrap_or(0),
            unclean_election: flag("unclean.leader.election.enable")?,
            own,
        })
    }

    /// What of it endangers records.
    pub fn concerns(&self) -> Vec<Concern> {
        let (replication, min_insync) = (self.replication, self.min_insync);
        [
            (replication == 1).then_some(Concern::OneCopy),
            (replication > 1 && min_insync <= 1).then_some(Concern::OneInSync),
            (min_insync > replication).then_some(Concern::Unwritable { min_insync, replication }),
            self.unclean_election.then_some(Concern::UncleanElection),
            self.cleanup.contains("compact").then_some(Concern::Compaction),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// That it keeps records for a shorter time than `replay`, if it does.
    pub fn falls_short_of(&self, replay: Duration) -> Option<Concern> {
        let kafka = self.retention.filter(|kafka| *kafka < replay)?;
        // By time nothing is deleted where records are only compacted.
        self.cleanup.contains("delete").then_some(Concern::ShortRetention { kafka, replay })
    }

    /// `cleanup.policy`, as Kafka writes it.
    pub fn cleanup_policy(&self) -> String {
        self.cleanup.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    }

    /// How long records are kept, for people.
    pub fn retention_text(&self) -> String {
        self.retention.map_or("for ever".into(), |age| humantime::format_duration(age).to_string())
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "partitions={} replication={} min.insync.replicas={} retention={} cleanup.policy={} \
             max.message.bytes={} unclean.leader.election={}",
            self.partitions,
            self.replication,
            self.min_insync,
            self.retention_text(),
            self.cleanup_policy(),
            self.message_bytes_max,
            self.unclean_election,
        )
    }
}

fn unclear(setting: &'static str, expected: &'static str, found: &str) -> Unclear {
    Unclear { setting, expected, found: found.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn settings(changed: &[(&str, &str)]) -> BTreeMap<String, String> {
        let usual = [
            ("min.insync.replicas", "2"),
            ("retention.ms", "604800000"),
            ("cleanup.policy", "delete"),
            ("max.message.bytes", "1048588"),
            ("unclean.leader.election.enable", "false"),
        ];
        let all = usual.iter().chain(changed);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn topic(replication: usize, changed: &[(&str, &str)]) -> Topic {
        Topic::read("runs", (8, replication), &settings(changed), BTreeMap::new()).unwrap()
    }

    #[test]
    fn what_endangers_records_is_named_and_nothing_else() {
        for (why, replication, changed, concerns) in [
            ("all is well", 3, vec![], vec![]),
            ("one copy", 1, vec![("min.insync.replicas", "1")], vec![Concern::OneCopy]),
            ("one in sync", 3, vec![("min.insync.replicas", "1")], vec![Concern::OneInSync]),
            (
                "more in sync than there are",
                2,
                vec![("min.insync.replicas", "3")],
                vec![Concern::Unwritable { min_insync: 3, replication: 2 }],
            ),
            (
                "elections lose records",
                3,
                vec![("unclean.leader.election.enable", "true")],
                vec![Concern::UncleanElection],
            ),
            ("compaction", 3, vec![("cleanup.policy", "compact")], vec![Concern::Compaction]),
            ("both", 3, vec![("cleanup.policy", "compact, delete")], vec![Concern::Compaction]),
        ] {
            assert_eq!(topic(replication, &changed).concerns(), concerns, "{why}");
        }
    }

    #[test]
    fn a_retention_is_too_short_when_it_deletes_what_replay_still_has() {
        let kafka = Duration::from_millis(3_599_999);
        for (why, changed, concern) in [
            ("a moment less", vec![("retention.ms", "3599999")], true),
            ("just as long", vec![("retention.ms", "3600000")], false),
            ("for ever", vec![("retention.ms", "-1")], false),
            ("never by time", vec![("retention.ms", "3599999"), ("cleanup.policy", "compact")], false),
        ] {
            let expected = concern.then_some(Concern::ShortRetention { kafka, replay: HOUR });
            assert_eq!(topic(3, &changed).falls_short_of(HOUR), expected, "{why}");
        }
    }

    #[test]
    fn a_setting_that_is_not_understood_is_named() {
        for (name, value, expected) in [
            ("retention.ms", "a week", "retention.ms of the topic: expected a number, found a week"),
            ("unclean.leader.election.enable", "no", "expected true or false, found no"),
        ] {
            let read = Topic::read("runs", (8, 3), &settings(&[(name, value)]), BTreeMap::new());
            let error = read.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
