//! What an application says of a run, while it runs.
use crate::{
    graph::Graph,
    producer::Inner,
    queue::Said,
    say::{Failure, Llm, Measure, Token, ToolCall},
    signal::{Signal, State},
    thread::{Hole, text},
    trace::TraceContext,
};
use dashstream_proto::telemetry::{
    AttributeValue, Error, Event, EventType, Metrics, TokenChunk, ToolExecution,
    attribute_value::Value as Attribute, tool_execution::ExecutionStage,
};
use serde::Serialize;
use serde_json::Value;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// A thread that somebody has a handle of.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) producer: Arc<Inner>,
    pub(crate) key: u64,
    pub(crate) thread_id: Arc<str>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.producer.over(self);
    }
}

/// One run of a graph, or several of one thread. A cheap handle: clones number in common. No call waits or fails; what
/// there is no room for is refused and counted.
///
/// What the branches of a parallel step do is told by events; their states are published where they join, as one.
#[derive(Clone, Debug)]
pub struct Run {
    live: Arc<Live>,
    trace: Option<Arc<TraceContext>>,
}

impl Run {
    pub(crate) fn of(live: Arc<Live>) -> Self {
        Self { live, trace: None }
    }

    /// The id by which the run is found.
    pub fn thread_id(&self) -> &str {
        &self.live.thread_id
    }

    /// The same run, as part of a trace: whoever passes its messages on leaves a span in it.
    #[must_use]
    pub fn traced(mut self, trace: TraceContext) -> Self {
        self.trace = Some(Arc::new(trace));
        self
    }

    /// A graph begins, with this state.
    pub fn graph_started(&self, graph: &Graph, state: &impl Serialize) {
        let (nodes, edges) = graph.counts();
        let attributes = [
            ("graph_name", text(graph.name())),
            ("graph_entry_point", text(graph.entry_point())),
            ("schema_id", text(graph.schema_id())),
            ("graph_node_count", whole(nodes)),
            ("graph_edge_count", whole(edges)),
        ];
        let event = Box::new(event(EventType::GraphStart, "", attributes));
        let schema = Some(graph.schema(SystemTime::now()));
        self.say(Signal::Started { event, schema, state: Some(state_of(state)) });
    }

    pub fn node_started(&self, node: &str) {
        self.event(EventType::NodeStart, node, []);
    }

    pub fn node_ended(&self, node: &str, took: Duration) {
        self.timed(EventType::NodeEnd, node, took, []);
    }

    pub fn node_failed(&self, node: &str, error: &str, took: Duration) {
        self.timed(EventType::NodeError, node, took, [("error", text(error))]);
    }

    pub fn edge(&self, from: &str, to: &str) {
        self.event(EventType::EdgeTraversal, from, [("target", text(to))]);
    }

    /// A branch was taken, because of this.
    pub fn branch(&self, from: &str, to: &str, because: &str) {
        self.event(EventType::ConditionalBranch, from, [("target", text(to)), ("reason", text(because))]);
    }

    pub fn parallel_started(&self, nodes: &[&str]) {
        self.event(EventType::ParallelStart, &nodes.join(","), []);
    }

    pub fn parallel_ended(&self, nodes: &[&str], took: Duration) {
        self.timed(EventType::ParallelEnd, &nodes.join(","), took, []);
    }

    /// A model is asked.
    pub fn llm_started(&self, node: &str, llm: &Llm<'_>, prompt: &str) {
        let attributes = [("model", text(llm.model)), ("prompt", text(prompt))];
        self.of_llm(EventType::LlmStart, node, llm, Duration::ZERO, attributes);
    }

    /// A model has answered. `cost` is in dollars.
    pub fn llm_ended(
        &self,
        node: &str,
        llm: &Llm<'_>,
        (prompt, completion): (u32, u32),
        cost: f64,
        took: Duration,
    ) {
        let attributes = [
            ("model", text(llm.model)),
            ("prompt_tokens", whole(prompt.into())),
            ("completion_tokens", whole(completion.into())),
            ("total_tokens", whole(i64::from(prompt) + i64::from(completion))),
            ("cost", float(cost)),
        ];
        self.of_llm(EventType::LlmEnd, node, llm, took, attributes);
    }

    pub fn llm_failed(&self, node: &str, llm: &Llm<'_>, error: &str, took: Duration) {
        let attributes = [("model", text(llm.model)), ("error", text(error))];
        self.of_llm(EventType::LlmError, node, llm, took, attributes);
    }

    /// A model is asked again, for the `attempt`th time.
    pub fn llm_retried(&self, node: &str, llm: &Llm<'_>, attempt: u32, because: &str) {
        let attributes =
            [("model", text(llm.model)), ("attempt", whole(attempt.into())), ("reason", text(because))];
        self.of_llm(EventType::LlmRetry, node, llm, Duration::ZERO, attributes);
    }

    /// A piece of a model's answer. May be dropped when there is little room. A secret that comes in pieces is not
    /// recognised: no piece has it.
    pub fn token(&self, token: Token<'_>) {
        self.say(Signal::Token(TokenChunk::from(token)));
    }

    pub fn tool_requested(&self, call: &ToolCall<'_>, arguments: &impl Serialize) {
        let arguments = Some(state_of(arguments).unwrap_or_default());
        self.tool(tool(call, ExecutionStage::Requested), arguments, None);
    }

    pub fn tool_started(&self, call: &ToolCall<'_>) {
        self.tool(tool(call, ExecutionStage::Started), None, None);
    }

    pub fn tool_completed(&self, call: &ToolCall<'_>, result: &impl Serialize, took: Duration) {
        let execution = ToolExecution { duration_us: micros(took), ..tool(call, ExecutionStage::Completed) };
        self.tool(execution, None, Some(state_of(result).unwrap_or_default()));
    }

