//! A real Kafka broker: one node, KRaft, tuned to react within milliseconds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::Metadata,
};

use crate::{
    Proxy, eventually,
    folder::Folder,
    kafka_doors::{Door, Doors},
    net::free_port,
    warden::{Child, Inherit, Spec, Stop},
};

const ATTEMPTS_MAX: u32 = 3;
const FORMAT_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT: Duration = Duration::from_secs(90);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A broker in a temporary folder, on loopback ports. Ends on `Drop`.
pub struct Kafka {
    child: Mutex<Option<Child>>,
    port: u16,
    /// Leads to a listener of its own, whose clients come this way only.
    proxy: Proxy,
    admin: Arc<AdminClient<DefaultClientContext>>,
    folder: Folder,
    /// Not every broker has more than the plain one.
    doors: Option<Doors>,
}

impl Kafka {
    /// Starts a broker and waits until it answers: about four seconds. Most tests want
    /// [`Kafka::shared`].
    ///
    /// # Panics
    /// If Java or the jars are missing, or the broker does not come up.
    pub async fn start() -> Self {
        Self::start_with(|| None).await
    }

    async fn start_with(doors: impl Fn() -> Option<Doors>) -> Self {
        for attempt in 1.. {
            let kafka = Self::formatted(doors()).await;
            match kafka.launch().await {
                Ok(()) => return kafka,
                // Another process may have taken a port between our choice and the broker's start.
                Err(log) if attempt < ATTEMPTS_MAX && log.contains("Address already in use") => {}
                Err(log) => panic!("kafka ended while it started:\n{log}"),
            }
        }
        unreachable!("the last attempt returns or panics")
    }

    /// The broker of all the tests that run at the same time in this process. Whoever comes first
    /// starts it; it ends with its last user. Use topics and users of your own, and leave it running.
    /// It has every [`Door`].
    ///
    /// # Panics
    /// As [`Kafka::start`].
    pub async fn shared() -> Arc<Self> {
        static SHARED: tokio::sync::Mutex<Weak<Kafka>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(kafka) = shared.upgrade() {
            return kafka;
        }
        let kafka = Arc::new(Self::start_with(|| Some(Doors::new())).await);
        *shared = Arc::downgrade(&kafka);
        kafka
    }

    /// The bootstrap address.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The bootstrap address of clients whose every connection goes through [`Kafka::proxy`].
    pub fn proxied_brokers(&self) -> String {
        self.proxy.address()
    }

    /// What breaks the connections of those clients on command.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The address behind a door of the shared broker.
    ///
    /// # Panics
    /// If this broker has none.
    pub fn door(&self, door: Door) -> String {
        format!("127.0.0.1:{}", self.doors().port(door))
    }

    /// A certificate or a key of the shared broker's doors: `ca.crt` is the broker's authority; `client.crt` lets in,
    /// with `client.key` or `locked.key`; `stranger.crt` is an authority of nobody.
    ///
    /// # Panics
    /// If this broker has no doors.
    pub fn pem(&self, name: &str) -> PathBuf {
        self.doors().path(name)
    }

    /// Makes a user of the shared broker for SCRAM-SHA-256 and SCRAM-SHA-512, or gives it another password.
    ///
    /// # Panics
    /// If the broker refuses.
    pub async fn set_password(&self, user: &str, password: &str) {
        self.doors().set_password(&self.brokers(), user, password).await;
    }

    fn doors(&self) -> &Doors {
        self.doors.as_ref().expect("only the shared broker has doors")
    }

    /// A client configuration that names this broker and reconnects quickly.
    pub fn client_config(&self) -> ClientConfig {
        client_config(&self.brokers())
    }

