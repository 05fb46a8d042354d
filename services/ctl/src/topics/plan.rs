//! What has to be done to a topic, from what it is and what was asked for.
use dashstream_kafka::Topic;
use std::{collections::BTreeMap, time::Duration};

/// What was asked for. What was not is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub name: String,
    pub partitions: Option<usize>,
    pub replication: Option<usize>,
    pub min_insync: Option<usize>,
    pub retention: Option<Duration>,
}

/// What a new topic is where nothing else was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    pub partitions: usize,
    pub replication: usize,
    pub min_insync: usize,
    pub retention: Duration,
    /// Its further settings, by Kafka's names.
    pub settings: &'static [(&'static str, &'static str)],
}

/// What has to be done to one topic, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    pub step: Step,
    rows: Vec<Row>,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    Create {
        partitions: usize,
        replication: usize,
        settings: BTreeMap<String, String>,
    },
    Change {
        /// Partitions that there are to be.
        grow_to: Option<usize>,
        /// All settings of its own that it is to have.
        own: Option<BTreeMap<String, String>>,
    },
}

/// What became of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Would,
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    setting: &'static str,
    is: String,
    asked: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    NotAsked,
    Create,
    Change,
    /// Partitions come, and keys are spread anew.
    Grow,
    Refuse(&'static str),
}

impl Plan {
    /// Compares `is`, which is `None` where there is no such topic, with what was asked for.
    pub fn new(is: Option<&Topic>, asked: &Asked, defaults: &Defaults) -> Self {
        match is {
            Some(topic) => Self::change(topic, asked),
            None => Self::create(asked, defaults),
        }
    }

    fn create(asked: &Asked, defaults: &Defaults) -> Self {
        let partitions = asked.partitions.unwrap_or(defaults.partitions);
        let replication = asked.replication.unwrap_or(defaults.replication);
        let min_insync = asked.min_insync.unwrap_or(defaults.min_insync);
        let retention = asked.retention.unwrap_or(defaults.retention);
        let row = |setting, asked| Row { setting, is: "-".into(), asked, verdict: Verdict::Create };
        let mut rows = vec![
            row("partitions", partitions.to_string()),
            row("replication.factor", replication.to_string()),
            Row {
                verdict: if_writable(min_insync, replication, Verdict::Create),
                ..row(MIN_INSYNC, min_insync.to_string())
            },
            row(RETENTION, age(Some(retention))),
        ];
        rows.extend(defaults.settings.iter().map(|(name, value)| row(name, (*value).to_owned())));
        let fixed = defaults.settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = fixed.chain([insync_setting(min_insync), retention_setting(retention)]).collect();
        Self { name: asked.name.clone(), step: Step::Create { partitions, replication, settings }, rows }
    }

    fn change(topic: &Topic, asked: &Asked) -> Self {
        let partitions = compare(topic.partitions, asked.partitions, |is, asked| {
            if asked > is { Verdict::Grow } else { Verdict::Refuse("partitions can't be taken away") }
        });
        let replication = compare(topic.replication, asked.replication, |_, _| {
            Verdict::Refuse("copies are moved by kafka-reassign-partitions")
        });
        let min_insync = compare(topic.min_insync, asked.min_insync, |_, asked| {
            if_writable(asked, topic.replication, Verdict::Change)
        });
        let retention = compare(topic.retention, asked.retention.map(Some), |_, _| Verdict::Change);
        let mut own = topic.own.clone();
        own.extend(asked.min_insync.filter(|_| min_insync == Verdict::Change).map(insync_setting));
        own.extend(asked.retention.filter(|_| retention == Verdict::Change).map(retention_setting));
        let own = Some(own).filter(|own| *own != topic.own);
        let grow_to = asked.partitions.filter(|_| partitions == Verdict::Grow);
        let rows = vec![
            row("partitions", topic.partitions, asked.partitions, partitions),
            row("replication.factor", topic.replication, asked.replication, replication),
            row(MIN_INSYNC, topic.min_insync, asked.min_insync, min_insync),
            Row {
                setting: RETENTION,
                is: age(topic.retention),
                asked: asked.retention.map_or("-".into(), |asked| age(Some(asked))),
                verdict: retention,
            },
        ];
        let step = match (grow_to, own) {
            (None, None) => Step::Nothing,
            (grow_to, own) => Step::Change { grow_to, own },
        };
        Self { name: topic.name.clone(), step, rows }
    }

    /// Whether something that was asked for can't be done.
    pub fn is_refused(&self) -> bool {
        self.rows.iter().any(|row| matches!(row.verdict, Verdict::Refuse(_)))
    }

    /// What is, what was asked for, and what became of it.
    pub fn table(&self, outcome: Outcome) -> String {
        let mut text = format!("{}\n  {:<31} {:<15} {:<15} DONE\n", self.name, "SETTING", "IS", "ASKED");
        for Row { setting, is, asked, verdict } in &self.rows {
            text.push_str(&format!("  {setting:<31} {is:<15} {asked:<15} {}\n", verdict.text(outcome)));
        }
        text
    }
}

