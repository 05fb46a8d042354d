//! The whole system: a topic, a Redis and any number of each service, wired as in production.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::{Kafka, Kind, Proxy, Redis, Service};

/// How large a [`Stack`] is, and what is special about it.
#[derive(Clone, Debug)]
pub struct Shape {
    pub partitions: i32,
    pub ingest: usize,
    pub replay: usize,
    pub gateway: usize,
    pub links: Links,
    /// Topic settings, such as `("retention.ms", "1000")`.
    pub topic: Vec<(&'static str, &'static str)>,
    /// There is a topic for dead letters.
    pub dead_letters: bool,
    /// Arguments of the Redis server.
    pub redis: Vec<&'static str>,
    /// Settings in addition to the wiring, or instead of it.
    pub settings: Vec<(Kind, &'static str, String)>,
    /// Settings of one replica each, by its number from 0.
    pub replica_settings: Vec<(Kind, usize, &'static str, String)>,
}

/// How the parts reach one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Straight.
    Direct,
    /// Through a [`Proxy`] in front of Redis, of each replay and of each ingest.
    Proxied,
}

impl Default for Shape {
    /// One of each, four partitions, nothing special.
    fn default() -> Self {
        Self {
            partitions: 4,
            ingest: 1,
            replay: 1,
            gateway: 1,
            links: Links::Direct,
            topic: Vec::new(),
            dead_letters: true,
            redis: Vec::new(),
            settings: Vec::new(),
            replica_settings: Vec::new(),
        }
    }
}

/// A running system, on the shared broker but with a topic, a group and a Redis of its own.
#[derive(Debug)]
pub struct Stack {
    // Dropped in this order: those who ask before those who answer.
    pub gateway: Vec<Service>,
    pub ingest: Vec<Service>,
    pub replay: Vec<Service>,
    /// The links, when they are [`Links::Proxied`]: to Redis, to each replay, to each ingest.
    pub to_redis: Option<Proxy>,
    pub to_replay: Vec<Proxy>,
    pub to_ingest: Vec<Proxy>,
    pub redis: Redis,
    pub kafka: Arc<Kafka>,
    pub topic: String,
}

impl Stack {
    /// Starts everything and waits until every service is ready.
    ///
    /// # Panics
    /// If anything does not start, or is not ready within 30 s.
    pub async fn start(shape: Shape) -> Self {
        Self::start_on(Kafka::shared().await, shape).await
    }

    /// As [`Stack::start`], on a broker of the test's own.
    ///
    /// # Panics
    /// As [`Stack::start`].
    pub async fn start_on(kafka: Arc<Kafka>, shape: Shape) -> Self {
        let topic = fresh_topic();
        kafka.create_topic(&topic, shape.partitions, &shape.topic).await;
        if shape.dead_letters {
            kafka.create_topic(&dead_letters(&topic), 1, &[]).await;
        }
        let redis = Redis::start(&shape.redis).await;
        let stack =
            Wiring { shape: &shape, topic: &topic, brokers: kafka.brokers() }.start(redis, kafka.clone());
        for service in stack.services() {
            service.ready().await;
        }
        stack
    }

    /// Another ingest of the same group, of which the gateways do not know. Does not wait.
    pub fn another_ingest(&self, settings: &[(&str, &str)]) -> Service {
        let (brokers, replay) = (self.kafka.brokers(), targets(&self.replay, &self.to_replay));
        let wires = [
            ("KAFKA_BROKERS", &*brokers),
            ("KAFKA_TOPIC", &self.topic),
            ("KAFKA_GROUP_ID", &self.topic),
            ("REPLAY_TARGETS", &replay),
        ];
        Service::start(Kind::Ingest, &[settings, &wires].concat())
    }

    /// The same, at the address of one that was stopped.
    pub fn ingest_in_place_of(&self, stopped: &Service, settings: &[(&str, &str)]) -> Service {
        let address = stopped.address();
        self.another_ingest(&[settings, &[("INGEST_LISTEN", &*address)]].concat())
    }

