//! The records that every candidate stores.
use anyhow::{Context, Result};
use bytes::Bytes;
use dashstream_core::{
    batch::{self, Envelope, Packer},
    codec::Facts,
    position::{Epoch, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, RecordKind, RunFacts};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::fmt::{self, Write};

pub(crate) const PARTITIONS: usize = 8;
pub(crate) const THREADS: usize = 500;
pub(crate) const BATCH_RECORDS: usize = 64;
/// Records of one partition; the last batch of each is not full.
pub(crate) const PARTITION_RECORDS: usize = 10_000;
pub(crate) const RECORDS: usize = PARTITIONS * PARTITION_RECORDS;
pub(crate) const EPOCH: Epoch = Epoch::new(1);

/// Adjacent records of one thread where they come in bursts.
const BURST: usize = 16;
/// 2026-01-01, milliseconds since 1970.
const BEGIN_MS: i64 = 1_767_225_600_000;

const WORDS: &str = "agent plan search result query answer tool call retry model prompt tokens state node edge \
    graph message user assistant system document chunk index score summary context memory cache latency error \
    timeout value field update merge branch router planner critic writer reader fetch parse validate report \
    customer order invoice region account balance the of and to with from for not this that was";

/// What payloads are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Random bytes: nothing compresses.
    Random,
    /// JSON of words, numbers and random ids, as agents write it.
    Text,
}

/// How the threads of a partition follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Each record is of any thread: a batch touches about 40 of 62. The worst case.
    Scattered,
    /// A thread writes 16 records in a row: a batch touches 4 or 5.
    Bursts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) payload_bytes: usize,
    pub(crate) content: Content,
    pub(crate) mix: Mix,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = match self.content {
            Content::Random => "random",
            Content::Text => "text",
        };
        let mix = match self.mix {
            Mix::Scattered => "scattered",
            Mix::Bursts => "bursts",
        };
        write!(f, "{} B {content}, {mix}", self.payload_bytes)
    }
}

/// One record, as those see it who do not pack.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) partition: i32,
    pub(crate) offset: u64,
    pub(crate) thread_id: String,
    pub(crate) sequence: u64,
    pub(crate) payload: Bytes,
}

/// The same records twice: packed, and one by one in the order in which they arrive.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) shape: Shape,
    /// Batches of each partition.
    pub(crate) partitions: Vec<Vec<Batch>>,
    /// Taken from the partitions in turn, a batch from each.
    pub(crate) messages: Vec<Message>,
    /// Threads of the first partition that have at least 100 records.
    pub(crate) threads: Vec<String>,
}

impl Workload {
    pub(crate) fn new(shape: Shape) -> Result<Self> {
        let mut random = StdRng::seed_from_u64(7);
        let mut sequences = vec![0_u64; THREADS];
        let partitions = (0..PARTITIONS)
            .map(|partition| batches(shape, partition, &mut sequences, &mut random))
            .collect::<Result<Vec<_>>>()?;
        let mut messages = Vec::with_capacity(RECORDS);
        for round in 0..partitions[0].len() {
            for partition in &partitions {
                messages.extend(unpack(&partition[round])?);
            }
        }
        let threads = (0..THREADS).step_by(PARTITIONS).filter(|thread| sequences[*thread] >= 100);
        let threads = threads.map(thread_id).collect();
        Ok(Self { shape, partitions, messages, threads })
    }
}

fn batches(shape: Shape, partition: usize, sequences: &mut [u64], random: &mut StdRng) -> Result<Vec<Batch>> {
    let mut packer = Packer::new(EPOCH, Partition::new(i32::try_from(partition)?)?, None);
    let mut batches = Vec::new();
    let own = (THREADS - partition).div_ceil(PARTITIONS);
    let mut thread = partition;
    for at in 0..PARTITION_RECORDS {
        if shape.mix == Mix::Scattered || at % BURST == 0 {
            thread = partition + PARTITIONS * random.random_range(0..own);
        }
        sequences[thread] += 1;
        let payload = payload(shape, thread, sequences[thread], random)?;
        let tokens = if at % 8 == 0 { random.random_range(1..500) } else { 0 };
        let facts = Facts {
            kind: RecordKind::Event,
            tenant_id: "acme".into(),
            thread_id: thread_id(thread),
            sequence: Some(sequences[thread]),
            more_threads: Vec::new(),
            run: RunFacts { tokens, ..Default::default() },
            produced_us: None,
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        let offset = Offset::clamped(at as u64);
        let timestamp_ms = Some(BEGIN_MS + at as i64);
        let envelope = Envelope { offset, timestamp_ms, facts, traceparent, tracestate };
        anyhow::ensure!(packer.push(envelope, &payload), "an offset that was packed before");
        if (at + 1) % BATCH_RECORDS == 0 {
            batches.extend(packer.finish());
        }
    }
    batches.extend(packer.finish());
    Ok(batches)
}

fn thread_id(thread: usize) -> String {
    format!("thread-{thread:08x}-7c1e-4e0b")
}

fn payload(shape: Shape, thread: usize, sequence: u64, random: &mut StdRng) -> Result<Vec<u8>> {
    match shape.content {
        Content::Random => {
            let mut bytes = vec![0; shape.payload_bytes];
            random.fill_bytes(&mut bytes);
            Ok(bytes)
        }
        Content::Text => text(shape.payload_bytes, thread, sequence, random),
    }
}

fn text(bytes: usize, thread: usize, sequence: u64, random: &mut StdRng) -> Result<Vec<u8>> {
    let words: Vec<_> = WORDS.split_whitespace().collect();
    let mut word = || words[random.random_range(0..words.len())];
    let (node, kind) = (word(), word());
    let mut text = String::with_capacity(bytes + 64);
    let id: u64 = random.random();
    let took_us = random.random_range(100..5_000_000);
    write!(
        text,
        r#"{{"thread_id":"{}","sequence":{sequence},"id":"{id:016x}","node":"{node}","type":"{kind}","duration_us":{took_us},"message":""#,
        thread_id(thread)
    )?;
    while text.len() < bytes - 2 {
        if random.random_ratio(1, 12) {
            write!(text, "{} ", random.random_range(0..100_000))?;
        } else {
            write!(text, "{} ", words[random.random_range(0..words.len())])?;
        }
    }
    text.truncate(bytes - 2);
    text.push_str("\"}");
    Ok(text.into_bytes())
}

fn unpack(packed: &Batch) -> Result<Vec<Message>> {
    batch::records(packed)
        .map(|record| {
            let record = record?;
            Ok(Message {
                partition: packed.partition,
                offset: record.offset,
                thread_id: record.thread_id,
                sequence: record.sequence.context("every record has a sequence")?,
                payload: record.payload,
            })
        })
        .collect()
}