impl Verdict {
    fn text(self, outcome: Outcome) -> String {
        let act = match self {
            Self::Same => return "as asked".into(),
            Self::NotAsked => return "left as it is".into(),
            Self::Refuse(why) => return format!("REFUSED: {why}"),
            Self::Create => "made",
            Self::Change => "changed",
            Self::Grow => "added: threads that go on may move to another partition",
        };
        match outcome {
            Outcome::Done => act.to_owned(),
            Outcome::Would => format!("would be {act}"),
            Outcome::Refused => format!("not {act}"),
        }
    }
}

const MIN_INSYNC: &str = "min.insync.replicas";
const RETENTION: &str = "retention.ms";

/// Nothing could be written that waits for more copies than there are.
fn if_writable(min_insync: usize, replication: usize, verdict: Verdict) -> Verdict {
    if min_insync > replication { Verdict::Refuse("more than there are copies") } else { verdict }
}

fn compare<T: PartialEq + Copy>(is: T, asked: Option<T>, otherwise: impl FnOnce(T, T) -> Verdict) -> Verdict {
    match asked {
        None => Verdict::NotAsked,
        Some(asked) if asked == is => Verdict::Same,
        Some(asked) => otherwise(is, asked),
    }
}

fn row(setting: &'static str, is: usize, asked: Option<usize>, verdict: Verdict) -> Row {
    let asked = asked.map_or("-".into(), |asked| asked.to_string());
    Row { setting, is: is.to_string(), asked, verdict }
}

fn age(age: Option<Duration>) -> String {
    age.map_or("for ever".into(), |age| humantime::format_duration(age).to_string())
}

fn insync_setting(min_insync: usize) -> (String, String) {
    (MIN_INSYNC.to_owned(), min_insync.to_string())
}

fn retention_setting(retention: Duration) -> (String, String) {
    (RETENTION.to_owned(), retention.as_millis().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults {
        partitions: 10,
        replication: 3,
        min_insync: 2,
        retention: Duration::from_secs(604_800),
        settings: &[("cleanup.policy", "delete")],
    };

    fn nothing_asked() -> Asked {
        Asked { name: "runs".into(), partitions: None, replication: None, min_insync: None, retention: None }
    }

    fn topic() -> Topic {
        Topic {
            name: "runs".into(),
            partitions: 8,
            replication: 3,
            min_insync: 2,
            retention: Some(Duration::from_secs(3600)),
            cleanup: ["delete".to_owned()].into(),
            message_bytes_max: 1_048_588,
            unclean_election: false,
            own: [("retention.ms".to_owned(), "3600000".to_owned()), ("x".to_owned(), "y".to_owned())].into(),
        }
    }

    #[test]
    fn a_new_topic_is_as_asked_and_otherwise_as_by_default() {
        let asked = Asked { partitions: Some(4), ..nothing_asked() };
        let plan = Plan::new(None, &asked, &DEFAULTS);
        let settings =
            [("cleanup.policy", "delete"), ("min.insync.replicas", "2"), ("retention.ms", "604800000")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(plan.step, Step::Create { partitions: 4, replication: 3, settings });
        assert!(plan.table(Outcome::Would).contains("would be made"), "{plan:?}");
    }

    #[test]
    fn only_what_was_asked_for_is_changed_and_settings_of_others_stay() {
        assert_eq!(Plan::new(Some(&topic()), &nothing_asked(), &DEFAULTS).step, Step::Nothing);
        let hour = Some(Duration::from_secs(3600));
        let same = Asked { partitions: Some(8), min_insync: Some(2), retention: hour, ..nothing_asked() };
        assert_eq!(Plan::new(Some(&topic()), &same, &DEFAULTS).step, Step::Nothing);
        let asked = Asked { partitions: Some(9), min_insync: Some(3), ..nothing_asked() };
        let own = [("min.insync.replicas", "3"), ("retention.ms", "3600000"), ("x", "y")];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let plan = Plan::new(Some(&topic()), &asked, &DEFAULTS);
        assert_eq!(plan.step, Step::Change { grow_to: Some(9), own: Some(own) });
        assert!(plan.table(Outcome::Done).contains("added: threads that go on may move"), "{plan:?}");
    }

    #[test]
    fn what_can_not_be_changed_is_refused_by_name() {
        for (is, asked, expected) in [
            (Some(topic()), Asked { partitions: Some(7), ..nothing_asked() }, "can't be taken away"),
            (Some(topic()), Asked { replication: Some(2), ..nothing_asked() }, "kafka-reassign-partitions"),
            (Some(topic()), Asked { min_insync: Some(4), ..nothing_asked() }, "more than there are copies"),
            (None, Asked { replication: Some(1), ..nothing_asked() }, "more than there are copies"),
        ] {
            let plan = Plan::new(is.as_ref(), &asked, &DEFAULTS);
            let table = plan.table(Outcome::Refused);
            assert!(plan.is_refused() && table.contains(expected), "{table}");
        }
    }
}