    /// Makes a topic, with `configs` such as `("retention.ms", "1000")`, and waits until every
    /// partition has a leader.
    ///
    /// # Panics
    /// If the topic exists, a configuration is refused, or it takes more than 30 s.
    pub async fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        self.admin_call("create", || self.admin.create_topics([&topic], &admin_options())).await;
        let led = async || all_led(&self.metadata(Some(name)).await?, partitions);
        eventually(&format!("leaders of {name}"), ADMIN_TIMEOUT, led).await;
    }

    /// Deletes a topic, and waits until nobody is told of it any more.
    ///
    /// # Panics
    /// If there is no such topic, or it takes more than 30 s.
    pub async fn delete_topic(&self, name: &str) {
        self.admin_call("delete", || self.admin.delete_topics(&[name], &admin_options())).await;
        let gone = async || {
            let metadata = self.metadata(None).await?;
            let there = metadata.topics().iter().any(|topic| topic.name() == name);
            if there { Err("it is still there".to_owned()) } else { Ok(()) }
        };
        eventually(&format!("the end of {name}"), ADMIN_TIMEOUT, gone).await;
    }

    /// The earliest offset of a partition, and the high watermark.
    ///
    /// # Panics
    /// If the broker does not say within 30 s.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> (i64, i64) {
        let ask = async || {
            let (admin, topic) = (self.admin.clone(), topic.to_owned());
            blocking(move || admin.inner().fetch_watermarks(&topic, partition, REQUEST_TIMEOUT)).await
        };
        eventually(&format!("watermarks of {topic}/{partition}"), ADMIN_TIMEOUT, ask).await
    }

    /// Lets go of the records of a partition before an offset, as retention would.
    ///
    /// # Panics
    /// If the broker refuses or takes more than 30 s.
    pub async fn delete_records_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("a position");
        let done = self.admin.delete_records(&list, &admin_options()).await;
        done.expect("the broker lets go of records");
        let gone = async || match self.watermarks(topic, partition).await {
            (low, _) if low == offset => Ok(()),
            (low, _) => Err(format!("it begins at {low}")),
        };
        eventually(&format!("{topic}/{partition} begins at {offset}"), ADMIN_TIMEOUT, gone).await;
    }

    /// The offsets of a partition's records that a reader gets now.
    ///
    /// # Panics
    /// If they can't be read.
    pub async fn offsets(&self, topic: &str, partition: i32) -> Vec<u64> {
        let (mut settings, topic) = (self.client_config(), topic.to_owned());
        settings
            .set("group.id", "offsets")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true");
        let read = move || {
            let consumer: BaseConsumer = settings.create().expect("make a consumer");
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, partition, Offset::Beginning).expect("a position");
            consumer.assign(&list).expect("assign");
            let mut offsets = Vec::new();
            loop {
                match consumer.poll(REQUEST_TIMEOUT) {
                    Some(Ok(record)) => offsets.push(record.offset() as u64),
                    Some(Err(KafkaError::PartitionEOF(_))) => return offsets,
                    Some(Err(error)) => panic!("read offsets: {error}"),
                    None => {}
                }
            }
        };
        tokio::task::spawn_blocking(read).await.expect("reading does not panic")
    }

    /// Ends the broker. Its data and its address are kept for [`Kafka::start_again`].
    ///
    /// # Panics
    /// If it takes more than 30 s.
    pub async fn stop(&self, how: Stop) {
        let child = self.child.lock().expect("nobody panics with this lock").take();
        if let Some(child) = child {
            child.end(how).await;
        }
    }

    /// Starts the broker again on its data and at its address, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub async fn start_again(&self) {
        self.launch().await.unwrap_or_else(|log| panic!("kafka ended while it started again:\n{log}"));
    }

    /// [`Kafka::stop`], then [`Kafka::start_again`].
    ///
    /// # Panics
    /// As these do.
    pub async fn restart(&self, how: Stop) {
        self.stop(how).await;
        self.start_again().await;
    }

    /// Stops the process where it is: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.with_child(Child::stop);
    }

    /// Ends a [`Kafka::pause`].
    pub fn resume(&self) {
        self.with_child(Child::cont);
    }

    fn with_child(&self, act: impl FnOnce(&Child)) {
        act(self.child.lock().expect("nobody panics with this lock").as_ref().expect("kafka runs"));
    }

    /// A folder with an empty log and the settings of a broker that is not running yet.
    async fn formatted(doors: Option<Doors>) -> Self {
        let folder = Folder::new("kafka");
        let (port, proxied_port, controller_port) = (free_port(), free_port(), free_port());
        let proxy = Proxy::to_kafka(&format!("127.0.0.1:{proxied_port}"));
        let ports = Ports { port, proxied_port, controller_port };
        let settings = settings(&ports, &proxy.address(), &folder.join("data"), doors.as_ref());
        fs::write(folder.join("server.properties"), settings).expect("write the broker's settings");
        let admin = client_config(&format!("127.0.0.1:{port}")).create().expect("make an admin client");
        let kafka = Self { child: Mutex::new(None), port, proxy, admin: Arc::new(admin), folder, doors };

        // Any 16 bytes in base64 name a cluster.
        let args =
            ["kafka.tools.StorageTool", "format", "--cluster-id", "ZGFzaHN0cmVhbXRlc3RzMQ", "--config"];
        let format = kafka.java(&args, "format.log");
        let status = format.wait(FORMAT_TIMEOUT).await;
        assert!(ExitStatus::success(&status), "format the broker's storage:\n{}", format.log_end());
        kafka
    }

    /// # Errors
    /// The end of the log of a broker that ended instead of answering.
    async fn launch(&self) -> Result<(), String> {
        let child = self.java(&["kafka.Kafka"], "kafka.log");
        let up = async || match (self.metadata(None).await, child.exited()) {
            (_, Some(_)) => Ok(Err(child.log_end())),
            (Ok(metadata), None) if !metadata.brokers().is_empty() => Ok(Ok(())),
            (Ok(_), None) => Err("it knows no broker yet".to_owned()),
            (Err(error), None) => Err(error),
        };
        eventually("kafka answers", START_TIMEOUT, up).await?;
        *self.child.lock().expect("nobody panics with this lock") = Some(child);
        Ok(())
    }

    fn java(&self, args: &[&str], log: &str) -> Child {
        let jars = jars();
        assert!(jars.exists(), "{} is missing: `just setup` fetches it", jars.display());
        let settings = self.folder.join("server.properties");
        let jvm =
            ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true", "-cp"];
        let mut line: Vec<String> = jvm.iter().map(|arg| (*arg).to_owned()).collect();
        line.push(jars.join("*").to_string_lossy().into_owned());
        line.extend(args.iter().map(|arg| (*arg).to_owned()));
        line.push(settings.to_string_lossy().into_owned());
        Child::start(&Spec {
            program: Path::new("java"),
            args: line,
            env: &[],
            inherit: Inherit::Everything,
            log: self.folder.join(log),
        })
    }

    async fn metadata(&self, topic: Option<&str>) -> Result<Metadata, String> {
        let (admin, topic) = (self.admin.clone(), topic.map(str::to_owned));
        blocking(move || admin.inner().fetch_metadata(topic.as_deref(), REQUEST_TIMEOUT)).await
    }

    /// Repeats an admin request while the broker cannot be reached; any other refusal is a mistake
    /// of the test.
    async fn admin_call<F>(&self, what: &str, call: impl Fn() -> F)
    where
        F: Future<Output = Result<Vec<Result<String, (String, RDKafkaErrorCode)>>, KafkaError>>,
    {
        let done = async || {
            let answers = call().await.map_err(|error| error.to_string())?;
            let Some((topic, code)) = answers.into_iter().find_map(Result::err) else { return Ok(()) };
            assert!(is_passing(code), "{what} {topic}: {code}");
            Err(format!("{topic}: {code}"))
        };
        eventually(&format!("{what} a topic"), ADMIN_TIMEOUT, done).await;
    }
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("brokers", &self.brokers()).field("folder", &self.folder).finish()
    }
}

