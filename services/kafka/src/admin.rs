//! Topics, asked for and changed.
use crate::{
    Trouble,
    connection::{self, Connection},
    topic::{Topic, Unclear},
};
use rdkafka::{
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::Metadata,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How long one question to the brokers may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often, and how many times, a new topic is looked for.
const LOOK_PACE: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 100;

/// Most events that a complaint is looked for among.
const EVENTS_MAX: usize = 1_000;

/// Asks for topics and changes them. Dropping it blocks for up to a tenth of a second.
pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    /// Asks for metadata, since a consumer never makes a topic by asking for it; and hears why nobody answers.
    asker: Arc<BaseConsumer<Trouble>>,
}

/// Why a topic could not be asked for or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Settings(#[from] connection::Error),
    #[error("ask Kafka: {0}")]
    Unanswered(String),
    #[error("{what} {topic}: {code}")]
    Refused { what: &'static str, topic: String, code: RDKafkaErrorCode },
    #[error("{0} was made, but the brokers do not tell of it yet")]
    NotSeen(String),
    #[error(transparent)]
    Unclear(#[from] Unclear),
}

/// What a new topic is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct New<'a> {
    pub name: &'a str,
    pub partitions: usize,
    pub replication: usize,
    /// Settings of its own, by Kafka's names.
    pub settings: &'a BTreeMap<String, String>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// A client that calls itself `client_id`. Does not wait for a connection.
    ///
    /// # Errors
    /// When a setting is wrong.
    pub fn new(connection: &Connection, client_id: &str) -> Result<Self, Error> {
        let config = connection.client_config(client_id, &[])?;
        let asker = config.create_with_context(Trouble::default()).map_err(connection::Error::from)?;
        let client = config.create().map_err(connection::Error::from)?;
        Ok(Self { client, asker: Arc::new(asker) })
    }

    /// A topic as it is; `None` where there is none of this name, or none that we may see.
    ///
    /// # Errors
    /// When no broker answers, or the topic's settings may not be read.
    pub async fn topic(&self, name: &str) -> Result<Option<Topic>, Error> {
        let metadata = self.metadata().await?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(None);
        };
        let replication = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
        let size = (topic.partitions().len(), replication.unwrap_or(0));
        let (settings, own) = self.settings(name).await?;
        Ok(Some(Topic::read(name, size, &settings, own)?))
    }

    /// All topics, rather than one by its name: a broker may make a topic that is asked for.
    async fn metadata(&self) -> Result<Metadata, Error> {
        let asker = Arc::clone(&self.asker);
        let asked = tokio::task::spawn_blocking(move || {
            asker.fetch_metadata(None, QUERY_TIMEOUT).map_err(|error| {
                // Complaints are heard only when it is polled, among other events; it has no records.
                for _ in 0..EVENTS_MAX {
                    if asker.context().last().is_some() {
                        break;
                    }
                    drop(asker.poll(Duration::ZERO));
                }
                asker.context().explain(&error)
            })
        });
        asked.await.map_err(|error| Error::Unanswered(error.to_string()))?.map_err(Error::Unanswered)
    }

    /// All settings of a topic, and those that are its own.
    async fn settings(&self, name: &str) -> Result<(Settings, Settings), Error> {
        let (topic, options) = (ResourceSpecifier::Topic(name), options());
        let answered = self.client.describe_configs([&topic], &options).await.map_err(unanswered)?;
        let answered = answered.into_iter().map(|answer| answer.map_err(|code| (name.to_owned(), code)));
        let described = only("describe", name, answered)?;
        let (mut all, mut own) = (BTreeMap::new(), BTreeMap::new());
        for entry in described.into_iter().flat_map(|resource| resource.entries) {
            let Some(value) = entry.value else { continue };
            if entry.source == ConfigSource::DynamicTopic {
                own.insert(entry.name.clone(), value.clone());
            }
            all.insert(entry.name, value);
        }
        Ok((all, own))
    }

    /// Makes a topic, and waits until it can be asked for; with `only_check` the brokers say whether they would.
    ///
    /// # Errors
    /// When no broker answers, it is refused, or it is not seen within about 5 s.
    pub async fn create(&self, new: &New<'_>, only_check: bool) -> Result<(), Error> {
        let copies = TopicReplication::Fixed(i32::try_from(new.replication).unwrap_or(i32::MAX));
        let partitions = i32::try_from(new.partitions).unwrap_or(i32::MAX);
        let topic = NewTopic::new(new.name, partitions, copies);
        let topic = new.settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
        let options = options().validate_only(only_check);
        let answered = self.client.create_topics([&topic], &options).await.map_err(unanswered)?;
        only("create", new.name, answered)?;
        if only_check { Ok(()) } else { self.seen(new.name).await }
    }

    /// Waits until the brokers tell of a topic, which they do a moment after they have made it.
    async fn seen(&self, name: &str) -> Result<(), Error> {
        for _ in 0..LOOKS_MAX {
            if self.metadata().await?.topics().iter().any(|topic| topic.name() == name) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_PACE).await;
        }
        Err(Error::NotSeen(name.to_owned()))
    }

    /// Adds partitions until there are `count`.
    ///
    /// # Errors
    /// When no broker answers, or it is refused.
    pub async fn grow(&self, name: &str, count: usize) -> Result<(), Error> {
        let partitions = NewPartitions::new(name, count);
        let answered = self.client.create_partitions([&partitions], &options()).await.map_err(unanswered)?;
        only("add partitions to", name, answered).map(drop)
    }

    /// Gives a topic exactly these settings of its own; the others fall back to the brokers' defaults.
    ///
    /// # Errors
    /// When no broker answers, or it is refused.
    pub async fn set_own(&self, name: &str, own: &BTreeMap<String, String>) -> Result<(), Error> {
        let resource = AlterConfig::new(ResourceSpecifier::Topic(name));
        let resource = own.iter().fold(resource, |resource, (name, value)| resource.set(name, value));
        let answered = self.client.alter_configs([&resource], &options()).await.map_err(unanswered)?;
        let answered = answered.into_iter().map(|answer| answer.map_err(|(_, code)| (name.to_owned(), code)));
        only("set", name, answered).map(drop)
    }
}

type Settings = BTreeMap<String, String>;

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(QUERY_TIMEOUT)).request_timeout(Some(QUERY_TIMEOUT))
}

fn unanswered(error: KafkaError) -> Error {
    Error::Unanswered(error.to_string())
}

/// The answer for the one topic that was asked about.
fn only<T>(
    what: &'static str,
    topic: &str,
    answers: impl IntoIterator<Item = Result<T, (String, RDKafkaErrorCode)>>,
) -> Result<Option<T>, Error> {
    answers.into_iter().next().transpose().map_err(|(_, code)| Error::Refused {
        what,
        topic: topic.to_owned(),
        code,
    })
}
