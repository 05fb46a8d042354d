//! Telemetry as real agents write it, from a seed: the same seed gives the same records.
use dashstream_proto::telemetry::{
    AttributeValue, Checkpoint, DashStreamMessage, DiffOperation, Error, Event, EventBatch, EventType,
    ExecutionTrace, Header, MessageType, MetricValue, Metrics, NodeExecutionRecord, StateDiff, TokenChunk,
    ToolExecution, attribute_value, dash_stream_message::Message as Member, diff_operation::OpType,
    error::Severity, metric_value, token_chunk::FinishReason, tool_execution::ExecutionStage,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const GRAPHS: [(&str, [&str; 4]); 4] = [
    ("research", ["plan", "search", "read", "write"]),
    ("support_triage", ["classify", "lookup", "draft", "review"]),
    ("code_review", ["fetch_diff", "lint", "comment", "summarise"]),
    ("rag", ["embed", "retrieve", "rank", "answer"]),
];
const WORDS: [&str; 12] = [
    "the",
    "graph",
    "answers",
    "größe",
    "from",
    "memory",
    "\u{1f980}",
    "because",
    "sources",
    "agree",
    "on",
    "it",
];
/// Kinds of step between the start and the end of a run.
const STEPS: u32 = 9;

/// One run in progress.
#[derive(Debug)]
struct Run {
    thread_id: String,
    graph: usize,
    sequence: u64,
    step: u32,
    last_step: u32,
    state: Value,
    answer_bytes: usize,
}

/// A record to produce.
#[derive(Clone, Debug)]
pub struct Produced {
    pub thread_id: String,
    pub message: DashStreamMessage,
}

/// Endless records of `threads` runs at a time, each of every kind; a run that ends is followed by another.
#[derive(Debug)]
pub struct Runs {
    rng: StdRng,
    runs: Vec<Run>,
    started: u64,
    prefix: String,
    clock_us: i64,
}

impl Runs {
    /// Runs whose thread ids begin with `prefix`; `start_us` is the producer's clock at the first record,
    /// microseconds since 1970.
    pub fn new(seed: u64, threads: usize, prefix: &str, start_us: i64) -> Self {
        let mut runs = Self {
            rng: StdRng::seed_from_u64(seed),
            runs: Vec::new(),
            started: 0,
            prefix: prefix.to_owned(),
            clock_us: start_us,
        };
        for _ in 0..threads.max(1) {
            let run = runs.start();
            runs.runs.push(run);
        }
        runs
    }

    /// The producer's clock goes on.
    pub fn set_clock(&mut self, now_us: i64) {
        self.clock_us = self.clock_us.max(now_us);
    }

    fn start(&mut self) -> Run {
        self.started += 1;
        let graph = self.rng.random_range(0..GRAPHS.len());
        Run {
            thread_id: format!("{}{}-{:06}", self.prefix, GRAPHS[graph].0, self.started),
            graph,
            sequence: 0,
            step: 0,
            last_step: 2 + STEPS * self.rng.random_range(2..8),
            state: json!({ "question": words(&mut self.rng, 6), "notes": [], "cost": 0.25 }),
            answer_bytes: 0,
        }
    }

    fn next_message(&mut self, at: usize) -> DashStreamMessage {
        self.clock_us += 1;
        let (clock, rng, run) = (self.clock_us, &mut self.rng, &mut self.runs[at]);
        let (name, nodes) = GRAPHS[run.graph];
        let node = nodes[(run.step / STEPS) as usize % nodes.len()];
        let member = if run.step == 0 {
            Member::Event(started(header(rng, run, MessageType::Event, clock), name, &nodes, &run.state))
        } else if run.step == run.last_step - 1 {
            Member::ExecutionTrace(trace(header(rng, run, MessageType::ExecutionTrace, clock), node))
        } else if run.step >= run.last_step {
            Member::Event(event(header(rng, run, MessageType::Event, clock), EventType::GraphEnd, ""))
        } else {
            step(rng, run, node, clock)
        };
        run.step += 1;
        DashStreamMessage { message: Some(member) }
    }
}

impl Iterator for Runs {
    type Item = Produced;

    fn next(&mut self) -> Option<Produced> {
        let at = self.rng.random_range(0..self.runs.len());
        let message = self.next_message(at);
        let thread_id = self.runs[at].thread_id.clone();
        if self.runs[at].step > self.runs[at].last_step {
            self.runs[at] = self.start();
        }
        Some(Produced { thread_id, message })
    }
}

/// One step within a node: its start, its work in every kind of message, its end.
fn step(rng: &mut StdRng, run: &mut Run, node: &str, clock: i64) -> Member {
    match run.step % STEPS {
        1 => Member::Event(event(header(rng, run, MessageType::Event, clock), EventType::NodeStart, node)),
        2 => Member::TokenChunk(token(rng, run, clock)),
        3 => Member::ToolExecution(tool(rng, run, node, clock)),
        4 => Member::EventBatch(thinking(rng, run, node, clock)),
        5 => Member::Metrics(metrics(rng, run, node, clock)),
        6 => Member::StateDiff(diff(rng, run, node, clock)),
        7 => Member::Checkpoint(checkpoint(rng, run, clock)),
        8 if rng.random_ratio(1, 10) => Member::Error(failure(rng, run, node, clock)),
        _ => Member::Event(event(header(rng, run, MessageType::Event, clock), EventType::NodeEnd, node)),
    }
}

fn header(rng: &mut StdRng, run: &mut Run, kind: MessageType, timestamp_us: i64) -> Header {
    run.sequence += 1;
    let mut id = [0; 16];
    rng.fill_bytes(&mut id);
    Header {
        message_id: uuid::Builder::from_random_bytes(id).into_uuid().into_bytes().to_vec(),
        timestamp_us,
        tenant_id: "demo".into(),
        thread_id: run.thread_id.clone(),
        sequence: run.sequence,
        r#type: kind.into(),
        schema_version: 1,
        ..Default::default()
    }
}

fn words(rng: &mut StdRng, count: usize) -> String {
    (0..count).map(|_| WORDS[rng.random_range(0..WORDS.len())]).collect::<Vec<_>>().join(" ")
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue { value: Some(attribute_value::Value::StringValue(value.into())) }
}

fn event(header: Header, kind: EventType, node: &str) -> Event {
    Event { header: Some(header), event_type: kind.into(), node_id: node.into(), ..Default::default() }
}

fn started(header: Header, name: &str, nodes: &[&str], state: &Value) -> Event {
    let edges: Vec<_> = nodes
        .windows(2)
        .map(|pair| json!({ "from": pair[0], "to": pair[1], "edge_type": "direct" }))
        .collect();
    let nodes: Vec<_> = nodes.iter().map(|name| json!({ "name": name, "node_type": "llm" })).collect();
    let schema = json!({ "name": name, "version": "1.0.0", "nodes": nodes, "edges": edges, "entry_point": nodes[0]["name"] });
    let attributes = BTreeMap::from([
        ("graph_name".to_owned(), text(name)),
        ("graph_schema_json".to_owned(), text(schema.to_string())),
        ("initial_state_json".to_owned(), text(state.to_string())),
    ]);
    Event { attributes, ..event(header, EventType::GraphStart, "") }
}

fn thinking(rng: &mut StdRng, run: &mut Run, node: &str, clock: i64) -> EventBatch {
    let inner = |rng: &mut StdRng, run: &mut Run, step: i64| {
        let header = header(rng, run, MessageType::Event, clock);
        let number = AttributeValue { value: Some(attribute_value::Value::IntValue(step)) };
        let attributes =
            BTreeMap::from([("thought".to_owned(), text(words(rng, 5))), ("step".to_owned(), number)]);
        Event { attributes, ..event(header, EventType::NodeThinking, node) }
    };
    let events = (0..2).map(|step| inner(rng, run, step)).collect();
    // The envelope consumes no sequence.
    let envelope = Header {
        sequence: 0,
        tenant_id: "demo".into(),
        thread_id: run.thread_id.clone(),
        timestamp_us: clock,
        r#type: MessageType::EventBatch.into(),
        schema_version: 1,
        ..Default::default()
    };
    EventBatch { header: Some(envelope), events }
}

fn token(rng: &mut StdRng, run: &mut Run, clock: i64) -> TokenChunk {
    let text = words(rng, 3);
    run.answer_bytes += text.len();
    TokenChunk {
        header: Some(header(rng, run, MessageType::TokenChunk, clock)),
        request_id: format!("{}-{}", run.thread_id, run.step / STEPS),
        text,
        chunk_index: run.step,
        is_final: true,
        finish_reason: FinishReason::Stop.into(),
        model: "demo-1".into(),
        ..Default::default()
    }
}

fn tool(rng: &mut StdRng, run: &mut Run, node: &str, clock: i64) -> ToolExecution {
    ToolExecution {
        header: Some(header(rng, run, MessageType::ToolExecution, clock)),
        call_id: format!("call-{}", run.step),
        tool_name: format!("{node}_tool"),
        stage: ExecutionStage::Completed.into(),
        arguments: json!({ "query": words(rng, 4) }).to_string().into_bytes(),
        result: json!({ "hits": rng.random_range(0..20) }).to_string().into_bytes(),
        duration_us: rng.random_range(500..90_000),
        ..Default::default()
    }
}

fn metrics(rng: &mut StdRng, run: &mut Run, node: &str, clock: i64) -> Metrics {
    let seconds = MetricValue {
        value: Some(metric_value::Value::FloatValue(rng.random_range(0.01..2.0))),
        unit: "seconds".into(),
        ..Default::default()
    };
    Metrics {
        header: Some(header(rng, run, MessageType::Metrics, clock)),
        scope: "node".into(),
        scope_id: node.into(),
        metrics: BTreeMap::from([("latency".to_owned(), seconds)]),
        ..Default::default()
    }
}

fn diff(rng: &mut StdRng, run: &mut Run, node: &str, clock: i64) -> StateDiff {
    let note = json!({ "node": node, "text": words(rng, 8) });
    if let Some(notes) = run.state["notes"].as_array_mut() {
        notes.push(note.clone());
    }
    let operation = DiffOperation {
        op: OpType::Add.into(),
        path: "/notes/-".into(),
        value: note.to_string().into_bytes(),
        ..Default::default()
    };
    StateDiff {
        header: Some(header(rng, run, MessageType::StateDiff, clock)),
        operations: vec![operation],
        ..Default::default()
    }
}

fn checkpoint(rng: &mut StdRng, run: &mut Run, clock: i64) -> Checkpoint {
    let header = header(rng, run, MessageType::Checkpoint, clock);
    Checkpoint {
        checkpoint_id: header.message_id.clone(),
        header: Some(header),
        state: run.state.to_string().into_bytes(),
        state_type: "serde_json::Value".into(),
        ..Default::default()
    }
}

fn failure(rng: &mut StdRng, run: &mut Run, node: &str, clock: i64) -> Error {
    Error {
        header: Some(header(rng, run, MessageType::Error, clock)),
        error_code: "TOOL_TIMEOUT".into(),
        message: format!("{node}: the tool did not answer"),
        severity: Severity::Warning.into(),
        context: BTreeMap::from([("node".to_owned(), node.to_owned())]),
        ..Default::default()
    }
}

fn trace(header: Header, node: &str) -> ExecutionTrace {
    let record =
        NodeExecutionRecord { node: node.into(), duration_ms: 12, succeeded: true, ..Default::default() };
    ExecutionTrace {
        thread_id: header.thread_id.clone(),
        header: Some(header),
        nodes_executed: vec![record],
        total_duration_ms: 480,
        completed: true,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::codec::{Limits, encode, facts};
    use std::collections::{HashMap, HashSet};

    #[test]
    fn the_same_seed_gives_the_same_records_of_every_kind() {
        let take =
            |seed| Runs::new(seed, 20, "t-", 1).take(5_000).map(|produced| encode(&produced.message, 512));
        assert!(take(7).eq(take(7)));
        assert!(!take(7).eq(take(8)));
        let kinds: HashSet<_> =
            take(7).map(|payload| facts(Some(&payload), Limits::default()).unwrap().kind).collect();
        assert_eq!(kinds.len(), 9);
    }

    #[test]
    fn sequences_of_a_thread_count_from_one() {
        let mut last: HashMap<String, u64> = HashMap::new();
        for produced in Runs::new(1, 10, "", 1).take(5_000) {
            let facts = facts(Some(&encode(&produced.message, 512)), Limits::default()).unwrap();
            let last = last.entry(produced.thread_id).or_default();
            let sequence = facts.sequence.unwrap();
            assert!(
                sequence == *last + 1
                    || facts.kind == dashstream_proto::log::v1::RecordKind::EventBatch
                        && sequence == *last + 2
            );
            *last = sequence;
        }
    }
}
