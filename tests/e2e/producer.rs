//! The producer that applications link, against a real Kafka: order, states, and an account of every loss.
use dashstream_core::{canonical::state_hash, codec};
use dashstream_producer::{Books, Config, Dropped, Failed, Graph, Kind, Llm, Measure, Producer, Token};
use dashstream_proto::telemetry::{DashStreamMessage, Header, attribute_value::Value as Attribute};
use dashstream_proto::telemetry::{StateDiff, dash_stream_message::Message as Member};
use dashstream_tests::{Kafka, Stop, eventually};
use prometheus::Registry;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn start(client: &ClientConfig, config: Config) -> (Producer, Registry) {
    let registry = Registry::new();
    (Producer::start(config, client.clone(), &registry).expect("the producer starts"), registry)
}

/// Every message of a topic, partition by partition, in order.
async fn messages(kafka: &Kafka, topic: &str, partitions: i32) -> Vec<Member> {
    let (mut settings, topic) = (kafka.client_config(), topic.to_owned());
    settings.set("group.id", "reader").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    let read = move || {
        let consumer: BaseConsumer = settings.create().expect("make a consumer");
        let mut members = Vec::new();
        for partition in 0..partitions {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, partition, Offset::Beginning).expect("a position");
            consumer.assign(&list).expect("assign");
            loop {
                match consumer.poll(Duration::from_secs(5)) {
                    Some(Ok(record)) => {
                        let message = codec::decode(record.payload(), codec::Limits::default());
                        let member = message.expect("what is written decodes").message.expect("a member");
                        assert_eq!(record.key(), Some(header(&member).thread_id.as_bytes()));
                        members.push(member);
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => break,
                    Some(Err(error)) => panic!("read {topic}: {error}"),
                    None => {}
                }
            }
        }
        members
    };
    tokio::task::spawn_blocking(read).await.expect("reading does not panic")
}

fn header(member: &Member) -> &Header {
    let header = match member {
        Member::Event(m) => &m.header,
        Member::StateDiff(m) => &m.header,
        Member::TokenChunk(m) => &m.header,
        Member::ToolExecution(m) => &m.header,
        Member::Checkpoint(m) => &m.header,
        Member::Metrics(m) => &m.header,
        Member::Error(m) => &m.header,
        Member::EventBatch(m) => &m.header,
        Member::ExecutionTrace(m) => &m.header,
    };
    header.as_ref().expect("a header")
}

/// What a reader makes of one thread: its last number, and its state, every hash of which was checked.
#[derive(Debug, Default)]
struct Reader {
    sequence: u64,
    state: Option<Value>,
    holes: u64,
    states: usize,
}

impl Reader {
    fn read(&mut self, member: &Member) {
        let sequence = header(member).sequence;
        assert!(sequence > self.sequence, "{sequence} came after {}", self.sequence);
        self.holes += sequence - self.sequence - 1;
        self.sequence = sequence;
        if let Member::Event(event) = member {
            let state = event.attributes.get("initial_state_json").and_then(|state| state.value.as_ref());
            if let Some(Attribute::StringValue(state)) = state {
                self.state = Some(serde_json::from_str(state).expect("JSON"));
            }
        } else if let Member::StateDiff(diff) = member {
            let state = if diff.full_state.is_empty() {
                patched(self.state.take().expect("a base"), diff)
            } else {
                serde_json::from_slice(&diff.full_state).expect("JSON")
            };
            assert_eq!(state_hash(&state).as_slice(), diff.state_hash, "{state}");
            self.state = Some(state);
            self.states += 1;
        } else if let Member::Checkpoint(checkpoint) = member {
            assert_eq!(self.state, Some(serde_json::from_slice(&checkpoint.state).expect("JSON")));
        }
    }
}

fn patched(mut state: Value, diff: &StateDiff) -> Value {
    let operations = diff.operations.iter().map(|operation| {
        let value: Value = serde_json::from_slice(&operation.value).unwrap_or_default();
        let op = operation.op().as_str_name().trim_start_matches("OP_TYPE_").to_lowercase();
        json!({ "op": op, "path": operation.path, "from": operation.from, "value": value })
    });
    let operations: Vec<_> = operations.collect();
    let patch: json_patch::Patch = serde_json::from_value(operations.into()).expect("a patch");
    json_patch::patch(&mut state, &patch).expect("the patch fits");
    state
}

fn read(members: &[Member]) -> HashMap<String, Reader> {
    let mut readers: HashMap<String, Reader> = HashMap::new();
    for member in members {
        readers.entry(header(member).thread_id.clone()).or_default().read(member);
    }
    readers
}

fn graph() -> Graph {
    Graph::new("test", "a")
}

/// Hardly compressible.
fn noise(bytes: usize, seed: u64) -> Value {
    let mut rng = StdRng::seed_from_u64(seed);
    let text = |_| (0..1_000).map(|_| rng.sample(rand::distr::Alphanumeric) as char).collect::<String>();
    (0..bytes / 1_000).map(text).collect::<Vec<_>>().into()
}