/// Asks a question that blocks its thread, elsewhere.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, String> {
    let answer = tokio::task::spawn_blocking(ask).await.map_err(|error| error.to_string())?;
    answer.map_err(|error| error.to_string())
}

/// Where `just setup` puts the broker.
fn jars() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kafka/target/lib")
}

fn client_config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
    config
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT)).request_timeout(Some(ADMIN_TIMEOUT))
}

fn is_passing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::NotController
            | Code::InvalidReplicationFactor // the broker has not joined its own cluster yet
    )
}

fn all_led(metadata: &Metadata, partitions: i32) -> Result<(), String> {
    let led = metadata.topics().iter().flat_map(|topic| topic.partitions()).filter(|p| p.leader() >= 0);
    let led = led.count();
    if i32::try_from(led) == Ok(partitions) { Ok(()) } else { Err(format!("{led} of {partitions} have one")) }
}

/// Where a broker listens.
struct Ports {
    port: u16,
    proxied_port: u16,
    controller_port: u16,
}

/// Everything in one process and nothing replicated; short delays, so that what takes minutes in
/// production (retention, compaction, expiry of sessions) can be watched in a test.
fn settings(ports: &Ports, proxy: &str, data: &Path, doors: Option<&Doors>) -> String {
    let Ports { port, proxied_port, controller_port } = ports;
    let listeners = doors.map(Doors::listeners).unwrap_or_default();
    let protocols = doors.map(Doors::protocols).unwrap_or_default();
    let security = doors.map(Doors::settings).unwrap_or_default();
    format!(
        "\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied_port},CONTROLLER://127.0.0.1:{controller_port}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://{proxy}{listeners}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
{security}controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false

offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1

group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
broker.session.timeout.ms=1000
controller.quorum.election.timeout.ms=200

log.initial.task.delay.ms=200
log.retention.check.interval.ms=500
log.cleaner.backoff.ms=200
log.cleaner.dedupe.buffer.size=4194304
log.segment.delete.delay.ms=0

num.network.threads=2
num.io.threads=4
background.threads=2
",
        data = data.display()
    )
}