    pub fn tool_failed(&self, call: &ToolCall<'_>, error: &str, took: Duration) {
        let (error, duration_us) = (error.to_owned(), micros(took));
        self.tool(ToolExecution { error, duration_us, ..tool(call, ExecutionStage::Failed) }, None, None);
    }

    pub fn tool_retried(&self, call: &ToolCall<'_>, because: &str) {
        let error = because.to_owned();
        self.tool(ToolExecution { error, ..tool(call, ExecutionStage::Retrying) }, None, None);
    }

    /// The state is this now. What changed is sent, or all of it where that is less.
    ///
    /// Numbers of JSON are exact as 64-bit integers and as doubles; NaN and the infinities are `null`.
    pub fn state(&self, state: &impl Serialize) {
        self.say(Signal::State(state_of(state)));
    }

    /// A checkpoint of the state published last, beside those that are made anyway.
    pub fn checkpoint(&self) {
        self.say(Signal::Checkpoint);
    }

    /// Measurements, such as those of scope `node` and a node's name. May be dropped when there is little room.
    pub fn metrics<'a>(
        &self,
        scope: &str,
        scope_id: &str,
        measures: impl IntoIterator<Item = (&'a str, Measure<'a>)>,
    ) {
        let metrics = measures.into_iter().map(|(name, measure)| (name.to_owned(), measure.into())).collect();
        self.say(Signal::Metrics(Metrics {
            scope: scope.into(),
            scope_id: scope_id.into(),
            metrics,
            ..Default::default()
        }));
    }

    pub fn error(&self, failure: &Failure<'_>) {
        self.say(Signal::Error(Box::new(Error::from(failure))));
    }

    /// The run waits for somebody's answer.
    pub fn human_interrupt(&self, node: &str, question: &str) {
        self.event(EventType::HumanInterrupt, node, [("prompt", text(question))]);
    }

    /// The run goes on, with this answer.
    pub fn human_resumed(&self, node: &str, answer: &str) {
        self.event(EventType::HumanResume, node, [("response", text(answer))]);
    }

    /// `part` is from 0 to 1.
    pub fn progress(&self, node: &str, message: &str, part: f64) {
        self.event(EventType::NodeProgress, node, [("message", text(message)), ("percent", float(part))]);
    }

    pub fn thinking(&self, node: &str, thought: &str, step: u32) {
        self.event(EventType::NodeThinking, node, [("thought", text(thought)), ("step", whole(step.into()))]);
    }

    pub fn substep(&self, node: &str, name: &str, status: &str) {
        self.event(EventType::NodeSubstep, node, [("substep_name", text(name)), ("status", text(status))]);
    }

    pub fn warning(&self, node: &str, message: &str) {
        self.event(EventType::NodeWarning, node, [("message", text(message))]);
    }

    /// The graph has ended as it should.
    pub fn finished(&self, took: Duration) {
        self.timed(EventType::GraphEnd, "", took, []);
    }

    pub fn failed(&self, error: &str, took: Duration) {
        self.timed(EventType::GraphError, "", took, [("error", text(error))]);
    }

    /// Anything else that happened.
    pub fn event<const N: usize>(
        &self,
        kind: EventType,
        node: &str,
        attributes: [(&str, AttributeValue); N],
    ) {
        self.timed(kind, node, Duration::ZERO, attributes);
    }

    fn timed<const N: usize>(
        &self,
        kind: EventType,
        node: &str,
        took: Duration,
        attributes: [(&str, AttributeValue); N],
    ) {
        self.say(Signal::Event(Event { duration_us: micros(took), ..event(kind, node, attributes) }));
    }

    fn of_llm<const N: usize>(
        &self,
        kind: EventType,
        node: &str,
        llm: &Llm<'_>,
        took: Duration,
        attributes: [(&str, AttributeValue); N],
    ) {
        let llm_request_id = llm.request_id.to_owned();
        let event = Event { llm_request_id, duration_us: micros(took), ..event(kind, node, attributes) };
        self.say(Signal::Event(event));
    }

    fn tool(&self, call: ToolExecution, arguments: Option<Value>, result: Option<Value>) {
        self.say(Signal::Tool { call: Box::new(call), arguments, result });
    }

    fn say(&self, signal: Signal) {
        self.live.producer.queue.push(Said {
            run: self.live.key,
            thread_id: Arc::clone(&self.live.thread_id),
            at: Instant::now(),
            timestamp_us: now_us(),
            signal,
            trace: self.trace.clone(),
            hole: Hole::default(),
            bytes: 0,
        });
    }
}

fn event<const N: usize>(kind: EventType, node: &str, attributes: [(&str, AttributeValue); N]) -> Event {
    let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Event { event_type: kind.into(), node_id: node.into(), attributes, ..Default::default() }
}

fn tool(call: &ToolCall<'_>, stage: ExecutionStage) -> ToolExecution {
    ToolExecution {
        call_id: call.id.into(),
        tool_name: call.name.into(),
        stage: stage.into(),
        retry_count: call.retries,
        ..Default::default()
    }
}

fn state_of(state: &impl Serialize) -> State {
    serde_json::to_value(state).map_err(|error| error.to_string())
}

fn whole(value: i64) -> AttributeValue {
    AttributeValue { value: Some(Attribute::IntValue(value)) }
}

fn float(value: f64) -> AttributeValue {
    AttributeValue { value: Some(Attribute::FloatValue(value)) }
}

fn micros(took: Duration) -> i64 {
    i64::try_from(took.as_micros()).unwrap_or(i64::MAX)
}

fn now_us() -> i64 {
    micros(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