/// Everything is settled, and in exactly one place.
async fn settled(producer: &Producer) -> Books {
    let done = async || {
        let books = producer.books();
        assert!(books.total().balances(), "{books:?}");
        if books.total().in_flight() == 0 { Ok(books) } else { Err(format!("{books:?}")) }
    };
    eventually("everything is settled", TIMEOUT, done).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_has_each_thread_in_the_order_of_its_numbers_and_every_state() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("producer-order", 4, &[]).await;
    let (producer, _registry) = start(&kafka.client_config(), Config::new("producer-order"));
    let threads: Vec<_> = (0..50).map(|at| (format!("thread-{at}"), Mutex::new(json!({ "n": 0 })))).collect();
    // Without a handle a thread's life would end, and its numbers begin anew.
    let runs: Vec<_> = threads.iter().map(|(id, _)| producer.run(id)).collect();
    for (run, (_, state)) in runs.iter().zip(&threads) {
        run.graph_started(&graph(), &*state.lock().unwrap());
    }
    let (threads, runs) = (Arc::new(threads), Arc::new(runs));
    let task = |seed| {
        let (threads, runs) = (Arc::clone(&threads), Arc::clone(&runs));
        move || {
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..10_000 / 32 {
                let at = rng.random_range(0..runs.len());
                match rng.random_range(0..3) {
                    0 => runs[at].progress("a", "going on", 0.5),
                    1 => runs[at].metrics("node", "a", [("n", Measure::Gauge(rng.random(), "ratio"))]),
                    _ => {
                        let mut state = threads[at].1.lock().unwrap();
                        state["n"] = json!(state["n"].as_i64().unwrap_or_default() + 1);
                        state[format!("k{}", rng.random_range(0..9))] = json!(rng.random::<f64>());
                        runs[at].state(&*state);
                    }
                }
                (0..rng.random_range(0..20)).for_each(|_| thread::yield_now());
            }
        }
    };
    let tasks: Vec<_> = (0..32).map(|seed| thread::spawn(task(seed))).collect();
    for task in tasks {
        task.join().expect("a task ends");
    }
    let report = producer.shutdown(TIMEOUT);
    assert_eq!(report.undelivered(), 0, "{report:?}");
    let members = messages(&kafka, "producer-order", 4).await;
    assert_eq!(members.len() as u64, report.books.total().delivered);
    let readers = read(&members);
    for (id, state) in threads.iter() {
        let reader = &readers[id];
        assert_eq!((reader.holes, reader.state.as_ref()), (0, Some(&*state.lock().unwrap())), "{id}");
    }
    assert!(readers.values().map(|reader| reader.states).sum::<usize>() > 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_refuses_is_counted_and_the_next_state_is_whole() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("producer-refused", 1, &[("max.message.bytes", "20000")]).await;
    let config = Config { record_bytes_max: 500_000, ..Config::new("producer-refused") };
    let (producer, _registry) = start(&kafka.client_config(), config);
    let run = producer.run("t");
    let small = json!({ "text": "unchanged and of some length, so that a patch is smaller", "n": 0 });
    run.graph_started(&graph(), &small);
    // What is sent at the same time is refused together.
    settled(&producer).await;
    for n in 0..3 {
        run.state(&noise(100_000, n));
        let books = settled(&producer).await;
        assert_eq!(books.row(Kind::StateDiff).failed[Failed::TooLarge as usize], n + 1, "{books:?}");
        run.state(&small);
        settled(&producer).await;
    }
    let books = producer.books();
    assert_eq!((books.total().lost(), books.total().delivered), (3, 4), "{books:?}");
    let members = messages(&kafka, "producer-refused", 1).await;
    let whole = |member: &Member| matches!(member, Member::StateDiff(diff) if !diff.full_state.is_empty());
    assert_eq!(members.iter().filter(|member| whole(member)).count(), 3);
    assert_eq!(read(&members)["t"].holes, 3, "a hole for each that was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_costs_what_the_books_say_and_no_more_memory_than_agreed() {
    let kafka = Kafka::start().await;
    kafka.create_topic("producer-away", 1, &[]).await;
    let budget_bytes = 2 << 20;
    let config = Config {
        budget_bytes,
        record_bytes_max: 200_000,
        text_bytes_max: 10_000,
        delivery_timeout: Duration::from_secs(4),
        ..Config::new("producer-away")
    };
    let (producer, registry) = start(&kafka.client_config(), config);
    let run = producer.run("t");
    let llm = Llm { request_id: "r", model: "m" };
    let token = |index| Token { llm, text: "word ", index, finish: None, usage: None };
    run.graph_started(&graph(), &json!({ "n": 0 }));
    settled(&producer).await;
    kafka.stop(Stop::Kill).await;
    let mut said = 0;
    while producer.books().row(Kind::StateDiff).dropped[Dropped::QueueFull as usize] == 0 {
        run.token(token(said));
        run.state(&json!({ "n": said, "text": "x".repeat(2_000) }));
        said += 1;
        let books = producer.books();
        assert!(books.total().balances(), "{books:?}");
        assert!(producer.depth().bytes <= budget_bytes, "{:?}", producer.depth());
    }
    let books = producer.books();
    let refused = |kind: Kind| books.row(kind).dropped[Dropped::QueueFull as usize];
    assert!(refused(Kind::TokenChunk) > 1, "tokens give way before states: {books:?}");
    run.finished(Duration::from_secs(1));
    assert_eq!(producer.books().row(Kind::Event).lost(), 0, "there is room for the end of a run");

    kafka.start_again().await;
    let books = settled(&producer).await;
    let scraped = scraped(&registry);
    assert_eq!(scraped["dashstream_telemetry_accepted_total"], books.total().accepted as f64);
    assert_eq!(scraped["dashstream_telemetry_in_flight"], 0.0);
    run.state(&json!({ "n": "after" }));
    let report = producer.shutdown(TIMEOUT);
    let members = messages(&kafka, "producer-away", 1).await;
    let last = members.last().expect("a record");
    assert!(matches!(last, Member::StateDiff(diff) if !diff.full_state.is_empty()), "{last:?}");
    // What timed out may have arrived nevertheless; nothing else may.
    let total = report.books.total();
    let most = total.delivered + total.failed[Failed::TimedOut as usize];
    assert!((total.delivered..=most).contains(&(members.len() as u64)), "{} of {total:?}", members.len());
    let mut ids: Vec<_> = members.iter().map(|member| header(member).message_id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), members.len(), "no message is there twice");
}

/// Each family's sum.
fn scraped(registry: &Registry) -> HashMap<String, f64> {
    let sum = |family: &prometheus::proto::MetricFamily| {
        let metrics = family.get_metric().iter();
        metrics.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum::<f64>()
    };
    registry.gather().iter().map(|family| (family.name().to_owned(), sum(family))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_what_an_application_says_never_reaches_kafka() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("producer-canary", 1, &[]).await;
    let (producer, _registry) = start(&kafka.client_config(), Config::new("producer-canary"));
    let canary = format!("sk-{}", "Canary1".repeat(4));
    let run = producer.run(&format!("thread {canary}"));
    let llm = Llm { request_id: &canary, model: &canary };
    run.graph_started(
        &Graph::new(canary.clone(), canary.clone()).edge(&canary, &canary),
        &json!({ "a": canary }),
    );
    run.node_failed(&canary, &canary, Duration::ZERO);
    run.branch(&canary, &canary, &canary);
    run.llm_started(&canary, &llm, &canary);
    run.token(Token { llm, text: &canary, index: 0, finish: None, usage: None });
    run.state(&json!({ canary.clone(): [canary.clone()] }));
    run.checkpoint();
    run.metrics(&canary, &canary, [(&*canary, Measure::Count(1, &canary))]);
    run.human_interrupt(&canary, &canary);
    run.failed(&canary, Duration::ZERO);
    assert_eq!(producer.shutdown(TIMEOUT).undelivered(), 0);
    let members = messages(&kafka, "producer-canary", 1).await;
    assert_eq!(members.len(), 10);
    for member in members {
        let message = DashStreamMessage { message: Some(member) };
        let plain = codec::encode(&message, usize::MAX);
        assert!(!String::from_utf8_lossy(&plain).contains("Canary1"), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shutdown_does_not_deliver_it_reports() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("producer-exits", 1, &[]).await;
    // Some have time enough, some none; some say nothing and are dropped.
    let ends = |client: &ClientConfig, at: u64| {
        let (producer, _registry) = start(client, Config::new("producer-exits"));
        producer.run(&format!("t-{at}")).finished(Duration::ZERO);
        match at % 3 {
            0 => producer.shutdown(Duration::ZERO).undelivered(),
            1 => producer.shutdown(TIMEOUT).undelivered(),
            _ => {
                drop(producer);
                0
            }
        }
    };
    let batches = (0..40).map(|batch| {
        let client = kafka.client_config();
        thread::spawn(move || (batch * 25..(batch + 1) * 25).map(|at| ends(&client, at)).sum::<u64>())
    });
    let batches: Vec<_> = batches.collect();
    let undelivered: u64 = batches.into_iter().map(|batch| batch.join().expect("it ends")).sum();
    let there = messages(&kafka, "producer-exits", 1).await.len() as u64;
    assert!(there <= 1_000 && there + undelivered >= 1_000, "{there} are there, {undelivered} are not");
    assert!(undelivered <= 334, "{undelivered}: those that had time were delivered");
}
