//! The dead letters of a topic, as Kafka has them.
use dashstream_core::dead_letter::DeadLetter;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(100);
const QUERY: Duration = Duration::from_secs(10);

/// All letters that are in a topic of dead letters now, with their keys.
///
/// # Panics
/// If Kafka does not answer, or what it has is no letter.
pub async fn letters(client: &ClientConfig, topic: &str) -> Vec<(String, DeadLetter)> {
    let (client, topic) = (client.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || read(client, &topic)).await.expect("reading does not panic")
}

fn read(mut client: ClientConfig, topic: &str) -> Vec<(String, DeadLetter)> {
    client.set("group.id", "letters").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = client.create().expect("make a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), QUERY).expect("the topic's metadata");
    let partitions = metadata.topics()[0].partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a position");
    }
    consumer.assign(&list).expect("assign");
    let (mut letters, mut ended) = (Vec::new(), 0);
    while ended < partitions {
        match consumer.poll(POLL) {
            Some(Ok(record)) => {
                let key =
                    String::from_utf8(record.key().unwrap_or_default().to_vec()).expect("a key is text");
                let letter = DeadLetter::from_json(record.payload().unwrap_or_default());
                letters.push((key, letter.expect("a letter")));
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("read letters: {error}"),
            None => {}
        }
    }
    letters
}