    /// Every service: those that are asked before those that ask them.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.replay.iter().chain(&self.ingest).chain(&self.gateway)
    }
}

/// Where the dead letters of a topic go.
pub fn dead_letters(topic: &str) -> String {
    format!("{topic}-dlq")
}

/// A topic name that no other test uses.
fn fresh_topic() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("telemetry-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What every service is told.
struct Wiring<'a> {
    shape: &'a Shape,
    topic: &'a str,
    brokers: String,
}

impl Wiring<'_> {
    fn start(&self, redis: Redis, kafka: Arc<Kafka>) -> Stack {
        let to_redis = self.links([redis.address()]).pop();
        let redis_url = to_redis.as_ref().map_or(redis.url(), |link| format!("redis://{}", link.address()));
        let replay = self.replicas(Kind::Replay, self.shape.replay, &[("REDIS_URL", &redis_url)]);
        let to_replay = self.links(replay.iter().map(Service::address));
        let replay_targets = targets(&replay, &to_replay);

        let ingest = self.replicas(Kind::Ingest, self.shape.ingest, &[("REPLAY_TARGETS", &replay_targets)]);
        let to_ingest = self.links(ingest.iter().map(Service::address));
        let ingest_targets = targets(&ingest, &to_ingest);

        let wires = [
            ("REPLAY_TARGETS", &*replay_targets),
            ("INGEST_TARGETS", &ingest_targets),
            ("DASHSTREAM_STREAM", self.topic),
        ];
        let gateway = self.replicas(Kind::Gateway, self.shape.gateway, &wires);
        let topic = self.topic.to_owned();
        Stack { gateway, ingest, replay, to_redis, to_replay, to_ingest, redis, kafka, topic }
    }

    fn replicas(&self, kind: Kind, count: usize, wires: &[(&str, &str)]) -> Vec<Service> {
        let wires = match kind {
            Kind::Ingest => &[
                wires,
                &[
                    ("KAFKA_BROKERS", &*self.brokers),
                    ("KAFKA_TOPIC", self.topic),
                    ("KAFKA_GROUP_ID", self.topic),
                ],
            ]
            .concat(),
            Kind::Replay => &[wires, &[("REPLAY_STORE", "redis")]].concat(),
            Kind::Gateway | Kind::Local => wires,
        };
        (0..count).map(|replica| Service::start(kind, &self.settings(kind, replica, wires))).collect()
    }

    /// What one replica is told: its own settings, and the wires that these do not replace.
    fn settings<'a>(
        &'a self,
        kind: Kind,
        replica: usize,
        wires: &[(&'a str, &'a str)],
    ) -> Vec<(&'a str, &'a str)> {
        let all = self.shape.settings.iter().filter(|(of, ..)| *of == kind);
        let all = all.map(|(_, name, value)| (*name, value.as_str()));
        let one = self.shape.replica_settings.iter().filter(|(of, at, ..)| (*of, *at) == (kind, replica));
        // The later wins.
        let own: Vec<_> = all.chain(one.map(|(.., name, value)| (*name, value.as_str()))).collect();
        let wires = wires.iter().filter(|(name, _)| !own.iter().any(|(given, _)| given == name));
        own.iter().chain(wires).copied().collect()
    }

    fn links(&self, addresses: impl IntoIterator<Item = String>) -> Vec<Proxy> {
        match self.shape.links {
            Links::Direct => Vec::new(),
            Links::Proxied => addresses.into_iter().map(|address| Proxy::to(&address)).collect(),
        }
    }
}

/// Where the others find these services: at their links if there are any.
fn targets(services: &[Service], links: &[Proxy]) -> String {
    let addresses: Vec<_> = match links {
        [] => services.iter().map(Service::address).collect(),
        links => links.iter().map(Proxy::address).collect(),
    };
    addresses.join(",")
}
